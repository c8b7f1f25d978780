"""`Write`: how the images that are kept are written; and the threads that encode these."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Limits, checked
from curator_dali.curation.encoding import (
    EXTENSIONS,
    LONGEST_SIDES,
    SHA256,
    WRITTEN,
    Encoded,
    Format,
    encode,
    keep_original,
    read_profile,
)
from curator_dali.decoding import Codec
from curator_dali.io import one_line
from curator_dali.sources import image_extension
from curator_dali.stages import Reason, View
from curator_dali.transforms import ResizeSide

STAGE = "write"
"""The `stage` of samples that are dropped because they cannot be written."""

_BATCHES_AT_ONCE = 2  # whose pixels wait to be encoded

Pixels = Annotated[int, Limits("a whole number of pixels from 1 to 65500", 1, 65_500)]
Quality = Annotated[int, Limits("a whole number from 1 to 100", 1, 100)]


@checked
@dataclass(frozen=True)
class Write:
    """How `curate` and `rethreshold` write the images that are kept.

    The default writes their original bytes. With `resize` or `format` an image is scaled from the decode that the
    stages look at, and encoded. The pixels are upright and RGB of eight bits. EXIF data are not copied, as these may
    tell where a photograph was taken. An image that is small enough, of the format and in the colours asked for, and
    upright without EXIF's help, keeps its original bytes, EXIF data included: its row has `written_as = "original"`.
    An image that the format cannot hold is dropped by the stage "write", with a reason.

        cd.curate("shards/*.tar", "curated/", stages=[cd.Quality()], write=cd.Write(resize=512, format="jpeg"))

    Args:
        resize: Pixels of the side named by `side`. None leaves the size.
        side: "shortest" or "longest". The other side is rounded down.
        enlarge: Whether smaller images are enlarged.
        format: "jpeg" (with Pillow's 4:2:0 chroma), "webp" (lossy) or "png". None keeps JPEG, WebP and PNG as what
            they are, and makes JPEG of all others.
        quality: Of JPEG and WebP, 1 to 100.
        profile: "srgb" converts from the image's ICC profile to sRGB, and embeds none. "keep" embeds the image's own.
            A damaged profile, or one that is not for RGB, counts as none.
        layout: "webdataset" writes tars. "huggingface" writes Parquet files with a column of images, which
            `datasets.load_dataset` reads.

    Raises:
        ValueError: An argument is out of its range, or means nothing beside the others.
    """

    resize: Pixels | None = None
    side: Literal["shortest", "longest"] = "shortest"
    enlarge: bool = False
    format: Format | None = None
    quality: Quality = 95
    profile: Literal["srgb", "keep"] = "srgb"
    layout: Literal["webdataset", "huggingface"] = "webdataset"

    def __post_init__(self) -> None:
        given = self.recorded
        for name in given:
            if self.resize is None and name in ("side", "enlarge"):
                raise ValueError(f"Write.{name} is {given[name]!r}, and says how to resize: give resize= too")
            if not self.encodes and name in ("quality", "profile"):
                raise ValueError(
                    f"Write.{name} is {given[name]!r}, and says how to encode: give resize= or format= too, without "
                    "which the original bytes are written"
                )
        if self.format is not None and (self.resize or 0) > LONGEST_SIDES[self.format]:
            raise ValueError(
                f"Write.resize is {self.resize}, and {self.format} holds at most {LONGEST_SIDES[self.format]:,} pixels "
                "a side: give a smaller one, or another format"
            )

    @property
    def encodes(self) -> bool:
        """Whether images are encoded; else their original bytes are written."""
        return self.resize is not None or self.format is not None

    @property
    def view(self) -> View:
        """The transforms from a decoded image to what is encoded."""
        return () if self.resize is None else (ResizeSide(self.resize, side=self.side, enlarge=self.enlarge, passes=1),)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the rows that say what was written, with their types."""
        return {SHA256: "string", **WRITTEN} if self.encodes else {}

    @property
    def recorded(self) -> dict[str, Any]:
        """The arguments that are not the defaults, as plain JSON."""
        pairs = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in pairs.items() if value != default}


class WrittenSample(NamedTuple):
    """A sample as it is written: its members, what its row says of its image, and why it cannot be written, if so.

    `image` is the extension of the member that is the image.
    """

    members: Mapping[str, Any]
    columns: Mapping[str, Any]
    problem: Reason | None = None
    image: str = ""


class Encoder:
    """Threads that encode images, at most two batches ahead of whoever waits for these.

    Args:
        write: How to encode; one that `encodes`.
        num_threads: Threads.
    """

    def __init__(self, write: Write, num_threads: int) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="curator-dali-encode")
        self._under_way: deque[list[Future[WrittenSample]]] = deque()

    def submit(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        paths: Sequence[str],
        members: Sequence[Mapping[str, memoryview]],
        headers: NDArray[np.void],
        sizes: NDArray[np.int64],
    ) -> list[Future[WrittenSample]]:
        """Begin to encode the images of N samples; waits while two batches are under way.

        Args:
            pixels: N arrays, each (H, W, 3) uint8 on the host: `Write.view` of the images.
            paths: Their `image_path`s.
            members: Their members.
            headers: (N,) `HEADER_DTYPE`, of their images.
            sizes: (N, 2) int64, heights and widths of the upright originals.
        """
        while len(self._under_way) >= _BATCHES_AT_ONCE:
            wait(self._under_way.popleft())
        codecs, orientations = headers["codec"].tolist(), headers["orientation"].tolist()
        whole = zip(pixels, paths, members, codecs, orientations, map(tuple, sizes.tolist()), strict=True)
        futures = [self._pool.submit(write_sample, self._write, *sample) for sample in whole]
        self._under_way.append(futures)
        return futures

    def close(self) -> None:
        """End the threads; what has not begun is cancelled. May be called again."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def write_sample(
    write: Write,
    pixels: NDArray[np.uint8],
    path: str,
    members: Mapping[str, memoryview],
    codec: int,
    orientation: int,
    size: tuple[int, int],
) -> WrittenSample:
    """Put the encoded image into a sample's members, or say why it cannot be.

    Args:
        write: How to encode.
        pixels: (H, W, 3) uint8, `Write.view` of the image.
        path: Its `image_path`.
        members: The sample's members.
        codec: Of its header.
        orientation: Of its header.
        size: Height and width of the upright original.
    """
    extension = image_extension(members, path)
    assert extension is not None  # what was decoded has bytes
    data = members[extension]
    format = write.format or _keep_format(Codec(codec))
    profile = read_profile(data)
    in_colours = write.profile == "keep" or profile == "" or (not isinstance(profile, str) and profile.is_srgb)
    # below OTHER are plain images of one frame, with 8 bits a channel, in colours or grey
    is_plain = codec < Codec.OTHER and Codec(codec).format == format and orientation == 1
    if is_plain and in_colours and pixels.shape[:2] == size:
        found = keep_original(data, size, format)
        return _replace(members, extension, found, format)
    if max(pixels.shape[:2]) > LONGEST_SIDES[format]:
        limit = f"{format} holds at most {LONGEST_SIDES[format]:,} pixels a side"
        text = f"cannot be written: {pixels.shape[1]}x{pixels.shape[0]}, and {limit}"
        return WrittenSample({}, {}, Reason(text, f"cannot be written: {limit}"))
    try:
        made = encode(pixels, data, profile, format, write.quality, write.profile == "srgb")
    except MemoryError:
        raise
    except Exception as error:  # one image must not cost a run
        text = f"cannot be written: {one_line(str(error)) or type(error).__name__}"[:200]
        return WrittenSample({}, {}, Reason(text, "cannot be written"))
    return _replace(members, extension, made, format)


def _replace(members: Mapping[str, Any], image: str, made: Encoded, format: Format) -> WrittenSample:
    found, new = replace_image(members, image, made.data, EXTENSIONS[format])
    return WrittenSample(found, made.columns, image=new)


def _keep_format(codec: Codec) -> Format:
    """The format of an image that keeps its own, if that is one to write; else JPEG."""
    return codec.format if codec.format in EXTENSIONS else "jpeg"  # type: ignore[return-value]


def replace_image(members: Mapping[str, Any], image: str, data: Any, ending: str) -> tuple[dict[str, Any], str]:
    """Put another image in the place of a sample's image.

    Of two members with the same extension but for case, readers take one. So another member that has the new
    extension already becomes `other.EXTENSION`, or `other2.EXTENSION` if that is taken, too.

    Args:
        members: Extension -> bytes.
        image: The extension of the image.
        data: Its new bytes.
        ending: Its new extension; of a compound one (`0001.png`) the last part is replaced.

    Returns:
        Extension -> bytes, in the same order; and the image's whole new extension.
    """
    stem, dot, _ = image.rpartition(".")
    new = f"{stem}{dot}{ending}"
    taken = {extension.lower() for extension in members if extension != image} | {new.lower()}
    found: dict[str, Any] = {}
    for extension, given in members.items():
        if extension == image:
            found[new] = data
            continue
        if extension.lower() == new.lower():
            names = (f"other{number or ''}.{extension}" for number in (0, *range(2, len(members) + 3)))
            extension = next(name for name in names if name.lower() not in taken)
            taken.add(extension.lower())
        found[extension] = given
    return found, new

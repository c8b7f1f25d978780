"""Headers of encoded images, one or a whole source: what each is, and which decoder may have it or why none may.

DALI 2.4 can crash the process when a file fails in its parser inside a batch, and JPEG 2000, TIFF and animated PNG
can crash it in the decoder. So nothing reaches DALI that its own parser refuses or that belongs to these; Pillow
decodes the rest.
"""

from __future__ import annotations

import enum
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.dali import quiet_import
from curator_dali.decoding import pillow
from curator_dali.sampling import range_steps
from curator_dali.sources import CLAIMED, Head, Source
from curator_dali.threads import run_ahead

MAX_PIXELS = 178_956_970
"""Largest image, in pixels, that is decoded by default: where Pillow refuses a decompression bomb."""

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _APP1 = b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xe1"
_EXIF_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # names of a PNG's texts
_TABLES = 640  # bytes; enough for the tables and the frame header that usually follow the application's segments
_MOST_ENTRIES = 512  # of a TIFF's directory; a real one has some dozens
_SHORT = 3  # the type of an orientation in a TIFF's directory
_HEAD_LENGTHS = (16 << 10, 128 << 10)  # bytes: enough for most images, and for most with a thumbnail in EXIF
_CHUNK = 256  # samples a read: large enough for numpy, small enough that a chunk of large images fits in memory


class Codec(enum.IntEnum):
    """Format of an image and, by the value, who decodes it: below `OTHER` DALI, else Pillow."""

    UNKNOWN = 0
    JPEG = 1
    PNG = 2
    WEBP = 3
    BMP = 4
    OTHER = 16
    JPEG2000 = 17
    TIFF = 18
    GIF = 19
    AVIF = 20
    HEIC = 21
    # DALI's formats in a variant that only Pillow decodes as we want it
    JPEG_PILLOW = 33
    PNG_PILLOW = 34
    WEBP_PILLOW = 35
    BMP_PILLOW = 36
    CLAIMED = CLAIMED  # no image was looked at

    @property
    def for_dali(self) -> bool:
        """Whether DALI decodes it."""
        return 0 < self < Codec.OTHER

    @property
    def format(self) -> str:
        """The format's usual name, in lower case."""
        return self.name.removesuffix("_PILLOW").lower()


@dataclass(frozen=True)
class Header:
    """Height and width in pixels as stored, the codec, and the EXIF orientation (1 to 8; 0: only decoding tells)."""

    height: int
    width: int
    codec: Codec
    orientation: int = 1


@dataclass(frozen=True)
class Refusal:
    """Why an image cannot be decoded."""

    reason: str


def inspect(buffer: NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> Header | Refusal:
    """Read an encoded image's header; microseconds, no pixels.

    Args:
        buffer: The file's bytes, one-dimensional uint8.
        max_pixels: Larger images are refused.

    Returns:
        The header, or why the image cannot be decoded.
    """
    data = buffer.data
    if not len(data):
        return Refusal("the image has no bytes")
    return _inspect_for_dali(buffer, len(data), max_pixels) or _inspect_with_pillow(data, max_pixels)


def inspect_head(head: Head, max_pixels: int = MAX_PIXELS) -> Header | Refusal | None:
    """Read an encoded image's header from the first bytes and the end of the file.

    Args:
        head: See `Head`.
        max_pixels: Larger images are refused.

    Returns:
        The verdict of `inspect` on the whole file; None where only the whole file tells.
    """
    buffer, data = head.data, head.data.data
    if len(data) >= head.size:
        return inspect(buffer, max_pixels)
    if bytes(data[:2]) == _START_OF_IMAGE:
        if head.tail[-2:] != _END_OF_IMAGE or not _reaches_scan(data):
            return None
        buffer = np.append(buffer, np.frombuffer(_END_OF_IMAGE, np.uint8))
    verdict = _inspect_for_dali(buffer, head.size, max_pixels)
    # what Pillow decodes may depend on any byte
    return verdict if isinstance(verdict, Refusal) or (verdict is not None and verdict.codec.for_dali) else None


def _inspect_for_dali(buffer: NDArray[np.uint8], size: int, max_pixels: int) -> Header | Refusal | None:
    """Read the header of an image that DALI's parser takes; None where it takes none.

    `buffer` is the file, or its beginning, and `size` the bytes of the file.
    """
    data = buffer.data
    codec = _codec_for_dali(data, size)
    if codec is None:
        return None
    try:
        stream = _code_stream_type()(buffer)
        height, width, channels = int(stream.height), int(stream.width), stream.num_channels
        taken = stream.codec_name == codec.format and stream.dtype == np.uint8 and channels in (1, 3, 4)
    except (RuntimeError, ValueError, TypeError):  # reading dtype may raise too
        taken = False
    if not taken:
        return None
    if height * width > max_pixels:
        return _too_large(height, width, max_pixels)
    if codec is not Codec.JPEG:
        return Header(height, width, codec)
    orientation = jpeg_orientation(data)
    if channels == 4:
        orientation = None  # CMYK: DALI takes ink for light where Adobe's marker is missing
    # the end marker is all but always last; behind it some cameras and editors put more
    if data[-2:] != _END_OF_IMAGE:
        encoded = bytes(data)
        end = encoded.rfind(_END_OF_IMAGE)
        if end < 0:
            return Refusal("truncated: the JPEG has no end-of-image marker")
        if end < encoded.rfind(_START_OF_SCAN):
            orientation = None  # likely cut off behind a whole thumbnail: Pillow tells, and no batch fails
    if orientation is None:
        return Header(height, width, Codec.JPEG_PILLOW, 0)
    return Header(height, width, codec, orientation)


@cache
def _code_stream_type() -> Any:
    """Import nvImageCodec once, when the first header is read."""
    with quiet_import():
        from nvidia import nvimgcodec

    return nvimgcodec.CodeStream


def _reaches_scan(data: memoryview) -> bool:
    """Whether the beginning of a JPEG holds all segments up to the first scan."""
    at = 2
    for _, content in _segments(data, 2):
        at = content - 2 + (data[content - 2] << 8 | data[content - 1])
    return at + 2 <= len(data) and bytes(data[at : at + 2]) == _START_OF_SCAN


def _codec_for_dali(data: memoryview, size: int) -> Codec | None:
    """Return the format of an image that DALI decodes to the RGB of Pillow; None for every other format and variant."""
    head = bytes(data[:12])
    if head.startswith(_START_OF_IMAGE):
        return Codec.JPEG
    if head.startswith(b"\x89PNG"):
        return Codec.PNG if _plain_png(data) else None
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return Codec.WEBP if _plain_webp(data, size) else None
    if head.startswith(b"BM"):
        return Codec.BMP if _plain_bmp(data, size) else None
    return None


def _plain_png(data: memoryview) -> bool:
    """Neither animated, oriented by EXIF or XMP, nor 16 bits deep; every chunk inside the file."""
    if len(data) < 33 or data[24] == 16:
        return False
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        is_exif = kind in (b"zTXt", b"tEXt", b"iTXt") and bytes(data[at + 8 : at + 48]).startswith(_EXIF_TEXTS)
        if kind in (b"acTL", b"eXIf") or is_exif:
            return False
        if kind == b"IEND":
            return True
        at += 12 + size
    return False  # cut off: Pillow says how


def _plain_webp(data: memoryview, size: int) -> bool:
    """Simple or extended without EXIF (0x08), XMP (0x04) and animation (0x02) flags; not cut off."""
    if len(data) < 21 or struct.unpack_from("<I", data, 4)[0] + 8 > size:
        return False
    return bytes(data[12:16]) != b"VP8X" or not data[20] & 0x0E


def _plain_bmp(data: memoryview, size: int) -> bool:
    """24 bits, uncompressed: palettes, run lengths, bit fields and alpha are Pillow's; not cut off."""
    if len(data) < 54:
        return False
    (start,) = struct.unpack_from("<I", data, 10)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    row = (3 * width + 3) // 4 * 4  # bytes; rows begin at multiples of four
    return bool(bits == 24 and compression == 0 and start + row * abs(height) <= size)


_PILLOW_FORMATS = {
    "JPEG": Codec.JPEG_PILLOW,
    "MPO": Codec.JPEG_PILLOW,
    "PNG": Codec.PNG_PILLOW,
    "WEBP": Codec.WEBP_PILLOW,
    "BMP": Codec.BMP_PILLOW,
    "DIB": Codec.BMP_PILLOW,
    "JPEG2000": Codec.JPEG2000,
    "TIFF": Codec.TIFF,
    "GIF": Codec.GIF,
    "AVIF": Codec.AVIF,
    "HEIF": Codec.HEIC,
}


def _inspect_with_pillow(data: memoryview, max_pixels: int) -> Header | Refusal:
    """The header of what DALI may not have, as Pillow reads it."""
    from PIL import Image

    try:
        with pillow.open_image(data) as image:
            width, height = image.size
            codec = _PILLOW_FORMATS.get(image.format or "", Codec.OTHER)
    except Image.DecompressionBombError as error:
        return Refusal(f"too large: {error}")
    except Exception as error:  # Pillow's plugins raise almost anything on damaged headers
        return Refusal(_why_unreadable(data, error))
    if height * width > max_pixels:
        return _too_large(height, width, max_pixels)
    return Header(height, width, codec, 0)


def _why_unreadable(data: memoryview, error: Exception) -> str:
    head = bytes(data[:512])
    text = head[:24].decode("latin-1")
    if all(c.isprintable() or c.isspace() for c in text) and text.isascii():
        return f"not an image: it begins with the text {text!r}"
    if head.startswith(b"\xff\xd8"):
        return _deep_jpeg(data) or "a JPEG whose header is damaged or cut off"
    if type(error).__name__ == "UnidentifiedImageError":
        if head[:4] in _TIFF_STARTS:
            return "a TIFF whose header is damaged, or whose samples Pillow does not read (floats of 16 or 64 bits)"
        return f"not an image of a known format: it begins with the bytes {head[:8].hex(' ')}"
    return pillow.describe(error)


def _deep_jpeg(data: memoryview) -> str | None:
    """That this is a JPEG of more bits than anybody here decodes, if it is one."""
    for marker, at in _segments(data, 2):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at < len(data):  # a frame, not tables
            return f"a JPEG of {data[at]} bits a sample: only 8 can be decoded" if data[at] != 8 else None
    return None


def _segments(data: memoryview, at: int) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment of a JPEG from `at` to the first scan, and where its content begins."""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        yield data[at + 1], at + 4
        at += 2 + (data[at + 2] << 8 | data[at + 3])


def _too_large(height: int, width: int, max_pixels: int) -> Refusal:
    return Refusal(f"too large: {width}x{height} is over the limit of {max_pixels:,} pixels")


def jpeg_orientation(data: memoryview) -> int | None:
    """The orientation of a JPEG, 1 to 8, where DALI and Pillow read the same one.

    Without EXIF, or with a value out of range (some cameras write 0), the image lies as it is: 1.

    Returns:
        None where only Pillow's reading counts: several or damaged EXIF segments, one behind the first segment that
        is neither an application's nor a comment, and an orientation in XMP instead.
    """
    at, found, in_xmp = 2, None, False
    while at + 4 <= len(data) and data[at] == 0xFF and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        size = data[at + 2] << 8 | data[at + 3]
        if data[at + 1] == 0xE1:
            segment = data[at + 4 : at + 2 + size]
            if segment[:6] == _EXIF:
                if found is not None:
                    return None
                found = _from_tiff(bytes(segment[6:]))
                if found is None:
                    return None
            elif segment[: len(_XMP)] == _XMP:
                in_xmp = in_xmp or b"tiff:Orientation" in bytes(segment)
        at += 2 + size
    rest = bytes(data[at : at + _TABLES])
    if (_APP1 in rest or _START_OF_SCAN not in rest) and _is_late(data, at):
        return None
    if not found:
        return None if in_xmp else 1
    return found if found <= 8 else 1


def _is_late(data: memoryview, at: int) -> bool:
    """Whether EXIF or XMP follows among the segments from `at` to the first scan, where writers hardly ever put it."""
    contents = (bytes(data[start : start + len(_XMP)]) for marker, start in _segments(data, at) if marker == 0xE1)
    return any(content.startswith((_EXIF, _XMP)) for content in contents)


def _from_tiff(tiff: bytes) -> int | None:
    """The tag's value in the first directory, 0 without one; None where the directory is damaged or of another type."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return None
    (entries,) = struct.unpack_from(f"{order}H", tiff, start)
    if entries > _MOST_ENTRIES or start + 2 + 12 * entries > len(tiff):
        return None
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == pillow.ORIENTATION:
            return value if kind == _SHORT and count == 1 else None
    return 0


def upright_sizes(headers: NDArray[np.void]) -> NDArray[np.int64]:
    """(N, 2) int64 heights and widths in pixels of images once they are upright, from (N,) `HEADER_DTYPE`.

    As stored where the orientation is not known.
    """
    sizes = np.stack([headers["height"], headers["width"]], axis=1).astype(np.int64)
    return np.where(np.isin(headers["orientation"], pillow.TURNED)[:, None], sizes[:, ::-1], sizes)


class Headers(NamedTuple):
    """Headers of some samples of a source.

    Attributes:
        indices: (N,) int64, the samples' indices in the source.
        headers: (N,) `HEADER_DTYPE`, codec 0 for an image that cannot be read.
        sizes: (N,) int64, bytes of each encoded image, -1 where the source has not got the number.
        problems: Row -> the reason why an image cannot be read.
    """

    indices: NDArray[np.int64]
    headers: NDArray[np.void]
    sizes: NDArray[np.int64]
    problems: dict[int, str]


def read_headers(source: Source, max_pixels: int = MAX_PIXELS, *, claimed: bool = False) -> Iterator[Headers]:
    """Iterate over the headers of a source, in order; the source learns those that it does not know yet.

    Of an unknown image the first bytes are read, and the whole image only where these do not tell. Images of more
    than `max_pixels` are refused, whether their headers are known already or not.

    Args:
        source: The source.
        max_pixels: The most pixels of an image.
        claimed: Whether sizes that only the metadata tell are enough.

    Yields:
        The headers of up to 256 samples at a time.

    Raises:
        SourceError: A sample cannot be read now.
    """

    def read(indices: NDArray[np.int64]) -> Headers:
        found = Headers(indices, source.headers(indices).copy(), source.image_sizes(indices), {})
        if not claimed:
            found.headers[found.headers["codec"] == Codec.CLAIMED] = 0
        unknown = np.flatnonzero(found.headers["codec"] == Codec.UNKNOWN)
        rows = unknown
        for length in _HEAD_LENGTHS:
            rows = _read_heads(source, found, rows, length, max_pixels)
        if len(rows):
            encoded = source.read(indices[rows])
            encoded.check_read()
            for place, (row, image) in enumerate(zip(rows.tolist(), encoded.images, strict=True)):
                found.sizes[row] = len(image)
                if place in encoded.errors:
                    found.problems[row] = encoded.errors[place]
                else:
                    _keep(found, row, inspect(image, max_pixels))
        learnt = unknown[found.headers["codec"][unknown] != Codec.UNKNOWN]
        source.learn(indices[learnt], found.headers[learnt])
        # also of headers that were known: what was learnt before must not tell
        pixels = found.headers["height"].astype(np.int64) * found.headers["width"]
        for row in np.flatnonzero(pixels > max_pixels).tolist():
            height, width = found.headers["height"][row], found.headers["width"][row]
            _keep(found, row, _too_large(int(height), int(width), max_pixels))
        return found

    chunks = (indices for indices, _ in range_steps([(0, len(source))], _CHUNK))
    workers = max(2, source.read_ahead)
    # the window hides a network's latency, and memory does not grow with the source
    with ThreadPoolExecutor(workers, thread_name_prefix="curator-dali-headers") as pool:
        yield from run_ahead(pool, read, chunks, workers - 1)


def _read_heads(
    source: Source, found: Headers, rows: NDArray[np.int64], length: int, max_pixels: int
) -> NDArray[np.int64]:
    """Read headers of rows from the first bytes of their images; return the rows that need more bytes."""
    left = []
    heads = source.read_heads(found.indices[rows], length) if len(rows) else []
    for row, head in zip(rows.tolist(), heads, strict=True):
        verdict = None if head is None else inspect_head(head, max_pixels)
        if head is None or verdict is None:
            left.append(row)
        else:
            found.sizes[row] = head.size
            _keep(found, row, verdict)
    return np.array(left, np.int64)


def _keep(found: Headers, row: int, verdict: Header | Refusal) -> None:
    if isinstance(verdict, Header):
        found.headers[row] = (verdict.height, verdict.width, verdict.codec, verdict.orientation)
    else:
        found.headers["codec"][row] = Codec.UNKNOWN
        found.problems[row] = verdict.reason


def scan(source: Source, progress: Callable[[int], object] | None = None) -> Survey:
    """Count what a source holds from the headers of its images.

    `progress` is called with the number of samples done since the last call.

    Raises:
        SourceError: The source, or a sample of it, cannot be read now.
    """
    codecs: Counter[int] = Counter()
    # Counters of distinct values: exact medians in memory that does not grow with the number of images
    widths: Counter[int] = Counter()
    heights: Counter[int] = Counter()
    pixels = image_bytes = images_sized = 0
    for indices, headers, sizes, _ in read_headers(source, claimed=True):
        good = headers[headers["codec"] != Codec.UNKNOWN]
        codecs.update(headers["codec"].tolist())
        widths.update(good["width"].tolist())
        heights.update(good["height"].tolist())
        pixels += int((good["width"].astype(np.int64) * good["height"]).sum())
        image_bytes += int(sizes[sizes > 0].sum())
        images_sized += int((sizes >= 0).sum())
        if progress:
            progress(len(indices))
    unreadable = codecs.pop(Codec.UNKNOWN, 0)
    formats: Counter[str] = Counter()
    for codec, count in codecs.items():
        formats[Codec(codec).format] += count
    return Survey(
        name=source.name,
        samples=len(source),
        shards=len(source.shard_sizes),
        image_bytes=image_bytes,
        images_sized=images_sized,
        unreadable=unreadable,
        formats=dict(formats.most_common()),
        by_pillow=sum(count for codec, count in codecs.items() if Codec.OTHER <= codec < Codec.CLAIMED),
        pixels=pixels,
        width=_range(widths),
        height=_range(heights),
    )


@dataclass(frozen=True)
class Survey:
    """A summary of a source, from the headers of its images.

    Attributes:
        name: The source's name.
        samples: Number of samples.
        shards: Number of files (folders) that they lie in.
        image_bytes: Encoded bytes of the images whose size is known.
        images_sized: How many these are: all, unless the source kept the headers of an earlier scan but no sizes.
        unreadable: Samples without an image, or with one whose header is refused.
        formats: Images by format, most frequent first.
        by_pillow: Images in a format, or a variant of one, that Pillow decodes instead of DALI.
        pixels: Sum of height times width.
        width: Pixels as stored, before EXIF orientation; None where no image is readable.
        height: Likewise.
    """

    name: str
    samples: int
    shards: int
    image_bytes: int = 0
    images_sized: int = 0
    unreadable: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    by_pillow: int = 0
    pixels: int = 0
    width: Range | None = None
    height: Range | None = None

    def as_dict(self) -> dict[str, Any]:
        """The survey as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Range:
    """Smallest, median and largest of a quantity."""

    minimum: int
    median: int
    maximum: int


def _range(counts: Counter[int]) -> Range | None:
    if not counts:
        return None
    values, weights = np.array(sorted(counts.items()), dtype=np.int64).T
    middle = int(np.searchsorted(np.cumsum(weights), (weights.sum() + 1) // 2))
    return Range(int(values[0]), int(values[middle]), int(values[-1]))

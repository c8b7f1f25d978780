"""`Source`: a length, and samples by index; the types of its fields; a sample's members: names, images, sidecars."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError
from curator_dali.io import IMAGE_EXTENSIONS
from curator_dali.sampling import ShardCounts

if TYPE_CHECKING:
    import pyarrow as pa

HEADER_DTYPE = np.dtype([("height", "<i4"), ("width", "<i4"), ("codec", "u1"), ("orientation", "u1")])
"""What a header says of one image: pixels as stored, which decoder takes it, and which way up it is.

`codec` 0 means unknown; the other values are those of `curator_dali.decoding.Codec`. `orientation` is EXIF's, 1 to 8,
or 0 where only decoding tells. `curator_dali.decoding.upright_sizes` applies it.
"""

CLAIMED = 64
"""The codec of a header whose size the metadata tell; nothing else is known of the image."""

TAIL_BYTES = 2
"""Bytes of `Head.tail`: the end marker of a JPEG."""

KINDS: dict[str, Any] = {}
"""Classes of sources that are made of others, by the key that their `origin` has: "claimed", "join", "mixture", "view".

Each file enters its own class, which has a method `reopen(origin, data)`. The files below thus need not import it.
"""

_LONGEST_NAME = 200  # characters of a name in a message
_IDS_AT_ONCE = 256  # samples that are read for nothing but their ids

_MAGIC_BYTES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8", "jpg"),
    (0, b"\x89PNG", "png"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"GIF8", "gif"),
    *((0, magic, "tif") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (4, b"jP  ", "jp2"),
    (0, b"\xff\x4f\xff\x51", "j2k"),
    *((4, magic, "avif") for magic in (b"ftypavif", b"ftypavis")),
    *((4, magic, "heic") for magic in (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")),
    (0, b"8BPS", "psd"),
    (0, b"qoif", "qoi"),
    (0, b"\0\0\1\0", "ico"),
    (0, b"DDS ", "dds"),
    (0, b"\1\xda", "sgi"),
    *((0, bytes([10, version, 1]), "pcx") for version in (0, 2, 3, 4, 5)),
    *(
        (0, b"P%d%c" % (number, space), extension)
        for number, extension in enumerate(("pbm", "pgm", "ppm") * 2, 1)
        for space in b" \t\n\r#"
    ),
)


class ShardRecord(NamedTuple):
    """The facts by which a file of a data set is found again after it was moved or renamed.

    Attributes:
        name: Its name, without folders and queries.
        size: Bytes.
        content: The content hash that its store tells, such as an ETag; "" where there is none.
        samples: How many samples lie in it.
        digest: A number that is made of its structure, so that other samples have another one.
    """

    name: str
    size: int
    content: str
    samples: int
    digest: int


class ReadAhead(Protocol):
    """Shards that are read ahead of a pass; see `Streamed.read_ahead`."""

    @property
    def total(self) -> int:
        """Number of shards that are read in all."""

    def wait(self, number: int) -> bool:
        """Wait until a shard is indexed. False: it is none of those that are read.

        Raises:
            SourceError: It cannot be read. Only the first caller is told.
            PassEndedError: The reading was ended.
        """

    def release(self, numbers: Iterable[int]) -> None:
        """Let the bytes of shards go, whose samples the pass has read."""

    def cancel(self) -> None:
        """End the reading, and wake who waits for a shard. Does not wait. May be called again."""

    def close(self) -> None:
        """End the reading, and let all bytes go. May be called again."""


class Streamed(ShardCounts, Protocol):
    """The shards of a source, which may be counted one after the other; places and indices of the samples in these."""

    @property
    def fingerprint(self) -> str:
        """Of what is known of the shards before they are indexed: names, sizes and content hashes."""

    def read_ahead(self, numbers: Iterable[int]) -> ReadAhead | None:
        """Begin to read shards that are not indexed, in the order given, and keep their bytes until these are used.

        Args:
            numbers: Of shards; those that are indexed are passed over.

        Returns:
            None where there is none. Close it at the end of the pass.
        """

    def by_place(self) -> Source:
        """The same samples in a source whose indices are places, `shard << 32 | sample`."""

    def places_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) int64: places of samples; waits for the shards up to the last of these."""

    def indices_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) int64: indices of samples by their places; -1 where earlier shards are not counted. Does not wait."""

    def count_to(self, count: int) -> int:
        """Count samples from the first on, `count` at most; waits for the shards of these."""

    def index(self, numbers: Sequence[int]) -> Mapping[int, Any]:
        """Index some shards, and return what `adopt` in another process takes: shard -> what is known of it.

        Raises:
            SourceError: Shards cannot be read; all are named.
        """

    def adopt(self, found: Mapping[int, Any]) -> None:
        """Take over what another process found by `index`."""


class Head(NamedTuple):
    """The beginning and the end of an encoded image.

    Attributes:
        data: One-dimensional uint8, the first bytes: all of a short image.
        tail: The last two bytes.
        size: Bytes of the whole image.
    """

    data: NDArray[np.uint8]
    tail: bytes
    size: int


class Source(ABC):
    """A data set of encoded images with a fixed order, read by index.

    Sources know nothing of shuffling, ranks or decoding. `read` may be called from several threads at once.

    Attributes:
        name: The data set's name, used as `ImageBatch.dataset_name`.
        read_ahead: How many `read` calls are worth having under way at once: 1 for a local disk, more where a
            read waits for a network.
        origin: How `reopen` opens it again, as plain JSON; None where only whoever made it knows.
    """

    name: str = "images"
    read_ahead: int = 1
    origin: Mapping[str, Any] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @property
    def has_known_ids(self) -> bool:
        """Whether equal fingerprints mean equal ids. Those of a column of Parquet may change unseen."""
        return False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that changes when the data set does; kept in a loader's state to refuse a wrong resume.

        Asked for whenever a state is saved, which may be every step: made once, and kept.
        """

    @property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """Part of the data set -> names of its labels, by label. A part that names none has an empty list."""
        return {}

    @property
    def class_names(self) -> list[str]:
        """Names of the labels, by label; empty where the source names none, or its parts number different classes."""
        lists = [list(names) for names in self.class_lists.values()]
        return lists[0] if lists and all(names == lists[0] for names in lists) else []

    @property
    def fields(self) -> Mapping[str, str] | None:
        """Fields of the metadata and their types, "bool", "int64", "float64" or "string"; None without a schema."""
        return None

    @property
    def arrow_fields(self) -> Mapping[str, Any] | None:
        """Fields of the metadata and their types, `pyarrow.DataType`s; None without a schema."""
        return None

    @property
    def locations(self) -> Sequence[str]:
        """Paths or URLs of the files that the samples lie in, and of folders, which end in "/"."""
        return ()

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """(S,) int64: samples a shard, in order. A sequential shuffle permutes these."""
        return np.array([len(self)], dtype=np.int64)

    @property
    def streamed(self) -> Streamed | None:
        """Its shards, where these may be counted one after the other, during a pass; None where all are counted."""
        return None

    @property
    def shard_records(self) -> Sequence[ShardRecord]:
        """The files that the samples lie in, in order; none where the source is not made of shards."""
        return ()

    def select_shards(self, numbers: Sequence[int], known: Sequence[ShardRecord]) -> Source:
        """Make a source of some of the `shard_records`, in the order given.

        Args:
            numbers: Their M numbers.
            known: M records of the same files at another place or under other names, which the fingerprint goes by.
        """
        raise NotImplementedError(f"{self!r} has no shards")

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """Read the `image_id`s of samples.

        Tars, Parquet files, folders and memory tell ids without reading an image. The base class reads the samples.

        Args:
            indices: (N,) int64 in [0, len(self)), in the order wanted.

        Returns:
            (N,) texts.

        Raises:
            SourceError: The ids cannot be read now: a file is gone or changed, or a store does not answer.

        Example:
            >>> cd.MemorySource({"a": data, "b": data}).read_ids(np.arange(2)).to_pylist()
            ['a', 'b']
        """
        import pyarrow as pa

        ids: list[str] = []
        for start in range(0, len(indices), _IDS_AT_ONCE):
            ids += [item.image_id for item in self.read(indices[start : start + _IDS_AT_ONCE]).objects]
        return pa.array(ids, pa.large_string())

    def join(
        self,
        table: Any,
        on: str | tuple[str, str] = "image_id",
        columns: Sequence[str] | None = None,
        *,
        missing: Literal["keep", "drop", "refuse"] = "keep",
        repeated: Literal["first", "drop", "refuse"] = "first",
    ) -> Source:
        """Add the columns of a table to the samples' metadata; nothing is written anew.

        Args:
            table: A path, URL or glob of Parquet, CSV, JSON lines or Arrow files, or a list of these; a
                `pyarrow.Table`, or a frame of pandas or polars.
            on: The column whose values are the samples' `image_id`s. For another pair: (field, column), where the
                field is "image_path" or one of the metadata; each sample is then read once to learn it.
            columns: Columns to add; by default all but the one of `on`. They go over fields of the same name.
            missing: What becomes of a sample without a row: "keep" it without the columns, "drop" it, or "refuse".
            repeated: What becomes of a sample with several rows: the "first" row counts, "drop" it, or "refuse".

        Returns:
            A source whose attributes count what has no row, and what has several; see `Join`.

        Raises:
            SourceError: The table cannot be read, lacks a column, or has what is to be refused.

        Example:
            >>> cd.open_source("shards/").join("captions.parquet", on="key", missing="drop")
        """
        joined: Source = KINDS["join"](self, table, on, columns, missing=missing, repeated=repeated)
        return joined

    def trust_sizes(self, width: str = "width", height: str = "height") -> Source:
        """Take the sizes of images from the metadata, where no header is known yet.

        Filters on the size in `curate`, and `curator-dali info`, then need not read these images. An image that passes
        is judged once more, by its own header. Buckets go by headers alone.

        Args:
            width: The field with the width in pixels.
            height: The field with the height in pixels.

        Returns:
            The same samples in the same order.

        Example:
            >>> cd.curate(cd.open_source("laion/*.tar").trust_sizes(), "out/", stages=[cd.Filter("width", min=512)])
        """
        trusting: Source = KINDS["claimed"](self, width, height)
        return trusting

    @abstractmethod
    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples.

        Args:
            indices: (N,) int64 in [0, len(self)), in the order wanted; repeats are allowed.
            members: Whether to fill `EncodedBatch.members`.

        A sample that cannot be read becomes a row in `errors`; only what makes the source itself unusable raises.

        Raises:
            SourceError: The source cannot be read at all.
        """

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read samples as `read` does, some of them without their images.

        Args:
            indices: (N,) int64 in [0, len(self)), in the order wanted.
            skipped: (N,) whether a sample's image is not wanted. Its path, id and metadata are. The image and the
                members may be empty, which is no error. The base class reads everything.
            members: See `read`.
        """
        return self.read(indices, members=members)

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples, (N,) `HEADER_DTYPE`; codec 0 where nothing is known yet. Reads no image."""
        return np.zeros(len(indices), HEADER_DTYPE)

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encoded bytes of samples' images, (N,) int64; -1 where only reading would tell."""
        return np.full(len(indices), -1, np.int64)

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings of images, where these cost less than the whole images.

        Args:
            indices: (N,) int64 in [0, len(self)), in the order wanted.
            length: Bytes of each beginning.

        Returns:
            N heads; None for an image that has to be read whole, or that cannot be read now.
        """
        return [None] * len(indices)

    def __getitems__(self, indices: Sequence[int]) -> EncodedBatch:
        """Read samples for torch's `DataLoader`, as `read`."""
        return self.read(np.asarray(indices, np.int64))

    def learn(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:  # noqa: B027 - an option, not a duty
        """Keep what was learnt of samples' headers for this and later runs. May do nothing."""

    def close(self) -> None:  # noqa: B027 - as above
        """Free files and threads, and write down what was learnt. May be called again."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} samples)"


class LearningSource(Source):
    """A source that keeps what it learns of headers in memory, all of it."""

    _headers: NDArray[np.void]
    """(N,) `HEADER_DTYPE`; zeros, from whoever knows N."""

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples."""
        return self._headers[indices]

    def learn(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers for as long as this object lives."""
        known = headers["codec"] != 0
        if not self._headers.flags.writeable:  # Ray hands arrays to other processes as views of one copy
            self._headers = self._headers.copy()
        self._headers[np.asarray(indices)[known]] = headers[known]


@dataclass
class EncodedBatch:
    """Encoded samples, a row each, as a source read them.

    Attributes:
        indices: (N,) int64, the samples' indices in the source.
        objects: N `ImageObject`s without pixels: path, id and (lazy) metadata.
        images: N one-dimensional *writable* uint8 arrays, views of the source's buffers; an array of length 0
            where there is none. Valid as long as somebody holds them.
        shards: N names of the files that the samples lie in.
        errors: Row -> reason, for samples that could not be read.
        headers: (N,) `HEADER_DTYPE`, what is known of the images; codec 0 where nothing is.
        members: N mappings {extension: bytes-like} of all members of a sample, where asked for. Its sidecars give all
            of the sample's metadata, whatever the source keeps that in (see `add_sidecars`).
        unread: Rows of `errors` whose bytes could not be read now: a file that is gone or changed, a store that does
            not answer. Such an error says nothing of the image, and a later read may succeed.
    """

    indices: NDArray[np.int64]
    objects: list[ImageObject]
    images: list[NDArray[np.uint8]]
    shards: list[str]
    headers: NDArray[np.void]
    errors: dict[int, str] = field(default_factory=dict)
    members: list[Mapping[str, memoryview]] | None = None
    unread: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.objects)

    def check_read(self) -> None:
        """Refuse a batch of which a sample could not be read now, where a verdict on every sample is wanted.

        Raises:
            SourceError: A row is in `unread`.
        """
        if self.unread:
            raise self.explain_unread(min(self.unread))

    def explain_unread(self, row: int) -> SourceError:
        """Make the exception of a row of `errors` whose bytes cannot be read now."""
        item = self.objects[row]
        return SourceError(
            f"sample {item.image_id!r} ({item.image_path}) of {self.shards[row]} cannot be read now: {self.errors[row]}"
            ". This failure says nothing of the image. The same call goes on from there once the sample can be read. "
            "Leave the sample out of the source if it is gone for good"
        )


def make_batch(indices: NDArray[np.int64], headers: NDArray[np.void]) -> EncodedBatch:
    """Make a batch whose objects, images and shards are to be filled in."""
    count = len(indices)
    nothing: list[Any] = [None] * count
    return EncodedBatch(indices, nothing, [np.empty(0, np.uint8)] * count, [""] * count, headers)


def check_indices(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return (N,) sample indices as int64; one that is not in [0, `count`) is an `IndexError`."""
    indices = np.asarray(indices, np.int64)
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise IndexError(f"indices must be in [0, {count}), not {indices.min()} to {indices.max()}")
    return indices


def split_by_shard(
    indices: NDArray[np.int64], starts: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Split sample indices by the shard that they lie in.

    `starts` are (S + 1,) int64: the first sample of each shard, and the number of all samples.

    Yields:
        The number of a shard, the rows of `indices` that lie in it, and their samples' numbers in the shard.

    Raises:
        IndexError: An index is outside of the source.
    """
    indices = check_indices(indices, int(starts[-1]))
    shard = np.searchsorted(starts, indices, "right") - 1
    for rows in group_rows(shard):
        number = int(shard[rows[0]])
        yield number, rows, indices[rows] - starts[number]


def group_rows(shard: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each shard, in the order of the shards."""
    order = np.argsort(shard, kind="stable")
    bounds = [*np.flatnonzero(np.diff(shard[order], prepend=-1)).tolist(), len(order)]
    for begin, end in pairwise(bounds):
        yield order[begin:end]


def order_ids(parts: Sequence[tuple[NDArray[np.int64], Any]]) -> pa.LargeStringArray:
    """Join ids that were read shard by shard: (m,) places and (m,) texts of each, M in all, in the places' order."""
    import pyarrow as pa

    if not parts:
        return pa.array([], pa.large_string())
    places = np.concatenate([rows for rows, _ in parts])
    ids = pa.concat_arrays([texts for _, texts in parts])
    order = np.empty(len(places), np.int64)  # (M,) where the id of each place stands among `ids`
    order[places] = np.arange(len(places))
    return ids if len(parts) == 1 and (order == places).all() else ids.take(pa.array(order))


def merge_types(types: Iterable[str]) -> str:
    """The type of a field whose values are of some types: a number where all are numbers, else a text."""
    found = set(types)
    if len(found) == 1:
        return next(iter(found))
    return "float64" if found and found <= {"int64", "float64"} else "string"


def kind_of_type(arrow: Any) -> str:
    """The type "bool", "int64", "float64" or "string" in which a stage reads values of an Arrow type."""
    import pyarrow as pa

    if pa.types.is_boolean(arrow):
        return "bool"
    if pa.types.is_integer(arrow):
        return "float64" if pa.types.is_uint64(arrow) else "int64"
    return "float64" if pa.types.is_floating(arrow) or pa.types.is_decimal(arrow) else "string"


def merge_schemas(schemas: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The fields of several data sets, each with the type that its values have in all of them."""
    found: dict[str, set[str]] = {}
    for schema in schemas:
        for name, kind in schema.items():
            found.setdefault(name, set()).add(kind)
    return {name: merge_types(kinds) for name, kinds in found.items()}


def merge_arrow_types(schemas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of several data sets, each with an Arrow type for its values in all of them, where there is one."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for name in {name: None for schema in schemas for name in schema}:
        kinds = list(dict.fromkeys(schema[name] for schema in schemas if name in schema))
        try:
            columns = [pa.schema([pa.field(name, kind)]) for kind in kinds]
            found[name] = pa.unify_schemas(columns, promote_options="permissive").field(0).type
        except pa.ArrowException:
            continue
    return found


def is_image(name: str) -> bool:
    """Whether a file's name ends in an image extension, in either case."""
    _, dot, extension = name.rpartition(".")
    return bool(dot) and extension.lower() in IMAGE_EXTENSIONS


def sniff_extension(head: bytes | memoryview, default: str = "jpg") -> str:
    """The extension that fits an image's first 16 bytes, or `default`."""
    head = bytes(head[:16])
    return next((extension for at, magic, extension in _MAGIC_BYTES if head.startswith(magic, at)), default)


def image_member(members: Mapping[str, memoryview], path: str) -> memoryview:
    """The image among a sample's members.

    Args:
        members: Extension -> bytes.
        path: The sample's `image_path`, whose name decides where several are images.
    """
    extension = image_extension(members, path)
    return memoryview(b"") if extension is None else members[extension]


def image_extension(members: Iterable[str], path: str) -> str | None:
    """The extension of the image among a sample's members, as `image_member` has it; None where there is no member."""
    images = [extension for extension in members if is_image(f".{extension}")] or list(members)
    if len(images) > 1:
        name = path.partition("::")[0]
        images = sorted(images, key=lambda extension: (not name.endswith(f".{extension}"), -len(extension)))
    return images[0] if images else None


def quote(name: str) -> str:
    """A name in quotes for a message; of a long one the beginning."""
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...")

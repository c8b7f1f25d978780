"""What every source of encoded images offers: a length, and samples by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch.image import ImageObject
from curator_dali.errors import SourceError

__all__ = ["HEADER_DTYPE", "EncodedBatch", "LearningSource", "Source", "merge_schemas", "merge_types"]

HEADER_DTYPE = np.dtype([("height", "<i4"), ("width", "<i4"), ("codec", "u1"), ("orientation", "u1")])
"""What a header says of one image: pixels as stored, which decoder takes it, and which way up it is.

`codec` 0 means unknown; the other values are `curator_dali.headers.Codec`'s. `orientation` is EXIF's, 1 to 8, or 0
where only decoding tells. `curator_dali.headers.upright_sizes` applies it.
"""


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
            of the sample's metadata, whatever the source keeps that in (see `samples.add_sidecars`).
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
    def locations(self) -> Sequence[str]:
        """Paths or URLs of the files that the samples lie in, and of folders, which end in "/"."""
        return ()

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """(S,) int64: samples a shard, in order. A sequential shuffle permutes these."""
        return np.array([len(self)], dtype=np.int64)

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

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples, (N,) `HEADER_DTYPE`; codec 0 where nothing is known yet. Reads no image."""
        return np.zeros(len(indices), HEADER_DTYPE)

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encoded bytes of samples' images, (N,) int64; -1 where only reading would tell."""
        return np.full(len(indices), -1, np.int64)

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
        self._headers[np.asarray(indices)[known]] = headers[known]


def merge_types(types: Iterable[str]) -> str:
    """The type of a field whose values are of some types: a number where all are numbers, else a text."""
    found = set(types)
    if len(found) == 1:
        return next(iter(found))
    return "float64" if found and found <= {"int64", "float64"} else "string"


def merge_schemas(schemas: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The fields of several data sets, each with the type that its values have in all of them."""
    found: dict[str, set[str]] = {}
    for schema in schemas:
        for name, kind in schema.items():
            found.setdefault(name, set()).add(kind)
    return {name: merge_types(kinds) for name, kinds in found.items()}

"""Views of a source: some of its samples, or all with some left out by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import fingerprint
from curator_dali.sources.base import EncodedBatch, Head, ShardRecord, Source, check_indices

if TYPE_CHECKING:
    import pyarrow as pa


class DerivedSource(Source):
    """A source whose samples lie in a whole; what is learnt of headers goes to the whole, and closing closes it.

    A `Mixture` is none: it forwards to several sources, to each the rows of a batch that are its own.
    """

    source: Source

    @property
    def has_known_ids(self) -> bool:
        """The whole's."""
        return self.source.has_known_ids

    @property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """The whole's."""
        return self.source.class_lists

    @property
    def arrow_fields(self) -> Mapping[str, Any] | None:
        """The whole's."""
        return self.source.arrow_fields

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples."""
        return self.source.headers(self._whole(indices))

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encoded bytes of samples' images; see `Source.image_sizes`."""
        return self.source.image_sizes(self._whole(indices))

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings of images; see `Source.read_heads`."""
        return self.source.read_heads(self._whole(indices), length)

    def learn(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Let the whole keep what was learnt."""
        self.source.learn(self._whole(indices), headers)

    @property
    def shard_records(self) -> Sequence[ShardRecord]:
        """The whole's."""
        return self.source.shard_records

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """Read ids of samples; see `Source.read_ids`."""
        return self.source.read_ids(self._whole(indices))

    def close(self) -> None:
        """Close the whole."""
        self.source.close()

    def _whole(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices of samples in the whole."""
        return indices


class Subset(DerivedSource):
    """Some samples of a source: their index here is their place among those chosen.

    What is learnt of headers goes to the whole source. Closing a subset closes the whole.

    Args:
        source: The whole.
        rows: A slice, sample indices of the whole (repeats allowed, negative ones not), or a boolean for each sample.

    Raises:
        IndexError: An index is outside of the source, or there are more or fewer booleans than samples.
        ValueError: `source` is no source, or `rows` are no whole numbers.
    """

    def __init__(self, source: Source, rows: slice | Iterable[int] | NDArray[Any]) -> None:
        if not isinstance(source, Source):
            raise ValueError(f"source is {source!r}; give a Source, as open_source() returns it")
        n = len(source)
        # a range takes no memory, however large the source is
        self._rows: range | NDArray[np.int64] = range(n)[rows] if isinstance(rows, slice) else _number_rows(rows, n)
        if isinstance(self._rows, np.ndarray):
            check_indices(self._rows, n)
        self.source, self.name, self.read_ahead = source, source.name, source.read_ahead

        if isinstance(self._rows, range) and source.origin is not None and self._rows.step > 0:
            self.origin = {"of": source.origin, "rows": [self._rows.start, self._rows.stop, self._rows.step]}

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """Of the whole's fingerprint and the samples chosen."""
        rows = self._rows
        chosen = repr(rows) if isinstance(rows, range) else hashlib.blake2b(rows.data, digest_size=8).digest()
        return fingerprint("subset", [self.source.fingerprint, chosen])

    @property
    def fields(self) -> Mapping[str, str] | None:
        """The whole's."""
        return self.source.fields

    @property
    def locations(self) -> Sequence[str]:
        """The whole's."""
        return self.source.locations

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """(S,) int64: runs of samples of one of the whole's shards."""
        ends = np.cumsum(self.source.shard_sizes)
        rows = self._rows
        if isinstance(rows, range) and rows.step == 1:
            bounds = np.clip(np.concatenate([[0], ends]), rows.start, rows.stop)
            sizes = np.diff(bounds)
            return sizes[sizes > 0].astype(np.int64) if len(rows) else np.zeros(1, np.int64)
        shard = np.searchsorted(ends, np.asarray(rows), "right")
        starts = np.flatnonzero(np.diff(shard, prepend=-1))
        return np.diff(np.append(starts, len(shard))).astype(np.int64) if len(shard) else np.zeros(1, np.int64)

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples; see `Source.read`."""
        batch = self.source.read(self._whole(indices), members=members)
        return replace(batch, indices=np.asarray(indices, np.int64))

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read samples, some of them without their images; see `Source.read_without`."""
        batch = self.source.read_without(self._whole(indices), skipped, members=members)
        return replace(batch, indices=np.asarray(indices, np.int64))

    def _whole(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        indices = check_indices(indices, len(self))
        rows = self._rows
        return rows.start + rows.step * indices if isinstance(rows, range) else rows[indices]


def _number_rows(rows: Iterable[int] | NDArray[Any], n: int) -> NDArray[np.int64]:
    """Sample indices, (M,) int64, of indices or of a mask over `n` samples."""
    found = np.asarray(list(rows) if isinstance(rows, (Iterator, Set)) else rows).reshape(-1)
    if found.dtype == bool:
        if len(found) != n:
            raise IndexError(f"rows are {len(found)} booleans for {n} samples: give one a sample, or sample indices")
        return np.flatnonzero(found)
    if len(found) and found.dtype.kind not in "iu":
        raise ValueError(f"rows is {rows!r}; allowed: a slice, sample indices (int), one boolean a sample")
    return found.astype(np.int64)


class SameSamples(DerivedSource):
    """The same samples in the same order as a whole; closing this closes the whole.

    Args:
        source: The whole.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.read_ahead = source, source.name, source.read_ahead

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """The whole's: the data set is the same."""
        return self.source.fingerprint

    @property
    def fields(self) -> Mapping[str, str] | None:
        """The whole's."""
        return self.source.fields

    @property
    def locations(self) -> Sequence[str]:
        """The whole's."""
        return self.source.locations

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """The whole's."""
        return self.source.shard_sizes

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples of the whole; see `Source.read`."""
        return self.source.read(indices, members=members)

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read samples of the whole, some of them without their images; see `Source.read_without`."""
        return self.source.read_without(indices, skipped, members=members)


class Without(SameSamples):
    """The same samples in the same order, some of which fail for a known reason before anybody decodes them.

    Args:
        source: The whole; closing this closes it.
        reasons: Sample index -> why it is left out.
    """

    def __init__(self, source: Source, reasons: Mapping[int, str]) -> None:
        super().__init__(source)
        self.reasons = dict(reasons)

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings of images; none of a sample that is left out, which `read` tells the reason of."""
        heads = self.source.read_heads(indices, length)
        return [
            None if index in self.reasons else head
            for index, head in zip(np.asarray(indices).tolist(), heads, strict=True)
        ]

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples; those that are left out come as errors, with no bytes."""
        return self._leave_out(super().read(indices, members=members))

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read samples, some of them without their images; see `Source.read_without`."""
        return self._leave_out(super().read_without(indices, skipped, members=members))

    def _leave_out(self, batch: EncodedBatch) -> EncodedBatch:
        for row, index in enumerate(batch.indices.tolist()):
            if index in self.reasons:
                batch.errors[row] = self.reasons[index]
                batch.unread.discard(row)
                batch.images[row] = np.empty(0, np.uint8)
        return batch

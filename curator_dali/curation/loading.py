"""A loader that reads ranges of a source one after the other, with no batch in two of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageBatch
from curator_dali.decoding import Decoded
from curator_dali.errors import ErrorList
from curator_dali.loader import ImageLoader
from curator_dali.sampling import Order, Shard
from curator_dali.transforms import Resize

__all__ = ["GLANCE", "PartLoader", "Range"]

GLANCE = (Resize((32, 32), "linear"),)
"""The view where no stage wants one: a sample is kept only if it decodes."""

Range = tuple[int, int]
"""Samples [start, stop) of a source."""


class PartsOrder(Order):
    """Ranges of samples in the order given.

    Every range begins a batch of its own, so that what comes out of it depends on nothing else: not on the ranges
    before it, nor on who does it.
    """

    def __init__(self, parts: Sequence[Range]) -> None:
        self.parts = list(parts)

    @property
    def num_samples(self) -> int:
        """Samples in all ranges."""
        return sum(stop - start for start, stop in self.parts)

    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Sample indices at positions."""
        starts, stops = (np.array(column, np.int64) for column in zip(*self.parts, strict=True))
        ends = np.cumsum(stops - starts, dtype=np.int64)
        part = np.searchsorted(ends, positions, "right")
        found: NDArray[np.int64] = stops[part] - (ends[part] - positions)
        return found

    def describe(self, epoch: int = 0) -> dict[str, Any]:
        """The ranges."""
        return {"parts": self.parts}

    def steps(
        self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Every range's batches; `start`, `shard` and `drop_last` are always those of a whole pass of one process."""
        done = 0
        for begin, stop in self.parts:
            for first in range(begin, stop, batch_size):
                last = min(first + batch_size, stop)
                done += last - first
                yield np.arange(first, last, dtype=np.int64), done


class PartLoader(ImageLoader):
    """An `ImageLoader` over parts of its source, with one decoder for all of them: see `over`.

    Attributes:
        refuse_unread: Whether a sample whose bytes cannot be read now ends the pass with a `SourceError`, instead of
            counting as a bad image.
    """

    max_errors = 0  # the steps tell them
    refuse_unread = False

    def over(self, parts: Sequence[Range]) -> Generator[tuple[Decoded, ImageBatch | None], None, None]:
        """Load ranges of the source, in order.

        Yields:
            Every step, and its batch: None where every image of it is bad. `columns["index"]` of a batch has the
            samples' indices in the source.
        """
        self._order = PartsOrder(parts)
        for decoded, batch in self.steps():
            if batch is not None:
                batch.columns["index"] = decoded.encoded.indices[decoded.rows]
            yield decoded, batch

    def _record(self, decoded: Decoded, errors: ErrorList) -> None:
        if self.refuse_unread:
            decoded.encoded.check_read()
        super()._record(decoded, errors)

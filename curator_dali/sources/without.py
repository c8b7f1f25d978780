"""A source of which some samples are known to be unusable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.sources.base import EncodedBatch, Source

__all__ = ["Without"]


class Without(Source):
    """The same samples in the same order, some of which fail for a known reason before anybody decodes them.

    Args:
        source: The whole; closing this closes it.
        reasons: Sample index -> why it is left out.
    """

    def __init__(self, source: Source, reasons: Mapping[int, str]) -> None:
        self.source, self.reasons = source, dict(reasons)
        self.name, self.read_ahead = source.name, source.read_ahead

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """The whole's: the data set is the same."""
        return self.source.fingerprint

    @property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """The whole's."""
        return self.source.class_lists

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """The whole's."""
        return self.source.shard_sizes

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples; those that are left out come as errors, with no bytes."""
        batch = self.source.read(indices, members=members)
        for row, index in enumerate(np.asarray(indices).tolist()):
            if index in self.reasons:
                batch.errors[row] = self.reasons[index]
                batch.unread.discard(row)
                batch.images[row] = np.empty(0, np.uint8)
        return batch

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples."""
        return self.source.headers(indices)

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encoded bytes of samples' images."""
        return self.source.image_sizes(indices)

    def learn(self, indices: NDArray[np.int64], headers: NDArray[Any]) -> None:
        """Let the whole keep what was learnt."""
        self.source.learn(indices, headers)

    def close(self) -> None:
        """Close the whole."""
        self.source.close()

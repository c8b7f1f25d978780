"""`StreamedTars`: the tars of a source by what is known of them, before all are indexed and after that."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import fingerprint, strip_query
from curator_dali.sampling import join_places, split_place
from curator_dali.sources.base import ReadAhead, Source
from curator_dali.sources.tar_index import Summary
from curator_dali.sources.tar_shards import Shards


class StreamedTars:
    """The tars of a source; see `Streamed`.

    Args:
        source: The source.
        shards: Its tars.
        find_starts: From an index and whether to wait, (K + 1,) int64: the first sample of each of the first K tars,
            and the number of samples in these.
    """

    def __init__(self, source: Source, shards: Shards, find_starts: Callable[[int, bool], NDArray[np.int64]]) -> None:
        self._source, self._shards, self._find_starts = source, shards, find_starts

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def is_complete(self) -> bool:
        """Whether all tars are counted."""
        return self._shards.is_complete

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(S,) int64, samples in each; waits until all are indexed."""
        return self._shards.sizes

    def is_known(self, number: int) -> bool:
        """Whether a tar is counted."""
        return self._shards.is_known(number)

    def count(self, number: int) -> int:
        """Count the samples of a tar; waits until it is indexed."""
        return self._shards.count(number)

    @property
    def fingerprint(self) -> str:
        """Of the tars' names, sizes, and content hashes or ETags, as their stores tell these."""
        pairs = zip(self._shards.urls, self._shards.stats, strict=True)
        facts = ((name_of(url), stat.size, stat.content or stat.etag) for url, stat in pairs)
        return fingerprint("listed-tar", facts)

    def read_ahead(self, numbers: Iterable[int]) -> ReadAhead | None:
        """Begin to read remote tars ahead; see `Streamed.read_ahead`."""
        return self._shards.stream(numbers)

    def by_place(self) -> Source:
        """The same samples by their places; see `Streamed.by_place`."""
        source = copy.copy(self._source)
        vars(source)["_locate"] = split_place
        return source

    def places_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of samples; see `Streamed.places_of`."""
        starts = self._find_starts(int(indices.max(initial=-1)), True)
        shards = np.searchsorted(starts, indices, "right") - 1
        return join_places(shards, indices - starts[shards])

    def indices_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of samples, as far as these are known; see `Streamed.indices_of`."""
        shards, samples = split_place(places)
        starts = self._find_starts(sys.maxsize, False)
        known = shards < len(starts)
        return np.where(known, starts[np.where(known, shards, 0)] + samples, -1)

    def count_to(self, count: int) -> int:
        """Count samples from the first on; see `Streamed.count_to`."""
        return min(count, int(self._find_starts(count - 1, True)[-1]))

    def index(self, numbers: Sequence[int]) -> Mapping[int, Summary]:
        """Index some tars; see `Streamed.index`."""
        self._shards.index_all(numbers)
        return self._shards.summaries(numbers)

    def adopt(self, found: Mapping[int, Summary]) -> None:
        """Take over what another process found; see `Streamed.adopt`."""
        self._shards.adopt(found)


def name_of(url: str) -> str:
    """The name of a tar, without folders and queries."""
    return strip_query(url).rpartition("/")[2]

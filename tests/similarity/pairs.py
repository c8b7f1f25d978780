"""All pairs of rows that a `Pairs` stands for, for comparing with brute force."""

from __future__ import annotations

import numpy as np

from curator_dali.similarity import MAX_PAIRS, Collector, Pairs, sort_by_label


def expand(pairs: Pairs, equal: float = 1.0) -> Pairs:
    """List every pair for all rows that are equal to its own, and pairs of equal rows; `equal` is their value."""
    assert pairs.same is not None
    count = len(pairs.same)
    rows, start = sort_by_label(np.arange(count), pairs.same, count)
    members = [rows[start[row] : start[row + 1]] for row in range(count)]
    found = Collector(MAX_PAIRS)
    for group in members:
        i, j = np.triu_indices(len(group), 1)
        found.add(group[i], group[j], np.full(len(i), equal, np.float32))
    for a, b, value in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.value.tolist(), strict=True):
        i, j = (grid.ravel() for grid in np.meshgrid(members[a], members[b], indexing="ij"))
        found.add(i, j, np.full(len(i), value, np.float32))
    return found.pairs()

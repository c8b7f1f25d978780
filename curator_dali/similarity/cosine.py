"""Cosine similarity by block products, exact: within rows, between rows, nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.pairs import Collector
from curator_dali.similarity.products import block_rows, candidates, collect, operand
from curator_dali.similarity.vectors import Progress, Vectors, as_vectors, blocks

__all__ = ["join", "join_self", "nearest", "same_rows"]

_NEAREST_BLOCK = 2**24  # cosines at once in `nearest`: 64 MB


def nearest(
    queries: Any, embeddings: Any, k: int, *, device: str | None = None, progress: Progress | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of `embeddings` with the highest cosine to each query, the highest first, of equal ones the first.

    Args:
        queries: (Q, D) floats.
        embeddings: (N, D) floats.
        k: At least 1; where it is above N there are N.
        device: As in `as_vectors`.
        progress: Called with rows done and rows in all.

    Returns:
        (Q, min(k, N)) int64 rows, and their cosines, float32.

    Raises:
        ValueError: k below 1, or as `as_vectors` does.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 neighbour is needed")
    right = as_vectors(embeddings, device=device)
    left = as_vectors(queries, device=device or right.device, name="queries", width=right.dim)
    k = min(k, len(right))
    rows = np.zeros((len(left), k), np.int64)
    cosines = np.zeros((len(left), k), np.float32)
    if not k:
        return rows, cosines
    for part in blocks(len(left), 1024):
        query, best = left.unit(part), None
        for block in blocks(len(right), max(k, _NEAREST_BLOCK // len(query))):
            best = _best(best, query @ right.unit(block).T, block.start, k)
            if progress:
                progress(part.start * len(right) + len(query) * block.stop, len(left) * len(right))
        assert best is not None
        rows[part], cosines[part] = best[0], np.minimum(best[1], 1.0)
    return rows, cosines


def _best(best: Any, products: Any, start: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of those so far and a block of products, equal ones by row."""
    import torch

    # all that reach the k-th, because topk chooses freely among equal ones
    least = products.topk(min(k, products.shape[1]), dim=1).values[:, -1:]
    hits = torch.nonzero(products >= least)
    query, row = (hits[:, n].cpu().numpy() for n in (0, 1))
    value = products[hits[:, 0], hits[:, 1]].cpu().numpy()
    row = row + start
    if best is not None:
        query = np.concatenate([np.repeat(np.arange(len(best[0])), k), query])
        row, value = np.concatenate([best[0].ravel(), row]), np.concatenate([best[1].ravel(), value])
    order = np.lexsort((row, -value, query))
    query, row, value = query[order], row[order], value[order]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    kept = place < k
    shape = (len(products), -1)
    return row[kept].reshape(shape), value[kept].reshape(shape)


def join_self(
    found: Collector,
    vectors: Vectors,
    rows: NDArray[np.int64],
    threshold: float,
    *,
    border: NDArray[np.int64] | None = None,
    progress: Progress | None = None,
) -> None:
    """Add all pairs among `rows`, and of one of `rows` with one of `border` (not among those), by these numbers."""
    step = block_rows(vectors.device)
    parts = [rows[block] for block in blocks(len(rows), step)]
    outer = [] if border is None else [border[block] for block in blocks(len(border), step)]
    total, done = len(parts) * (len(parts) + 1) // 2 + len(parts) * len(outer), 0
    for number, i in enumerate(parts):
        left = operand(vectors.unit(i))
        for other, j in enumerate([*parts[number:], *outer]):
            a, b = candidates(left, left if other == 0 else operand(vectors.unit(j)), threshold)
            if other == 0:
                a, b = a[a < b], b[a < b]
            collect(found, threshold, vectors, i[a], vectors, j[b])
            done += 1
            if progress:
                progress(done, total)


def join(
    found: Collector,
    left: Vectors,
    i: NDArray[np.int64],
    right: Vectors,
    j: NDArray[np.int64],
    threshold: float,
    progress: Progress | None = None,
) -> None:
    """Add all pairs of rows `i` of `left` and rows `j` of `right`, by those numbers."""
    step = block_rows(left.device)
    done = 0
    for b in blocks(len(j), step):
        columns = operand(right.unit(j[b]))
        for a in blocks(len(i), step):
            rows, hits = candidates(operand(left.unit(i[a])), columns, threshold)
            collect(found, threshold, left, i[a][rows], right, j[b][hits])
            done += 1
            if progress:
                progress(done, -(-len(i) // step) * -(-len(j) // step))


def same_rows(vectors: Vectors) -> NDArray[np.int64]:
    """(N,) int64: for every row the first row that is equal to it, bit for bit.

    Found by a 64-bit hash, confirmed by the values; of the rows that share a hash but are not equal, which does not
    happen by chance, each stands for itself.
    """
    import torch

    hashes = np.empty(len(vectors), np.int64)
    keys = None
    for block in blocks(len(vectors)):
        words = vectors.raw(block).contiguous().view(torch.int16)
        if keys is None:
            draw = np.random.default_rng(0).integers(-(2**63), 2**63, words.shape[1], np.int64) | 1
            keys = torch.from_numpy(draw).to(words.device)
        for part in blocks(len(words), 2048):  # as int64 they are four times as large
            sums = (words[part].to(torch.int64) * keys).sum(1)  # wraps, the same on every device
            hashes[block.start + part.start : block.start + part.stop] = sums.cpu().numpy()
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    same: NDArray[np.int64] = first[group].astype(np.int64)
    copies = np.flatnonzero(same != np.arange(len(same)))
    for part in blocks(len(copies)):
        rows = copies[part]
        equal = (vectors.raw(rows) == vectors.raw(same[rows])).all(1).cpu().numpy()
        same[rows[~equal]] = rows[~equal]
    return same

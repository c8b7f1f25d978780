"""Cosine similarity by block products, exact: within rows, between rows, nearest neighbours.

A fast product of blocks finds what may pass a threshold, an exact one decides. The fast product runs in bfloat16 where
the hardware multiplies it much faster: on tensor cores, and on a CPU by AMX (seven times float32 on a Xeon) or by
AVX-512's own instructions (five times on an EPYC of the fifth generation). Its error is bounded, not guessed: rounding
a factor to 8 bits costs at most 2^-8 of it, so the sum of products of two unit vectors is off by little more than 2^-7
(Cauchy-Schwarz), its rounded result by 2^-8 more, and the float32 sums of D products by D * 2^-23. Everything within
that of the threshold is looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.pairs import Collector, Vectors, as_vectors, blocks

if TYPE_CHECKING:
    import torch

_PAIRS_AT_ONCE = 16_384  # looked at again: 2 x 32 MB of rows of 512 float32
_UNSURE_COSINE = 2e-5  # float32 cosines this near the threshold are computed again in float64
_PADDED_ROWS = 128  # oneDNN makes a kernel for every shape that it has not seen
_COSINES_AT_ONCE = 2**24  # in `nearest`: 64 MB


def join_self(
    found: Collector,
    vectors: Vectors,
    rows: NDArray[np.int64],
    threshold: float,
    *,
    border: NDArray[np.int64] | None = None,
) -> None:
    """Add all pairs among `rows`, and of one of `rows` with one of `border` (not among those), by these numbers."""
    step = block_rows(vectors.device)
    parts = [rows[block] for block in blocks(len(rows), step)]
    outer = [] if border is None else [border[block] for block in blocks(len(border), step)]
    for number, i in enumerate(parts):
        left = operand(vectors.unit(i))
        for other, j in enumerate([*parts[number:], *outer]):
            a, b = candidates(left, left if other == 0 else operand(vectors.unit(j)), threshold)
            if other == 0:
                a, b = a[a < b], b[a < b]
            collect(found, threshold, vectors, i[a], vectors, j[b])


def join(
    found: Collector, left: Vectors, i: NDArray[np.int64], right: Vectors, j: NDArray[np.int64], threshold: float
) -> None:
    """Add all pairs of rows `i` of `left` and rows `j` of `right`, by those numbers."""
    step = block_rows(left.device)
    for b in blocks(len(j), step):
        columns = operand(right.unit(j[b]))
        for a in blocks(len(i), step):
            rows, hits = candidates(operand(left.unit(i[a])), columns, threshold)
            collect(found, threshold, left, i[a][rows], right, j[b][hits])


def nearest(
    queries: Any, embeddings: Any, k: int, *, device: str | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of `embeddings` with the highest cosine to each query, the highest first, of equal ones the first.

    Args:
        queries: (Q, D) floats.
        embeddings: (N, D) floats.
        k: At least 1; where it is above N there are N.
        device: As in `as_vectors`.

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
        for block in blocks(len(right), max(k, _COSINES_AT_ONCE // len(query))):
            best = _best(best, query @ right.unit(block).T, block.start, k)
        assert best is not None
        rows[part], cosines[part] = best[0], np.minimum(best[1], 1.0)
    return rows, cosines


def _best(best: Any, products: Any, start: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of those so far and a block of products, equal ones by row."""
    import torch

    # (Q, 1) the k-th best of each query; all that reach it, because topk chooses freely among equal ones
    least = products.topk(min(k, products.shape[1]), dim=1).values[:, -1:]
    hits = torch.nonzero(products >= least)
    # (H,) query, row and cosine of each hit, then also of the best so far
    query, row = (hits[:, n].cpu().numpy() for n in (0, 1))
    value = products[hits[:, 0], hits[:, 1]].cpu().numpy()
    row = row + start
    if best is not None:
        query = np.concatenate([np.repeat(np.arange(len(best[0])), k), query])
        row, value = np.concatenate([best[0].ravel(), row]), np.concatenate([best[1].ravel(), value])
    # by query, the highest cosine first, of equal ones the first row; (H,) the place of each hit in its query's list
    order = np.lexsort((row, -value, query))
    query, row, value = query[order], row[order], value[order]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    kept = place < k
    shape = (len(products), -1)
    return row[kept].reshape(shape), value[kept].reshape(shape)


def collect(
    found: Collector, threshold: float, left: Vectors, i: NDArray[np.int64], right: Vectors, j: NDArray[np.int64]
) -> None:
    """Add the pairs of rows i of `left` and j of `right` whose cosine is `threshold` or more, with their cosines.

    The cosine is that of the stored values, in float32 (within 1e-6), and in float64 where that decides.
    """
    import torch

    for block in blocks(len(i), _PAIRS_AT_ONCE):
        a, b = i[block], j[block]
        cosines = torch.einsum("nd,nd->n", left.unit(a), right.unit(b)).cpu().numpy()
        unsure = np.flatnonzero(np.abs(cosines - threshold) < _UNSURE_COSINE)
        for part in np.array_split(unsure, -(-len(unsure) // 4096) or 1):
            x, y = left.raw(a[part]).double(), right.raw(b[part]).double()
            exact = torch.nn.functional.cosine_similarity(x, y, eps=0.0).cpu().numpy()
            # float32 could round up to the threshold what lies below it
            cosines[part] = np.where(exact >= threshold, np.maximum(exact, threshold), -1.0)
        keep = cosines >= np.float32(threshold)
        keep[unsure] = cosines[unsure] > -1.0
        found.add(a[keep], b[keep], np.minimum(cosines[keep], np.float32(1.0)))


def block_rows(device: str) -> int:
    """Rows of a block whose product with another of its size fits the caches, or fills a GPU."""
    return 2048 if device == "cpu" else 16_384


@dataclass(frozen=True)
class Operand:
    """Unit rows made ready for `candidates`.

    Attributes:
        matrix: (M', D) in the dtype that is multiplied; rows from `count` on are zero.
        count: Rows that count.
    """

    matrix: torch.Tensor
    count: int


def operand(unit: torch.Tensor) -> Operand:
    """Unit rows (M, D), float32, as an operand. On a CPU it has few different shapes: a new one costs milliseconds."""
    import torch

    rows = unit.to(_fast_dtype(str(unit.device)))
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and len(rows) % _PADDED_ROWS:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _PADDED_ROWS))
    return Operand(rows, len(unit))


def candidates(a: Operand, b: Operand, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `a` and of `b`, one or more each, whose cosine may be `threshold` or more: some may be too many."""
    import torch

    product = (a.matrix @ b.matrix.T)[: a.count, : b.count]
    cut = threshold - _slack(a.matrix.dtype, a.matrix.device.type, a.matrix.shape[1])
    rows = torch.nonzero(product.amax(dim=1) >= cut)[:, 0]  # most rows have nothing: one cheap pass over those
    hits = torch.nonzero(product[rows] >= cut)
    return rows[hits[:, 0]].cpu().numpy(), hits[:, 1].cpu().numpy()


@cache
def _fast_dtype(device: str) -> torch.dtype:
    import torch

    if device == "cpu":
        # no public names say it (torch 2.13); without either bfloat16 is no faster than float32, or much slower
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = any(getattr(torch.cpu, name, lambda: False)() for name in names)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32


def _slack(dtype: torch.dtype, device: str, dim: int) -> float:
    """How far below the exact cosine the fast product of two unit vectors can lie."""
    import torch

    bits = {torch.bfloat16: 2**-7 + 2**-16 + 2**-8}.get(dtype, 2**-22)
    if device != "cpu":
        how = torch.backends.cuda.matmul
        if dtype == torch.bfloat16 and how.allow_bf16_reduced_precision_reduction:
            bits += 2**-6  # torch's default: what is split along D is added up in bfloat16
        if dtype == torch.float32 and how.allow_tf32:
            bits = 2**-10 + 2**-20  # TF32 keeps 11 bits of a factor; somebody switched it on
    return bits + dim * 2**-23


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

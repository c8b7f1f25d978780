"""Blocks of cosines: a fast product finds what may pass a threshold, an exact one decides.

The fast product runs in bfloat16 where the hardware multiplies it much faster (tensor cores; AMX on a CPU: seven times
float32 on the Xeon this was measured on). Its error is bounded, not guessed: rounding a factor to 8 bits costs at most
2^-8 of it, so the sum of products of two unit vectors is off by little more than 2^-7 (Cauchy-Schwarz), its rounded
result by 2^-8 more, and the float32 sums of D products by D * 2^-23. Everything within that of the threshold is looked
at again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.pairs import Collector
from curator_dali.similarity.vectors import Vectors

if TYPE_CHECKING:
    import torch

__all__ = ["Operand", "block_rows", "candidates", "collect", "operand"]

_EXACT_AT_ONCE = 16_384  # pairs looked at again at once: 2 x 32 MB of rows of 512 float32
_PAD = 128  # rows; oneDNN makes a kernel for every shape that it has not seen
_NEAR = 2e-5  # float32 cosines this near the threshold are computed again in float64


@cache
def _fast_dtype(device: str) -> torch.dtype:
    import torch

    if device == "cpu":
        # no public name says it (torch 2.13); without AMX bfloat16 is no faster than float32, or much slower
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        return torch.bfloat16 if amx else torch.float32
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
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and len(rows) % _PAD:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _PAD))
    return Operand(rows, len(unit))


def candidates(a: Operand, b: Operand, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `a` and of `b` whose cosine may be `threshold` or more: none is missing, some may be too many."""
    import torch

    product = (a.matrix @ b.matrix.T)[: a.count, : b.count]
    if not product.numel():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    cut = threshold - _slack(a.matrix.dtype, a.matrix.device.type, a.matrix.shape[1])
    rows = torch.nonzero(product.amax(dim=1) >= cut)[:, 0]  # most rows have nothing: one cheap pass over those
    hits = torch.nonzero(product[rows] >= cut)
    return rows[hits[:, 0]].cpu().numpy(), hits[:, 1].cpu().numpy()


def collect(
    found: Collector,
    threshold: float,
    left: Vectors,
    i: NDArray[np.int64],
    right: Vectors,
    j: NDArray[np.int64],
) -> None:
    """Add the pairs of rows i of `left` and j of `right` whose cosine is `threshold` or more, with their cosines.

    The cosine is that of the stored values, in float32 (within 1e-6), and in float64 where that decides.
    """
    import torch

    for start in range(0, len(i), _EXACT_AT_ONCE):
        a, b = i[start : start + _EXACT_AT_ONCE], j[start : start + _EXACT_AT_ONCE]
        cosines = torch.einsum("nd,nd->n", left.unit(a), right.unit(b)).cpu().numpy()
        unsure = np.flatnonzero(np.abs(cosines - threshold) < _NEAR)
        for part in np.array_split(unsure, -(-len(unsure) // 4096) or 1):
            x, y = left.raw(a[part]).double(), right.raw(b[part]).double()
            exact = torch.nn.functional.cosine_similarity(x, y, eps=0.0).cpu().numpy()
            # float32 could round up to the threshold what lies below it
            cosines[part] = np.where(exact >= threshold, np.maximum(exact, threshold), -1.0)
        keep = cosines >= np.float32(threshold)
        keep[unsure] = cosines[unsure] > -1.0
        found.add(a[keep], b[keep], np.minimum(cosines[keep], np.float32(1.0)))

"""Pairs of rows that are alike, a collector that bounds their number, and embeddings as unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import device_of, resolve_device
from curator_dali.errors import CuratorDaliError
from curator_dali.threads import import_whole

if TYPE_CHECKING:
    import torch

MAX_PAIRS = 50_000_000
"""Pairs that a search may find unless told otherwise: 1 GB, and three times that while they are sorted."""

Progress = Callable[[int, int], object]
"""Called now and then with (done, all) units of work."""

_Row = TypeVar("_Row", bound=np.integer[Any])

_BLOCK_ROWS = 16_384  # rows read at once where all are passed over: 32 MB at 512 float32
_LEAST_NORM, _MOST_NORM = 1e-15, 1e15  # norms whose squares float32 can add up


class TooManyPairs(CuratorDaliError, ValueError):
    """So many pairs are alike that listing them would fill the memory."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows that are alike, ascending by (first, second), none twice.

    Equal rows would make pairs by the square of their number, so within one set only the first of them, their
    representative, appears in pairs.

    Attributes:
        first: (P,) int64 row numbers. Within one set less than `second`; between two sets rows of the first.
        second: (P,) int64 row numbers; between two sets rows of the second.
        value: (P,) float32: the cosine, or the Hamming distance.
        same: Within one set (N,) int64, every row's representative: the first row equal to it, often itself.
            Between two sets None.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    value: NDArray[np.float32]
    same: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.first)


@dataclass
class Collector:
    """Takes the pairs of a search, block by block, in any order and more than once.

    Args:
        max_pairs: How many different ones there may be.
        within: Whether both rows are of one set: then the lower one becomes the first.

    Raises:
        TooManyPairs: From `add`, past `max_pairs`, before the memory is full.
    """

    max_pairs: int
    within: bool = True
    _parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=list)
    _held: int = 0

    def add(self, first: NDArray[np.int64], second: NDArray[np.int64], value: NDArray[np.float32]) -> None:
        """Add pairs."""
        if not len(first):
            return
        if self.within:
            first, second = np.minimum(first, second), np.maximum(first, second)
        self._parts.append((first, second, value))
        self._held += len(first)
        if self._held > self.max_pairs:
            self._parts = [self._merged()]  # what was found twice counts once
            self._held = len(self._parts[0][0])
            if self._held > self.max_pairs:
                rows, counts = np.unique(np.concatenate(self._parts[0][:2]), return_counts=True)
                raise TooManyPairs(
                    f"more than {self.max_pairs:,} pairs are this alike (row {rows[counts.argmax()]} alone is in "
                    f"{counts.max():,} of those found so far): raise the threshold, take exact duplicates out first, "
                    "or allow more with max_pairs (20 bytes each, three times that for a while)"
                )

    def pairs(self, same: NDArray[np.int64] | None = None) -> Pairs:
        """Return all pairs, sorted, once each."""
        return Pairs(*self._merged(), same)

    def _merged(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        first, second, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        # of a pair that was found twice, with cosines that differ in their last bit, the same one in whatever order
        order = np.lexsort((-value, second, first))
        first, second, value = first[order], second[order], value[order]
        new = np.ones(len(first), bool)
        new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        return (first, second, value) if new.all() else (first[new], second[new], value[new])


@dataclass(frozen=True)
class Vectors:
    """Rows of embeddings that are known to be good. Nothing is copied until a block is read.

    Attributes:
        data: (N, D) of floats: numpy (a mapped file too) or torch.
        device: Where blocks are put, "cpu" or "cuda:N".
        rows: None, or (M,) int64: which rows of `data` these are.
    """

    data: Any
    device: str
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.data) if self.rows is None else len(self.rows)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.data.shape[1])

    def raw(self, rows: slice | NDArray[np.int64]) -> torch.Tensor:
        """Some rows as they are stored: (M, D) on the device, in memory of its own where `data` is numpy."""
        import torch

        if self.rows is not None:
            rows = self.rows[rows]
        if isinstance(self.data, torch.Tensor):
            index = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.data.device)
            return self.data[index].to(self.device)
        return torch.from_numpy(np.array(self.data[rows])).to(self.device)

    def unit(self, rows: slice | NDArray[np.int64]) -> torch.Tensor:
        """Some rows scaled to length 1: (M, D) float32 on the device."""
        import torch

        return torch.nn.functional.normalize(self.raw(rows).to(torch.float32), eps=0.0)

    def subset(self, rows: NDArray[np.int64]) -> Vectors:
        """Some of these rows, by their numbers here."""
        return Vectors(self.data, self.device, rows if self.rows is None else self.rows[rows])


@dataclass(frozen=True)
class Picked(Vectors):
    """Some rows of a set that is elsewhere, by their numbers in it: the others cannot be read.

    Attributes:
        numbers: (M,) int64, ascending: which rows of the set `data` has.
        count: Rows of the set.
    """

    numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    count: int = 0

    def __len__(self) -> int:
        return self.count

    def raw(self, rows: slice | NDArray[np.int64]) -> torch.Tensor:
        """Picked rows, as they are stored: (M, D) on the device."""
        wanted = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return Vectors(self.data, self.device).raw(np.searchsorted(self.numbers, wanted))


def blocks(count: int, size: int = _BLOCK_ROWS) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..count-1."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def sort_by_label(
    rows: NDArray[_Row], labels: NDArray[np.integer[Any]], count: int
) -> tuple[NDArray[_Row], NDArray[np.int64]]:
    """Sort rows by their labels, 0 to `count` - 1, and stably; (count + 1,) where the rows of each label begin."""
    order = np.argsort(labels, kind="stable")
    return rows[order], np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=count))])


def as_vectors(
    embeddings: Any, *, device: str | None = None, name: str = "embeddings", width: int | None = None
) -> Vectors:
    """Check embeddings, once over all rows, before any work is done with them.

    Args:
        embeddings: (N, D) floats; numpy, a mapped file, CuPy, or torch. Length 1 is not needed.
        device: Where to compute ("cpu", "cuda", "cuda:N", "auto"); None: where the embeddings lie.
        name: Their name in errors.
        width: The D that is wanted, if one is.

    Raises:
        ValueError: Not two-dimensional, not floats, another width, or rows that have no direction: NaN, infinite,
            zero. `bad_rows` finds these beforehand.
    """
    vectors = _open(embeddings, device, name)
    if width is not None and vectors.dim != width:
        raise ValueError(
            f"{name} have {vectors.dim} columns, where {width} are needed: they are of another model; embed one of the "
            "two sets again"
        )
    reasons = _reasons(vectors)
    for reason, rows in reasons.items():
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise ValueError(
            f"{name}: {len(rows)} of {len(vectors)} rows {reason} (row {shown}); leave them out, see "
            "curator_dali.similarity.bad_rows"
        )
    return vectors


def bad_rows(embeddings: Any) -> NDArray[np.int64]:
    """Numbers of the rows of (N, D) floats that no cosine is defined for, ascending: NaN, infinite, zero, too long.

    Raises:
        ValueError: Not two-dimensional, or not floats.
    """
    found = _reasons(_open(embeddings, None, "embeddings")).values()
    return np.sort(np.concatenate([*found, np.empty(0, np.int64)]))


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless a cosine can be asked for: above 0, at most 1."""
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold!r}; a cosine above 0 and at most 1 is needed, for example 0.95")


def _open(embeddings: Any, device: str | None, name: str) -> Vectors:
    import_whole("torch")
    import torch
    import torch.utils.dlpack

    data = embeddings
    if not isinstance(data, (np.ndarray, torch.Tensor)):
        data = torch.utils.dlpack.from_dlpack(data) if hasattr(data, "__dlpack__") else np.asarray(data)
    where = device_of(data) if device is None else resolve_device(device)
    if data.ndim != 2 or not data.shape[1]:
        raise ValueError(f"{name} have the shape {tuple(data.shape)}; (rows, columns) are needed, one row an image")
    floats = data.dtype.is_floating_point if isinstance(data, torch.Tensor) else data.dtype.kind == "f"
    if not floats:
        raise ValueError(f"{name} are {data.dtype}; float16, float32 or float64 are needed")
    return Vectors(data, where)


def _reasons(vectors: Vectors) -> dict[str, NDArray[np.int64]]:
    """Reason -> rows, of those that are of no use."""
    import torch

    found: dict[str, list[NDArray[np.int64]]] = {}
    for block in blocks(len(vectors)):
        rows = vectors.raw(block).to(torch.float32)
        norms = rows.norm(dim=1)
        good = (norms > _LEAST_NORM) & (norms < _MOST_NORM)  # false for NaN
        if good.all():
            continue
        finite = rows.isfinite().all(1)
        for reason, mask in (
            ("hold NaN or infinite values", ~finite),
            ("are zero", finite & (rows == 0).all(1)),
            ("have a length that float32 cannot square", finite & ~good & (rows != 0).any(1)),
        ):
            if mask.any():
                found.setdefault(reason, []).append(torch.nonzero(mask)[:, 0].cpu().numpy() + block.start)
    return {reason: np.concatenate(rows) for reason, rows in found.items()}

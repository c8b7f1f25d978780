"""Histograms of values that come a block at a time, and whose range nobody knows before the last one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "Sketch"]

_DROPPED_BITS = 13  # of a float32's 23 of the fraction: what is left tells values apart that differ by 0.1%
_TAIL = 0.005  # of the values at either end may be gathered in the outermost bar
_FAR = 4  # times the values' range: a bound beyond that would leave no picture of the values
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width at round numbers.

    Attributes:
        counts: B numbers.
        edges: B + 1 values.
        below: Values that lie below the first edge, and count in the first bar.
        above: Values that lie above the last edge, and count in the last bar.
        total: Values in all.
    """

    counts: list[int]
    edges: list[float]
    below: int
    above: int
    total: int


class Sketch:
    """How often every value was seen, to 0.1%: 4 MB, whatever the number of values and their range.

    A value counts in the bin of the sign, the exponent and the first ten bits of the fraction that it has as float32;
    neither the order nor the blocks in which values come matter.
    """

    def __init__(self) -> None:
        self._bins = np.zeros(1 << (32 - _DROPPED_BITS), np.int64)
        self.infinite = 0

    def add(self, values: NDArray[np.floating]) -> None:
        """Count (N,) values; NaN is none, infinite ones are counted apart."""
        finite = values[np.isfinite(values)]
        self.infinite += int(np.isinf(values).sum())
        limit = np.finfo(np.float32).max
        bits = (np.clip(finite, -limit, limit).astype(np.float32) + np.float32(0)).view(np.uint32)  # no -0.0
        self._bins += np.bincount(bits >> _DROPPED_BITS, minlength=len(self._bins))

    def __len__(self) -> int:
        return int(self._bins.sum())

    def histogram(self, bounds: tuple[float | None, float | None] = (None, None), bars: int = 40) -> Histogram | None:
        """Bars from the smallest to the largest value, or nearly: far outliers would leave one bar for all others.

        Args:
            bounds: Values to be on the axis, unless they are far from all others; the first begins a bar.
            bars: About how many, 20 at the least.

        Returns:
            None if there is no value.
        """
        used = np.flatnonzero(self._bins)
        if not len(used):
            return None
        values = (used.astype(np.uint32) << np.uint32(_DROPPED_BITS)).view(np.float32).astype(np.float64)
        order = np.argsort(values)
        values, counts = values[order], self._bins[used][order]
        total = int(counts.sum())
        low, high = _range(values, counts, [bound for bound in bounds if bound is not None])
        step = _step((high - low) / bars)
        anchor = next((bound for bound in bounds if bound is not None and low <= bound <= high), 0.0)
        first, last = math.floor((low - anchor) / step + 1e-9), math.ceil((high - anchor) / step - 1e-9)
        if anchor + last * step <= high:  # the largest value is within the last bar
            last += 1
        digits = 3 - math.floor(math.log10(step))
        edges = [round(anchor + number * step, digits) for number in range(first, last + 1)]
        place = np.floor((values - edges[0]) / step + 1e-9).astype(np.int64)
        held = np.bincount(np.clip(place, 0, len(edges) - 2), counts, minlength=len(edges) - 1).astype(np.int64)
        below, above = int(counts[place < 0].sum()), int(counts[place > len(edges) - 2].sum())
        return Histogram(held.tolist(), edges, below, above, total)


def _range(values: NDArray[np.float64], counts: NDArray[np.int64], bounds: list[float]) -> tuple[float, float]:
    """The ends of the axis: of all values, or of nearly all where the others would make it half as long again."""
    seen = np.cumsum(counts)
    low, high = (float(values[np.searchsorted(seen, share * seen[-1])]) for share in (_TAIL, 1 - _TAIL))
    span = (high - low) or abs(low) * 0.1 or 1.0
    near = [bound for bound in bounds if low - _FAR * span <= bound <= high + _FAR * span]
    low, high = min(low, *near, low), max(high, *near, high)
    low = min(low, float(values[0])) if values[0] >= low - span / 4 else low
    high = max(high, float(values[-1])) if values[-1] <= high + span / 4 else high
    return (low, high) if high > low else (low - span / 2, high + span / 2)


def _step(width: float) -> float:
    """The next round number: 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in _STEPS if step * power >= width * (1 - 1e-9))

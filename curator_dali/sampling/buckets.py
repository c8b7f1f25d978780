"""`Buckets`: sizes that images are brought to, so that batches are uniform with little waste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Limits, checked

__all__ = ["UNKNOWN", "Buckets"]

UNKNOWN = 255
"""Stands for the bucket of an image whose size is not known. A sample's bucket is one byte."""


@checked
@dataclass(frozen=True)
class Buckets:
    """Sizes that images are brought to, each to the one nearest in shape.

    An image goes to the bucket whose log(width / height) is nearest to its own (the first of equals), is scaled to
    cover it and cut to it around its centre.

    Args:
        sizes: (height, width) in pixels of each bucket.
    """

    sizes: Sequence[tuple[int, int]]
    _logs: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for size in self.sizes:
            pair = isinstance(size, (tuple, list)) and len(size) == 2
            if not (pair and all(isinstance(n, (int, np.integer)) and n > 0 and n is not True for n in size)):
                raise ValueError(f"Buckets: {size!r} is no size; give (height, width) in pixels, as (512, 768)")
        sizes = tuple((int(height), int(width)) for height, width in self.sizes)
        if not 0 < len(set(sizes)) == len(sizes) <= UNKNOWN:
            raise ValueError(f"Buckets needs 1 to {UNKNOWN} different sizes, not {list(sizes)}")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "_logs", tuple(float(np.log(width / height)) for height, width in sizes))

    @classmethod
    @checked
    def from_ratios(
        cls,
        ratios: Sequence[float],
        *,
        pixels: Annotated[float, Limits("a number of at least 1", 1)],
        multiple: Count = 1,
    ) -> Buckets:
        """Buckets of about the same number of pixels.

        Args:
            ratios: Width over height of each.
            pixels: Height times width that each comes near to.
            multiple: Both are rounded to a multiple of this, in pixels; 64 is usual for latent diffusion.
        """
        given: list[Any] = list(ratios)
        wrong = [ratio for ratio in given if not (isinstance(ratio, Real) and 0 < float(ratio) < float("inf"))]
        if wrong:
            raise ValueError(f"ratios has {wrong[0]!r}; give positive numbers, width over height, as 4 / 3")

        def rounded(length: float) -> int:
            return max(1, round(length / multiple)) * multiple

        sizes = [(rounded((pixels / ratio) ** 0.5), rounded((pixels * ratio) ** 0.5)) for ratio in ratios]
        return cls(tuple(dict.fromkeys(sizes)))

    def assign(self, sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The bucket of each image.

        Args:
            sizes: (N, 2) (height, width) of upright images in pixels; a height of 0 means unknown.

        Returns:
            (N,) uint8 numbers of buckets; 255 where the size is unknown.
        """
        known = (sizes > 0).all(axis=1)
        found = np.full(len(sizes), UNKNOWN, np.uint8)
        logs = np.log(sizes[known, 1] / sizes[known, 0])
        found[known] = np.abs(logs[:, None] - np.array(self._logs)).argmin(axis=1)
        return found

"""Random crops and flips: what nearly every training sequence begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Probability, Size, checked
from curator_dali.transforms.base import Crop, RandomTransform, check_range, pair
from curator_dali.transforms.geometry import Interpolation, filter_arguments

__all__ = ["HorizontalFlip", "RandomResizedCrop"]

_ATTEMPTS = 10  # as torchvision's and DALI's own


@checked
@dataclass(frozen=True)
class RandomResizedCrop(Crop):
    """Cut out a window of random area and aspect ratio, and scale it to one size.

    The window is chosen as torchvision's `RandomResizedCrop` chooses it (Szegedy et al. 2015): ten attempts of
    area ~ U(scale), log(ratio) ~ U(log(ratio)), the first that fits at a uniform place; else the largest central
    window of an allowed ratio. Differs from torchvision's by the random numbers, and by DALI's one-pass antialiased
    resize (Pillow rounds to uint8 between two passes): 1/255 apart, more only along the border.

    On the CPU, in first place of every output of a loader, only the window is decoded: the same pixels, sooner.

    Args:
        size: Side, or (height, width), of what comes out.
        scale: Range of the window's area, as a share of the image's.
        ratio: Range of the window's width / height.
        interpolation: "linear" (default), "cubic", "nearest" or "lanczos".
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 2 * _ATTEMPTS + 2

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "linear"

    def __post_init__(self) -> None:
        check_range(self.scale, "RandomResizedCrop.scale")
        check_range(self.ratio, "RandomResizedCrop.ratio")

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        heights, widths = np.ascontiguousarray(sizes.T)
        low, high = np.log(self.ratio)
        areas = (self.scale[0] + (self.scale[1] - self.scale[0]) * uniforms[:_ATTEMPTS]) * (heights * widths)
        ratios = np.exp(low + (high - low) * uniforms[_ATTEMPTS : 2 * _ATTEMPTS])
        wide = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
        tall = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
        fits = (wide > 0) & (wide <= widths) & (tall > 0) & (tall <= heights)
        first, column = fits.argmax(axis=0), np.arange(len(sizes))
        found = fits[first, column]
        least, most = self.ratio
        whole = widths / heights
        width = np.where(whole > most, np.rint(heights * most).astype(np.int64), widths)
        height = np.where(whole < least, np.rint(widths / least).astype(np.int64), heights)
        height = np.where(found, tall[first, column], np.clip(height, 1, heights))
        width = np.where(found, wide[first, column], np.clip(width, 1, widths))
        top = (uniforms[-2] * (heights - height + 1)).astype(np.int64)
        left = (uniforms[-1] * (widths - width + 1)).astype(np.int64)
        top = np.where(found, top, (heights - height) // 2)
        left = np.where(found, left, (widths - width) // 2)
        return {
            "start": np.stack([top, left], axis=1).astype(np.int32),
            "shape": np.stack([height, width], axis=1).astype(np.int32),
        }

    def lower_cut(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn

        height, width = pair(self.size)
        return fn.resize(images, resize_x=float(width), resize_y=float(height), **filter_arguments(self.interpolation))

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        return pair(self.size)


@checked
@dataclass(frozen=True)
class HorizontalFlip(RandomTransform):
    """Mirror left and right with probability `p`, as torchvision's `RandomHorizontalFlip`.

    Directly before `Normalize` it costs no pass over the pixels of its own.

    Args:
        p: Probability.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 1

    p: Probability = 0.5

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        return {"mirror": (uniforms[0] < self.p).astype(np.int32)}

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        from nvidia.dali import fn

        return fn.flip(images, horizontal=parameters["mirror"])

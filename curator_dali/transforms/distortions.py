"""Random blur, rotation and erasing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Level, Probability, checked
from curator_dali.transforms.base import RandomTransform, check_range
from curator_dali.transforms.branching import lower_some, some

__all__ = ["GaussianBlur", "RandomErasing", "Rotate"]

_ATTEMPTS = 10  # as torchvision's


@checked
@dataclass(frozen=True)
class GaussianBlur(RandomTransform):
    """Blur with a Gaussian of random width; the border is reflected.

    Equals torchvision's `GaussianBlur` of the same `kernel_size` and sigma within 1/255. By default the kernel reaches
    three sigmas to each side, which leaves out less than 0.3% of its weight and is faster than a fixed large one.

    Args:
        sigma: (lowest, highest) of sigma ~ U, in pixels; a number is always that one.
        kernel_size: None, or an odd number of pixels.
        p: Probability that anything is done, as in torchvision's `RandomApply([GaussianBlur(...)], p)`.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 2

    sigma: float | tuple[float, float] = (0.1, 2.0)
    kernel_size: Count | None = None
    p: Probability = 1.0

    def __post_init__(self) -> None:
        check_range(self._sigmas, "GaussianBlur.sigma")
        if self.kernel_size is not None and self.kernel_size % 2 == 0:
            raise ValueError(f"GaussianBlur.kernel_size is {self.kernel_size!r}; give None or an odd positive number")

    @property
    def _sigmas(self) -> tuple[float, float]:
        return (self.sigma, self.sigma) if isinstance(self.sigma, (int, float)) else self.sigma

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        low, high = self._sigmas
        sigma = low + (high - low) * uniforms[0]
        size = 2 * np.ceil(3 * sigma) + 1 if self.kernel_size is None else np.full(len(sigma), self.kernel_size)
        how = {"sigma": sigma.astype(np.float32), "window_size": size.astype(np.int32)}
        return how | some(uniforms[1], self.p)

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        from nvidia.dali import fn

        def blur(images: Any, parameters: Mapping[str, Any]) -> Any:
            return fn.gaussian_blur(images, **parameters)

        return lower_some(images, blur, parameters)


@checked
@dataclass(frozen=True)
class Rotate(RandomTransform):
    """Turn about the centre by a random angle; the size stays, and corners are cut off.

    As torchvision's `RandomRotation`, whose default is "nearest"; "linear" is the better-looking default here.

    Args:
        degrees: (lowest, highest) of the angle ~ U, counter-clockwise; a number d is (-d, d).
        interpolation: "linear" or "nearest".
        fill: Value of the new corners, 0 to 255.
        p: Probability that anything is done.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 2

    degrees: float | tuple[float, float]
    interpolation: Literal["linear", "nearest"] = "linear"
    fill: Level = 0
    p: Probability = 1.0

    def __post_init__(self) -> None:
        low, high = self._range
        if not -360 <= low <= high <= 360:
            raise ValueError(f"Rotate.degrees is {self.degrees!r}; give a positive number or (lowest, highest), to 360")

    @property
    def _range(self) -> tuple[float, float]:
        return (-self.degrees, self.degrees) if isinstance(self.degrees, (int, float)) else self.degrees

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        low, high = self._range
        angle = low + (high - low) * uniforms[0]
        return {"angle": angle.astype(np.float32)} | some(uniforms[1], self.p)

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        kernel = types.INTERP_LINEAR if self.interpolation == "linear" else types.INTERP_NN

        def turn(images: Any, parameters: Mapping[str, Any]) -> Any:
            return fn.rotate(
                images, angle=parameters["angle"], keep_size=True, fill_value=float(self.fill), interp_type=kernel
            )

        return lower_some(images, turn, parameters)


@checked
@dataclass(frozen=True)
class RandomErasing(RandomTransform):
    """Overwrite a random rectangle with one value (Zhong et al. 2017), before or behind `Normalize`.

    The rectangle is chosen as torchvision's `RandomErasing` chooses it: ten attempts of area ~ U(scale) and ratio ~
    U(log) in `ratio`, the first that is smaller than the image at a uniform place; if none is, nothing is erased.
    torchvision's fills with random numbers have no counterpart.

    Args:
        p: Probability.
        scale: Range of the rectangle's area, as a share of the image's.
        ratio: Range of the rectangle's height / width.
        value: In the units of what comes in: 0 to 255 before `Normalize`; behind it, 0 is the mean colour.
        stream: See `RandomTransform`.
    """

    takes_floats: ClassVar[bool] = True
    draws: ClassVar[int] = 2 * _ATTEMPTS + 3

    p: Probability = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.0

    def __post_init__(self) -> None:
        check_range(self.scale, "RandomErasing.scale")
        check_range(self.ratio, "RandomErasing.ratio")

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        heights, widths = np.ascontiguousarray(sizes.T)
        low, high = np.log(self.ratio)
        areas = (self.scale[0] + (self.scale[1] - self.scale[0]) * uniforms[:_ATTEMPTS]) * (heights * widths)
        ratios = np.exp(low + (high - low) * uniforms[_ATTEMPTS : 2 * _ATTEMPTS])
        tall = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
        wide = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
        fits = (tall < heights) & (wide < widths)
        first, column = fits.argmax(axis=0), np.arange(len(sizes))
        erased = fits[first, column] & (uniforms[-1] < self.p)
        height, width = tall[first, column] * erased, wide[first, column] * erased
        top = (uniforms[-3] * (heights - height + 1)).astype(np.int64)
        left = (uniforms[-2] * (widths - width + 1)).astype(np.int64)
        return {
            "anchor": np.stack([top, left], axis=1).astype(np.float32),
            "shape": np.stack([height, width], axis=1).astype(np.float32),
        }

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        from nvidia.dali import fn

        return fn.erase(
            images,
            anchor=parameters["anchor"],
            shape=parameters["shape"],
            axis_names="HW",
            fill_value=float(self.value),
            normalized=False,
        )

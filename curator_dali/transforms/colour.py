"""Changes of colour: jitter, grey, normalisation; and random blur, rotation and erasing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Level, Probability, checked
from curator_dali.transforms.base import ATTEMPTS, RandomTransform, Transform, check_range, draw_sides, lower_some, some

Matrices = NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601), as Pillow's "L" has them."""
_TO_GREY = np.broadcast_to(LUMA, (3, 3))
# FCC NTSC; the first row is LUMA
_RGB_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Means of CLIP's training set (Radford et al. 2021), in units of 0..1, as in OpenAI's preprocessing."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Means of ImageNet's training set, in units of 0..1, as torchvision's and most other weights expect them."""
IMAGENET_STD = (0.229, 0.224, 0.225)


@checked
@dataclass(frozen=True)
class ColorJitter(RandomTransform):
    """Change brightness, contrast, saturation and hue by random factors, in a random order.

    The ranges, the order and each step's meaning are torchvision's `ColorJitter`'s: contrast is about the mean grey of
    the image as it is at that step. Two things differ: colours are cut off at 0 and 255 once at the end, not behind
    each step, and hue turns colours in YIQ (which keeps their luma) instead of HSV. One step of the three others
    equals torchvision's within 1/255.

    Args:
        brightness: b means a factor ~ U(max(0, 1 - b), 1 + b); (lowest, highest) gives the range itself.
        contrast: As brightness.
        saturation: As brightness; 0 is grey.
        hue: h means an angle ~ U(-h, h) in turns, at most 0.5; or (lowest, highest).
        p: Probability that anything is done, as in torchvision's `RandomApply([ColorJitter(...)], p)`.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 9

    brightness: float | tuple[float, float] = 0.0
    contrast: float | tuple[float, float] = 0.0
    saturation: float | tuple[float, float] = 0.0
    hue: float | tuple[float, float] = 0.0
    p: Probability = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            low, high = _factors(getattr(self, name))
            if not 0 <= low <= high:
                raise ValueError(
                    f"ColorJitter.{name} is {getattr(self, name)!r}; give a number of at least 0, or (lowest, highest)"
                )
        low, high = _angles(self.hue)
        if not -0.5 <= low <= high <= 0.5:
            raise ValueError(f"ColorJitter.hue is {self.hue!r}; give a number from 0 to 0.5, or a range in -0.5 to 0.5")

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        n = uniforms.shape[1]
        ranges = [_factors(self.brightness), _factors(self.contrast), _factors(self.saturation), _angles(self.hue)]
        brightness, contrast, saturation, hue = (
            low + (high - low) * drawn for (low, high), drawn in zip(ranges, uniforms[:4], strict=True)
        )
        steps = np.zeros((4, n, 3, 3))
        steps[0] = brightness[:, None, None] * np.eye(3)
        steps[1] = contrast[:, None, None] * np.eye(3)
        steps[2] = saturation_matrices(saturation)
        steps[3] = _hue_matrices(hue)
        about_mean = np.zeros((4, n, 3, 3))  # what a step adds for the mean colour
        about_mean[1] = (1 - contrast)[:, None, None] * _TO_GREY
        order = np.argsort(uniforms[4:8], axis=0)
        samples = np.arange(n)
        matrix, offset = np.broadcast_to(np.eye(3), (n, 3, 3)), np.zeros((n, 3, 3))
        for which in order:
            step, added = steps[which, samples], about_mean[which, samples]
            matrix, offset = step @ matrix, step @ offset + added @ (matrix + offset)
        change = {"matrix": matrix.astype(np.float32), "offset": offset.astype(np.float32)}
        return change | some(uniforms[8], self.p)

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        return lower_some(images, lower_colours, parameters)


def _factors(value: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(value, (int, float)):
        return (max(0.0, 1 - value), 1 + value) if value >= 0 else (-1, -1)
    return value


def _angles(value: float | tuple[float, float]) -> tuple[float, float]:
    return (-value, value) if isinstance(value, (int, float)) else value


def lower_colours(images: Any, parameters: Mapping[str, Any]) -> Any:
    """The DALI graph of `matrix @ colour + offset @ mean colour`, both (3, 3) float32, rounded to uint8."""
    from nvidia.dali import fn, types

    mean = fn.coord_transform(fn.reductions.mean(images, axes=(0, 1), keep_dims=True), M=parameters["offset"])
    added = fn.reshape(mean, shape=[3], layout="").cpu()  # arguments are the host's, also where the pixels are not
    return fn.coord_transform(images, M=parameters["matrix"], T=added, dtype=types.UINT8)


def saturation_matrices(factors: NDArray[np.float64]) -> Matrices:
    """(N, 3, 3): each colour moved away from its grey (above 1) or towards it (below)."""
    factors = factors[:, None, None]
    mixed: Matrices = factors * np.eye(3) + (1 - factors) * _TO_GREY
    return mixed


def _hue_matrices(turns: NDArray[np.float64]) -> Matrices:
    angle = -2 * np.pi * turns  # I and Q have blue where the colour wheel has it, the other way round
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 2, 1] = np.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    turned: Matrices = _YIQ_TO_RGB @ turn @ _RGB_TO_YIQ
    return turned


@checked
@dataclass(frozen=True)
class RandomGrayscale(RandomTransform):
    """Replace colours by their grey with probability `p`, as torchvision's `RandomGrayscale`: within 1/255.

    Args:
        p: Probability.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 1

    p: Probability = 0.1

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        return some(uniforms[0], self.p)

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        return lower_some(images, _lower_grey, parameters)


def _lower_grey(images: Any, _: Mapping[str, Any]) -> Any:
    from nvidia.dali import fn, types

    return fn.coord_transform(images, M=_TO_GREY.ravel().tolist(), dtype=types.UINT8)


@dataclass(frozen=True)
class Grey(Transform):
    """Brightness in one channel, (H, W, 1) uint8: Pillow's `convert("L")`, ITU-R 601-2, within 1/255, mostly equal."""

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        # not `similarity.grey`, which is Pillow's to the bit: that works on tensors, which a DALI graph has none of
        return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)


@checked
@dataclass(frozen=True)
class Normalize(Transform):
    """`(pixel / 255 - mean) / std`, to float and, by default, to NCHW. The last transform of a sequence.

    Args:
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.
        dtype: "float32" or "float16".
        layout: "CHW" or "HWC".
    """

    gives_floats: ClassVar[bool] = True

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["CHW", "HWC"] = "CHW"

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"Normalize.mean is {self.mean}; give three finite numbers")
        if not all(0 < s < math.inf for s in self.std):
            raise ValueError(f"Normalize.std is {self.std}; give three positive numbers")

    def lower(self, images: Any) -> Any:  # noqa: D102
        return self.lower_mirrored(images, 0)

    def lower_mirrored(self, images: Any, mirror: Any) -> Any:
        """The DALI graph of a horizontal flip, where `mirror` (0, 1 or a node) is 1, and this, in one pass."""
        from nvidia.dali import fn, types

        return fn.crop_mirror_normalize(
            images,
            mirror=mirror,
            mean=[255 * m for m in self.mean],
            std=[255 * s for s in self.std],
            dtype=types.FLOAT if self.dtype == "float32" else types.FLOAT16,
            output_layout=self.layout,
        )


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

        return lower_some(images, lambda images, own: fn.gaussian_blur(images, **own), parameters)


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
        low, high = _angles(self.degrees)
        if not -360 <= low <= high <= 360:
            raise ValueError(f"Rotate.degrees is {self.degrees!r}; give a positive number or (lowest, highest), to 360")

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        low, high = _angles(self.degrees)
        angle = low + (high - low) * uniforms[0]
        return {"angle": angle.astype(np.float32)} | some(uniforms[1], self.p)

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        kernel = types.INTERP_LINEAR if self.interpolation == "linear" else types.INTERP_NN

        def turn(images: Any, own: Mapping[str, Any]) -> Any:
            return fn.rotate(images, **own, keep_size=True, fill_value=float(self.fill), interp_type=kernel)

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
    draws: ClassVar[int] = 2 * ATTEMPTS + 3

    p: Probability = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.0

    def __post_init__(self) -> None:
        check_range(self.scale, "RandomErasing.scale")
        check_range(self.ratio, "RandomErasing.ratio")

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        heights, widths = np.ascontiguousarray(sizes.T)
        tall, wide = draw_sides(uniforms, heights * widths, self.scale, self.ratio)
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

        return fn.erase(images, **parameters, axis_names="HW", fill_value=float(self.value), normalized=False)

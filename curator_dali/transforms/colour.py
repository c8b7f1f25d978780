"""Random changes of colour. All of them are one matrix for each image, composed on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Probability, checked
from curator_dali.transforms.base import RandomTransform
from curator_dali.transforms.branching import lower_some, some

__all__ = ["LUMA", "ColorJitter", "RandomGrayscale", "lower_colours", "saturation_matrices"]

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601), as Pillow's "L" has them."""
_GREY = np.broadcast_to(LUMA, (3, 3))
# FCC NTSC; the first row is LUMA
_RGB_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)

Matrices = NDArray[np.float64]


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
        about_mean[1] = (1 - contrast)[:, None, None] * _GREY
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

    return fn.coord_transform(images, M=_GREY.ravel().tolist(), dtype=types.UINT8)


def lower_colours(images: Any, parameters: Mapping[str, Any]) -> Any:
    """The DALI graph of `matrix @ colour + offset @ mean colour of the image`, rounded to uint8.

    Args:
        images: The node.
        parameters: `matrix` and `offset`, nodes of (3, 3) float32 on the host.
    """
    from nvidia.dali import fn, types

    mean = fn.coord_transform(fn.reductions.mean(images, axes=(0, 1), keep_dims=True), M=parameters["offset"])
    added = fn.reshape(mean, shape=[3], layout="").cpu()  # arguments are the host's, also where the pixels are not
    return fn.coord_transform(images, M=parameters["matrix"], T=added, dtype=types.UINT8)


def saturation_matrices(factors: NDArray[np.float64]) -> Matrices:
    """(N, 3, 3): each colour moved away from its grey (above 1) or towards it (below)."""
    factors = factors[:, None, None]
    mixed: Matrices = factors * np.eye(3) + (1 - factors) * _GREY
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


def _factors(value: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(value, (int, float)):
        return (max(0.0, 1 - value), 1 + value) if value >= 0 else (-1, -1)
    low, high = value
    return low, high


def _angles(value: float | tuple[float, float]) -> tuple[float, float]:
    low, high = (-value, value) if isinstance(value, (int, float)) else value
    return low, high

"""Automatic augmentation: a few operations chosen at random for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Level, checked
from curator_dali.transforms.base import RandomTransform
from curator_dali.transforms.operations import OPERATIONS, SIGNED, lower_operation, number, operation

__all__ = ["AutoAugment", "RandAugment", "TrivialAugmentWide"]

_MOST_OPERATIONS = 8
_SIGNED = np.isin(OPERATIONS, SIGNED)
_WITHOUT_INVERT = len(OPERATIONS) - 1  # Invert is the last one, and only AutoAugment's

# (operation, probability, magnitude of 10 bins), twice a line: Cubuk et al., "AutoAugment: Learning Augmentation
# Policies from Data", 2019, appendix, table 9 (ImageNet)
_IMAGENET = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class _Policy(RandomTransform):
    """Base of the three: where operations and magnitudes come from is theirs, the rest is common.

    The operations are Pillow's within 1/255 (contrast and equalize within 2/255; equalize more on images of some
    thousand pixels, where Pillow's integers are coarse). "nearest" places pixels as Pillow does, but for ties.
    """

    interpolation: Literal["nearest", "linear"] = field(default="nearest", kw_only=True)
    fill: Level = field(default=0, kw_only=True)

    @property
    def _rounds(self) -> int:
        return 2

    def choose(
        self, uniforms: NDArray[np.float64], sizes: Numbers
    ) -> Sequence[tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]]:
        """For each operation in turn: (N,) numbers of operations, magnitudes, and uniform numbers for their signs."""
        raise NotImplementedError

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for i, (which, magnitude, sign) in enumerate(self.choose(uniforms, sizes)):
            signed = np.where(_SIGNED[which] & (sign < 0.5), -magnitude, magnitude)
            found |= {f"{i}.{name}": values for name, values in operation(which, signed, sizes).items()}
        return found

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:
        for i in range(self._rounds):
            start = f"{i}."
            own = {name.removeprefix(start): node for name, node in parameters.items() if name.startswith(start)}
            images = lower_operation(images, own, self.interpolation, self.fill)
        return images


@checked
@dataclass(frozen=True)
class RandAugment(_Policy):
    """A few operations in a row, each any of 14, all of one strength (Cubuk et al. 2020).

    The operations, their probabilities and magnitudes are torchvision's `RandAugment`'s; the random numbers differ.

    Args:
        num_ops: Operations a sample, 1 to 8; the same one may come again.
        magnitude: The strength, 0 to `num_magnitude_bins` - 1.
        num_magnitude_bins: Steps of the strength's scale.
        interpolation: "nearest" (default, as torchvision's) or "linear", of shear, translate and rotate.
        fill: Value of their new pixels, 0 to 255.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 2 * _MOST_OPERATIONS

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: Count = 31

    def __post_init__(self) -> None:
        if not 1 <= self.num_ops <= _MOST_OPERATIONS:
            raise ValueError(f"RandAugment.num_ops is {self.num_ops}; give 1 to {_MOST_OPERATIONS}")
        if self.num_magnitude_bins < 2 or not 0 <= self.magnitude < self.num_magnitude_bins:
            raise ValueError(
                f"RandAugment.magnitude is {self.magnitude} of {self.num_magnitude_bins} bins; give at least 2 bins "
                "and a magnitude from 0 to the last"
            )

    @property
    def _rounds(self) -> int:
        return self.num_ops

    def choose(  # noqa: D102
        self, uniforms: NDArray[np.float64], sizes: Numbers
    ) -> Sequence[tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]]:
        strengths = np.full(len(sizes), float(self.magnitude))
        scale = _relative(sizes)
        chosen = []
        for i in range(self.num_ops):
            which = (uniforms[2 * i] * _WITHOUT_INVERT).astype(np.int64)
            chosen.append((which, _magnitude(which, strengths, self.num_magnitude_bins, scale), uniforms[2 * i + 1]))
        return chosen


@checked
@dataclass(frozen=True)
class TrivialAugmentWide(_Policy):
    """One operation, any of 14, of a random strength (Müller and Hutter 2021, its wide space).

    The operations, their probabilities and magnitudes are torchvision's `TrivialAugmentWide`'s; the random numbers
    differ.

    Args:
        num_magnitude_bins: Steps of the strength's scale.
        interpolation: "nearest" (default, as torchvision's) or "linear", of shear, translate and rotate.
        fill: Value of their new pixels, 0 to 255.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 3

    num_magnitude_bins: Count = 31

    def __post_init__(self) -> None:
        if self.num_magnitude_bins < 2:
            raise ValueError(f"TrivialAugmentWide.num_magnitude_bins is {self.num_magnitude_bins}; give at least 2")

    @property
    def _rounds(self) -> int:
        return 1

    def choose(  # noqa: D102
        self, uniforms: NDArray[np.float64], sizes: Numbers
    ) -> Sequence[tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]]:
        which = (uniforms[0] * _WITHOUT_INVERT).astype(np.int64)
        strengths = np.floor(uniforms[1] * self.num_magnitude_bins)
        return [(which, _magnitude(which, strengths, self.num_magnitude_bins, _WIDE), uniforms[2])]


@checked
@dataclass(frozen=True)
class AutoAugment(_Policy):
    """One of the 25 pairs of operations that were learnt on ImageNet, each with its probability (Cubuk et al. 2019).

    As torchvision's `AutoAugment(AutoAugmentPolicy.IMAGENET)`; the random numbers differ. Its policies for CIFAR-10 and
    SVHN have no counterpart.

    Args:
        interpolation: "nearest" (default, as torchvision's) or "linear", of shear and rotate.
        fill: Value of their new pixels, 0 to 255.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 5

    def choose(  # noqa: D102
        self, uniforms: NDArray[np.float64], sizes: Numbers
    ) -> Sequence[tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]]:
        pairs = (uniforms[0] * len(_IMAGENET)).astype(np.int64)
        scale = _relative(sizes)
        chosen = []
        for i in range(2):
            which = np.array([number(pair[i][0]) for pair in _IMAGENET])[pairs]
            p = np.array([pair[i][1] for pair in _IMAGENET])[pairs]
            strengths = np.array([float(pair[i][2]) for pair in _IMAGENET])[pairs]
            which = np.where(uniforms[1 + i] < p, which, number("Identity"))
            chosen.append((which, _magnitude(which, strengths, 10, scale), uniforms[3 + i]))
        return chosen


def _relative(sizes: Numbers) -> dict[str, Any]:
    """The largest magnitudes of AutoAugment and RandAugment; translations are a share of the image's side."""
    height, width = 150.0 / 331.0 * np.ascontiguousarray(sizes.T)
    return {"Shear": 0.3, "TranslateX": width, "TranslateY": height, "Rotate": 30.0, "Enhance": 0.9, "Posterize": 4}


_WIDE: dict[str, Any] = {
    "Shear": 0.99,
    "TranslateX": 32.0,
    "TranslateY": 32.0,
    "Rotate": 135.0,
    "Enhance": 0.99,
    "Posterize": 6,
}


def _magnitude(
    which: Numbers, strengths: NDArray[np.float64], bins: int, largest: Mapping[str, Any]
) -> NDArray[np.float64]:
    """What `operation` takes, from strengths 0 to bins - 1 on a scale from nothing to the largest."""
    share = strengths / (bins - 1)
    found = np.zeros(len(which))
    for name in ("ShearX", "ShearY"):
        found = np.where(which == number(name), share * largest["Shear"], found)
    for name in ("TranslateX", "TranslateY", "Rotate"):
        found = np.where(which == number(name), share * largest[name], found)
    for name in ("Brightness", "Color", "Contrast", "Sharpness"):
        found = np.where(which == number(name), share * largest["Enhance"], found)
    bits = 8 - np.rint(strengths / ((bins - 1) / largest["Posterize"]))
    found = np.where(which == number("Posterize"), bits, found)
    solarized: NDArray[np.float64] = np.where(which == number("Solarize"), 255 * (1 - share), found)
    return solarized

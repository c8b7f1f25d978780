"""Automatic augmentation: operations chosen at random for each sample, in Pillow's sense of their names.

All operations are six branches of the graph: one matrix of places (shear, translate, rotate), one of colours
(brightness, color, contrast), one of bits (posterize, solarize, invert), one kernel (sharpness), equalize and
autocontrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Level, checked
from curator_dali.transforms.base import RandomTransform, only_where
from curator_dali.transforms.colour import LUMA, lower_colours, saturation_matrices

Numbers = NDArray[np.int64]

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
"""torchvision's names; a number of an operation is its place here."""
SIGNED = OPERATIONS[1:10]
"""Whose magnitude is negated for half of the samples."""
_IS_SIGNED = np.isin(OPERATIONS, SIGNED)
_NUM_WITHOUT_INVERT = len(OPERATIONS) - 1  # Invert is the last one, and only AutoAugment's

_MOST_OPERATIONS = 8

# ImageFilter.SMOOTH, what ImageEnhance.Sharpness moves an image away from
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_SHARP = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])

# (operation, probability, magnitude of 10 bins), twice a line: Cubuk et al., "AutoAugment: Learning Augmentation
# Policies from Data", 2019, appendix, table 9 (ImageNet)
_IMAGENET_POLICIES = (
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

_WIDE_LARGEST: dict[str, Any] = {
    "Shear": 0.99,
    "TranslateX": 32.0,
    "TranslateY": 32.0,
    "Rotate": 135.0,
    "Enhance": 0.99,
    "Posterize": 6,
}


@dataclass(frozen=True)
class _Policy(RandomTransform):
    """Base of the three: where operations and magnitudes come from is theirs, the rest is common.

    The operations are Pillow's within 1/255 (contrast and equalize within 2/255; equalize more on images of some
    thousand pixels, where Pillow's integers are coarse). "nearest" places pixels as Pillow does, but for ties.
    """

    interpolation: Literal["nearest", "linear"] = field(default="nearest", kw_only=True)
    fill: Level = field(default=0, kw_only=True)

    def choose(
        self, uniforms: NDArray[np.float64], sizes: Numbers
    ) -> Sequence[tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]]:
        """For each operation in turn: (N,) numbers of operations, magnitudes, and uniform numbers for their signs."""
        raise NotImplementedError

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for i, (which, magnitude, sign) in enumerate(self.choose(uniforms, sizes)):
            signed = np.where(_IS_SIGNED[which] & (sign < 0.5), -magnitude, magnitude)
            found |= {f"{i}.{name}": values for name, values in operation(which, signed, sizes).items()}
        return found

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:
        rounds: dict[str, dict[str, Any]] = {}
        for key, node in parameters.items():
            i, _, name = key.partition(".")
            rounds.setdefault(i, {})[name] = node
        for own in rounds.values():
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

    def choose(  # noqa: D102
        self, uniforms: NDArray[np.float64], sizes: Numbers
    ) -> Sequence[tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]]:
        strengths = np.full(len(sizes), float(self.magnitude))
        scale = _relative_largest(sizes)
        chosen = []
        for i in range(self.num_ops):
            which = (uniforms[2 * i] * _NUM_WITHOUT_INVERT).astype(np.int64)
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

    def choose(  # noqa: D102
        self, uniforms: NDArray[np.float64], sizes: Numbers
    ) -> Sequence[tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]]:
        which = (uniforms[0] * _NUM_WITHOUT_INVERT).astype(np.int64)
        strengths = np.floor(uniforms[1] * self.num_magnitude_bins)
        return [(which, _magnitude(which, strengths, self.num_magnitude_bins, _WIDE_LARGEST), uniforms[2])]


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
        pairs = (uniforms[0] * len(_IMAGENET_POLICIES)).astype(np.int64)
        scale = _relative_largest(sizes)
        chosen = []
        for i in range(2):
            which = np.array([number(pair[i][0]) for pair in _IMAGENET_POLICIES])[pairs]
            p = np.array([pair[i][1] for pair in _IMAGENET_POLICIES])[pairs]
            strengths = np.array([float(pair[i][2]) for pair in _IMAGENET_POLICIES])[pairs]
            which = np.where(uniforms[1 + i] < p, which, number("Identity"))
            chosen.append((which, _magnitude(which, strengths, 10, scale), uniforms[3 + i]))
        return chosen


def _relative_largest(sizes: Numbers) -> dict[str, Any]:
    """The largest magnitudes of AutoAugment and RandAugment; translations are a share of the image's side."""
    height, width = 150.0 / 331.0 * np.ascontiguousarray(sizes.T)
    return {"Shear": 0.3, "TranslateX": width, "TranslateY": height, "Rotate": 30.0, "Enhance": 0.9, "Posterize": 4}


def _magnitude(
    which: Numbers, strengths: NDArray[np.float64], bins: int, largest: Mapping[str, Any]
) -> NDArray[np.float64]:
    """What `operation` takes, from strengths 0 to bins - 1 on a scale from nothing to the largest."""
    share = strengths / (bins - 1)
    found = np.zeros(len(which))
    for name in SIGNED:
        kind = "Shear" if name.startswith("Shear") else name if name in largest else "Enhance"
        found = np.where(which == number(name), share * largest[kind], found)
    bits = 8 - np.rint(strengths / ((bins - 1) / largest["Posterize"]))
    found = np.where(which == number("Posterize"), bits, found)
    solarized: NDArray[np.float64] = np.where(which == number("Solarize"), 255 * (1 - share), found)
    return solarized


def number(name: str) -> int:
    """The number of an operation."""
    return OPERATIONS.index(name)


def operation(
    which: NDArray[np.int64], magnitude: NDArray[np.float64], sizes: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """The parameters of `lower_operation`.

    Args:
        which: (N,) numbers of operations.
        magnitude: (N,) shear (columns a row, or rows a column); pixels to the right or down, whole ones count; degrees
            counter-clockwise; for brightness to sharpness what is added to the factor 1; bits that stay (posterize);
            the value from which pixels are inverted (solarize).
        sizes: (N, 2) heights and widths in pixels.
    """

    def chosen(*names: str) -> NDArray[np.bool_]:
        return np.isin(which, [number(name) for name in names])

    def where(name: str, neutral: float = 0.0) -> NDArray[np.float64]:
        return np.where(chosen(name), magnitude, neutral)

    n = len(which)
    centre = sizes[:, ::-1] / 2.0
    angle = np.radians(where("Rotate"))
    affine = np.zeros((n, 2, 3))  # from a pixel's place (x, y) in what comes out to its place in what comes in
    affine[:, 0, 0] = affine[:, 1, 1] = np.cos(angle)
    affine[:, 0, 1] = -np.sin(angle)
    affine[:, 1, 0] = np.sin(angle)
    affine[:, :, 2] = centre - np.einsum("nij,nj->ni", affine[:, :, :2], centre)
    affine[:, 0, 1] += where("ShearX")
    affine[:, 1, 0] += where("ShearY")
    affine[:, 0, 2] -= np.trunc(where("TranslateX"))
    affine[:, 1, 2] -= np.trunc(where("TranslateY"))

    contrast = where("Contrast")[:, None, None]
    brightness = where("Brightness")[:, None, None]
    matrix = (1 + contrast) * (1 + brightness) * saturation_matrices(1 + where("Color"))
    kernel = _SHARP + where("Sharpness")[:, None, None] * (_SHARP - _SMOOTH)
    bits = where("Posterize", 8.0).astype(np.int64)
    inverted_from = np.where(chosen("Invert"), 0, np.ceil(where("Solarize", 256.0)))
    return {
        "warps": chosen("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
        "affine": affine.astype(np.float32),
        "colours": chosen("Brightness", "Color", "Contrast"),
        "matrix": matrix.astype(np.float32),
        "offset": (-contrast * LUMA * np.ones((3, 1))).astype(np.float32),
        "cuts_bits": chosen("Posterize", "Solarize", "Invert"),
        "mask": (256 - 2 ** (8 - bits)).astype(np.uint8),
        "inverted_from": inverted_from.astype(np.int32),
        "sharpens": chosen("Sharpness"),
        "kernel": kernel.astype(np.float32),
        "stretches": chosen("AutoContrast"),
        "equalizes": chosen("Equalize"),
    }


def lower_operation(
    images: Any, parameters: Mapping[str, Any], interpolation: Literal["nearest", "linear"], fill: int
) -> Any:
    """The DALI graph of each sample's own operation, with nodes of what `operation` gives."""
    from nvidia.dali import fn, types

    kind = types.INTERP_NN if interpolation == "nearest" else types.INTERP_LINEAR

    def warp(images: Any, own: Mapping[str, Any]) -> Any:
        return fn.warp_affine(images, matrix=own["affine"], interp_type=kind, fill_value=float(fill))

    branches = [
        ("warps", warp, ("affine",)),
        ("colours", lower_colours, ("matrix", "offset")),
        ("cuts_bits", _cut_bits, ("mask", "inverted_from")),
        ("sharpens", _sharpen, ("kernel",)),
        ("stretches", _stretch, ("matrix",)),
        ("equalizes", _equalize, ()),
    ]
    for predicate, branch, names in branches:
        images = only_where(images, parameters[predicate], branch, {name: parameters[name] for name in names})
    return images


def _beside(images: Any, node: Any) -> Any:
    return node.gpu() if images.device == "gpu" else node


def _cut_bits(images: Any, own: Mapping[str, Any]) -> Any:
    from nvidia.dali import types

    all_bits = types.Constant(255, dtype=types.UINT8)
    inverted = images ^ (all_bits * (images >= _beside(images, own["inverted_from"])))
    return inverted & _beside(images, own["mask"])


def _sharpen(images: Any, own: Mapping[str, Any]) -> Any:
    """A 3 x 3 kernel; the outermost pixels stay as they are, as Pillow leaves them."""
    from nvidia.dali import fn, math, types

    shape = images.shape(dtype=types.INT32)
    height, width = shape[0], shape[1]
    inner = fn.stack(math.max(height - 2, 0), math.max(width - 2, 0))
    sharp = fn.filter(images, _beside(images, own["kernel"]))
    sharp = fn.slice(sharp, start=[1, 1], shape=inner, axes=(0, 1), out_of_bounds_policy="trim_to_shape")
    sharp = fn.slice(
        sharp, start=[-1, -1], shape=fn.stack(height, width), axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
    )
    floats = fn.cast(inner, dtype=types.FLOAT)
    frame = fn.erase(images, anchor=[1.0, 1.0], shape=floats, axis_names="HW", fill_value=0.0, normalized=False)
    return frame + sharp


def _stretch(images: Any, own: Mapping[str, Any]) -> Any:
    """Each channel's lowest value to 0 and its highest to 255, rounded down; a channel of one value stays."""
    from nvidia.dali import fn, types

    low = fn.cast(fn.reductions.min(images, axes=(0, 1)), dtype=types.FLOAT)
    high = fn.cast(fn.reductions.max(images, axes=(0, 1)), dtype=types.FLOAT)
    if images.device == "gpu":  # arguments are the host's
        low, high = low.cpu(), high.cpu()
    flat = high <= low
    scale = (255.0 * (high > low) + 1.0 * flat) / (high - low + 1.0 * flat)
    matrix = fn.reshape(scale, shape=[3, 1], layout="") * own["matrix"]  # theirs is the identity
    down = 0.498  # a little less than a half, because what is whole must not be rounded down
    offset = fn.reshape(-1.0 * low * scale * (high > low) - down, shape=[3], layout="")
    return fn.coord_transform(images, M=matrix, T=offset, dtype=types.UINT8)


def _equalize(images: Any, _: Mapping[str, Any]) -> Any:
    """Pillow counts the pixels below a value, DALI (as OpenCV) those up to it: the same of the inverted image."""
    from nvidia.dali import fn, types

    all_bits = types.Constant(255, dtype=types.UINT8)
    return fn.equalize(images ^ all_bits) ^ all_bits

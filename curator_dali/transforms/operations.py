"""One operation out of many for each sample, as automatic augmentation chooses them, in Pillow's sense of their names.

All of them are six branches of the graph: one matrix of places (shear, translate, rotate), one of colours (brightness,
color, contrast), one of bits (posterize, solarize, invert), one kernel (sharpness), equalize and autocontrast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.transforms.branching import only_where
from curator_dali.transforms.colour import LUMA, lower_colours, saturation_matrices

__all__ = ["OPERATIONS", "SIGNED", "WITHOUT_MAGNITUDE", "lower_operation", "number", "operation"]

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
WITHOUT_MAGNITUDE = ("Identity", "AutoContrast", "Equalize", "Invert")

# ImageFilter.SMOOTH, what ImageEnhance.Sharpness moves an image away from
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_SHARP = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])


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
    """The DALI graph of each sample's own operation.

    Args:
        images: The node.
        parameters: Nodes of what `operation` gives.
        interpolation: Of shear, translate and rotate.
        fill: Value of their new pixels.
    """
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
    from nvidia.dali import fn, types

    shape = images.shape(dtype=types.INT32)
    height, width = shape[0], shape[1]
    inner = fn.stack((height - 2) * (height > 2), (width - 2) * (width > 2))
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

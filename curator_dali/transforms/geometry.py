"""Deterministic changes of an image's size: scale, cut the middle out, pad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Level, Size, checked
from curator_dali.transforms.base import Transform, pair
from curator_dali.transforms.borders import lower_borders
from curator_dali.transforms.branching import either

__all__ = ["CenterCrop", "Interpolation", "Pad", "Resize", "filter_arguments"]

Interpolation = Literal["nearest", "linear", "cubic", "lanczos"]


@checked
@dataclass(frozen=True)
class Resize(Transform):
    """Scale to a size, antialiased when reducing.

    Cubic runs as a horizontal and then a vertical pass, each rounded to uint8, as Pillow does: within 2/255 of
    Pillow's bicubic (DALI's one-pass cubic is up to 11/255 away), but for a few values near the border where it
    enlarges, or runs on a GPU. Differs from torchvision's `Resize` on tensors by the rounding between the passes.

    Args:
        size: A number makes the shorter side so long and keeps the aspect ratio; the longer side is rounded down,
            as torchvision and transformers do. (height, width) sets both.
        interpolation: "cubic" (default), "linear", "nearest" or "lanczos".
    """

    size: Size
    interpolation: Interpolation = "cubic"

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import types

        if not isinstance(self.size, int):
            return lower_resize(images, *self.size, self.interpolation)
        shape = images.shape(dtype=types.INT64)
        height, width = shape[0], shape[1]
        shorter = height * (height < width) + width * (height >= width)
        new_height, new_width = self.size * height // shorter, self.size * width // shorter
        return lower_resize(images, new_height, new_width, self.interpolation)

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        if isinstance(self.size, int):
            return size and (self.size * size[0] // min(size), self.size * size[1] // min(size))
        return self.size

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: D102
        if isinstance(self.size, int):
            shorter: NDArray[np.int64] = sizes.min(axis=1, keepdims=True)
            return self.size * sizes // shorter
        return super().output_sizes(sizes)


def lower_resize(images: Any, height: Any, width: Any, interpolation: Interpolation) -> Any:
    """The DALI graph of a resize in two passes, each rounded to uint8.

    Args:
        images: The node.
        height: Rows, a number or a node.
        width: Columns, a number or a node.
        interpolation: As in `Resize`.
    """
    from nvidia.dali import fn

    scale = filter_arguments(interpolation)
    cubic = interpolation == "cubic"
    narrow = _narrowed(images, _to_float(width), scale, cubic)
    low = fn.resize(narrow, resize_x=_columns(narrow), resize_y=_to_float(height), **scale)
    return lower_borders(narrow, low) if cubic and images.device == "cpu" else low


def _narrowed(images: Any, width: Any, scale: dict[str, Any], cubic: bool) -> Any:
    """The horizontal pass, on a CPU as a vertical one of the transposed image where it shrinks: that is faster."""
    from nvidia.dali import fn

    def across(images: Any, own: Mapping[str, Any]) -> Any:
        return fn.resize(images, resize_x=own.get("width", width), resize_y=_rows(images), **scale)

    def down(images: Any, own: Mapping[str, Any]) -> Any:
        turned = fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
        narrow = fn.resize(turned, resize_x=_columns(turned), resize_y=own.get("width", width), **scale)
        if cubic:
            narrow = lower_borders(turned, narrow)
        return fn.transpose(narrow, perm=[1, 0, 2], transpose_layout=False)

    own = {} if isinstance(width, float) else {"width": width}
    if images.device == "gpu" or not scale["antialias"]:
        return across(images, own)
    return either(images, _columns(images) > width, down, across, own)


def filter_arguments(interpolation: Interpolation) -> dict[str, Any]:
    """DALI's arguments for an interpolation, antialiased when reducing."""
    from nvidia.dali import types

    kernel = {
        "nearest": types.INTERP_NN,
        "linear": types.INTERP_LINEAR,
        "cubic": types.INTERP_CUBIC,
        "lanczos": types.INTERP_LANCZOS3,
    }[interpolation]
    return {"interp_type": kernel, "antialias": interpolation != "nearest"}


def _to_float(value: Any) -> Any:
    from nvidia.dali import fn, types

    return float(value) if isinstance(value, int) else fn.cast(value, dtype=types.FLOAT)


def _rows(images: Any) -> Any:
    return _to_float(images.shape()[0])


def _columns(images: Any) -> Any:
    return _to_float(images.shape()[1])


@checked
@dataclass(frozen=True)
class CenterCrop(Transform):
    """Cut the middle out; what reaches beyond the image is black.

    Args:
        size: Side, or (height, width).
        rounding: Where the window's corner (side - crop) / 2 falls between two pixels: "down" as transformers does,
            "even" takes the even one of them, as torchvision (and so timm) does.
    """

    size: Size
    rounding: Literal["down", "even"] = "down"

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        height, width = pair(self.size)
        shape = images.shape(dtype=types.INT32)
        corner = _half_down if self.rounding == "down" else _half_even
        top, left = corner(shape[0] - height, height), corner(shape[1] - width, width)
        start = fn.stack(fn.cast(top, dtype=types.INT32), fn.cast(left, dtype=types.INT32))
        return fn.slice(
            images, start=start, shape=[height, width], axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
        )

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        return pair(self.size)


def _half_down(room: Any, crop: int) -> Any:
    return (room + 2 * crop) // 2 - crop  # floor also for negative numbers, which DALI's // rounds towards zero


def _half_even(room: Any, crop: int) -> Any:
    # 1.5 is 2, but 0.5 is 0 and 2.5 is 2; what is missing of the image is padded first, less of it on this side
    return (room + ((room & 3) == 3) * (room > 0)) // 2


@checked
@dataclass(frozen=True)
class Pad(Transform):
    """Grow to at least a size with one grey value on the right and below; larger images stay as they are.

    Args:
        size: Side, or (height, width).
        fill: Value of the new pixels, 0 to 255.
    """

    size: Size
    fill: Level = 0

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        height, width = pair(self.size)
        shape = images.shape(dtype=types.INT32)
        new_height = shape[0] * (shape[0] > height) + height * (shape[0] <= height)
        new_width = shape[1] * (shape[1] > width) + width * (shape[1] <= width)
        size = fn.stack(fn.cast(new_height, dtype=types.INT32), fn.cast(new_width, dtype=types.INT32))
        return fn.slice(
            images, start=[0, 0], shape=size, axes=(0, 1), out_of_bounds_policy="pad", fill_values=self.fill
        )

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        height, width = pair(self.size)
        return size and (max(size[0], height), max(size[1], width))

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: D102
        return np.maximum(sizes, pair(self.size))

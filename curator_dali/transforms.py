"""What happens to decoded images on the device, as frozen values lowered to DALI operators.

A transform says what it wants (`Resize(224)`); `lower` writes it into the one DALI pipeline that also decodes. A
sequence that ends in a fixed size (`output_size`) makes every batch one contiguous (N, H, W, 3) array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "CenterCrop",
    "Normalize",
    "Pad",
    "Resize",
    "Transform",
    "clip",
    "output_size",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Means of CLIP's training set (Radford et al. 2021), in units of 0..1, as in OpenAI's preprocessing."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Interpolation = Literal["nearest", "linear", "cubic", "lanczos"]
_INTERPOLATIONS = ("nearest", "linear", "cubic", "lanczos")


def _pair(size: int | tuple[int, int], what: str) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"{what} is {size!r}; give one positive number of pixels or (height, width)")
    return pair[0], pair[1]


@dataclass(frozen=True)
class Transform:
    """Base of all transforms."""

    def lower(self, images: Any) -> Any:
        """The DALI graph: an HWC uint8 RGB node in, a node out, on the same device.

        Args:
            images: A `nvidia.dali.data_node.DataNode`.
        """
        raise NotImplementedError

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """(height, width) after this transform where every image has the same; None where they differ.

        Args:
            size: The same of the images that come in.
        """
        return size


@dataclass(frozen=True)
class Resize(Transform):
    """Scale to a size, antialiased when reducing.

    Cubic runs as a horizontal and then a vertical pass, each rounded to uint8, as Pillow does: within 2/255 of
    Pillow's bicubic but for a few values near the border (DALI's one-pass cubic is up to 11/255 away). Differs from
    torchvision's `Resize` on tensors by the rounding between the passes.

    Args:
        size: A number makes the shorter side so long and keeps the aspect ratio; the longer side is rounded down,
            as torchvision and transformers do. (height, width) sets both.
        interpolation: "cubic" (default), "linear", "nearest" or "lanczos".
    """

    size: int | tuple[int, int]
    interpolation: Interpolation = "cubic"

    def __post_init__(self) -> None:
        _pair(self.size, "Resize.size")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"Resize.interpolation is {self.interpolation!r}; allowed: {', '.join(_INTERPOLATIONS)}")

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        if isinstance(self.size, int):
            shape = images.shape(dtype=types.INT64)
            height, width = shape[0], shape[1]
            shorter = height * (height < width) + width * (height >= width)
            new_height, new_width = self.size * height // shorter, self.size * width // shorter
        else:
            new_height, new_width = self.size
        kernel = {
            "nearest": types.INTERP_NN,
            "linear": types.INTERP_LINEAR,
            "cubic": types.INTERP_CUBIC,
            "lanczos": types.INTERP_LANCZOS3,
        }[self.interpolation]
        scale: dict[str, Any] = {"interp_type": kernel, "antialias": self.interpolation != "nearest"}
        images = fn.resize(images, resize_x=_to_float(new_width), resize_y=_rows(images), **scale)
        return fn.resize(images, resize_x=_columns(images), resize_y=_to_float(new_height), **scale)

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        if isinstance(self.size, int):
            return size and (self.size * size[0] // min(size), self.size * size[1] // min(size))
        return self.size


def _to_float(value: Any) -> Any:
    from nvidia.dali import fn, types

    return float(value) if isinstance(value, int) else fn.cast(value, dtype=types.FLOAT)


def _rows(images: Any) -> Any:
    return _to_float(images.shape()[0])


def _columns(images: Any) -> Any:
    return _to_float(images.shape()[1])


@dataclass(frozen=True)
class CenterCrop(Transform):
    """Cut the middle out; what reaches beyond the image is black.

    The window's corner is `(side - crop) // 2` rounded down, as transformers does (torchvision rounds to even).

    Args:
        size: Side, or (height, width).
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        _pair(self.size, "CenterCrop.size")

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        height, width = _pair(self.size, "CenterCrop.size")
        shape = images.shape(dtype=types.INT32)
        # floor also for negative numbers, which DALI's // rounds towards zero
        top = (shape[0] - height + 2 * height) // 2 - height
        left = (shape[1] - width + 2 * width) // 2 - width
        start = fn.stack(fn.cast(top, dtype=types.INT32), fn.cast(left, dtype=types.INT32))
        return fn.slice(
            images, start=start, shape=[height, width], axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
        )

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        return _pair(self.size, "CenterCrop.size")


@dataclass(frozen=True)
class Pad(Transform):
    """Grow to at least a size with one grey value on the right and below; larger images stay as they are.

    Args:
        size: Side, or (height, width).
        fill: Value of the new pixels, 0 to 255.
    """

    size: int | tuple[int, int]
    fill: int = 0

    def __post_init__(self) -> None:
        _pair(self.size, "Pad.size")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"Pad.fill is {self.fill}; give a value from 0 to 255")

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        height, width = _pair(self.size, "Pad.size")
        shape = images.shape(dtype=types.INT32)
        new_height = shape[0] * (shape[0] > height) + height * (shape[0] <= height)
        new_width = shape[1] * (shape[1] > width) + width * (shape[1] <= width)
        size = fn.stack(fn.cast(new_height, dtype=types.INT32), fn.cast(new_width, dtype=types.INT32))
        return fn.slice(
            images, start=[0, 0], shape=size, axes=(0, 1), out_of_bounds_policy="pad", fill_values=self.fill
        )

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        height, width = _pair(self.size, "Pad.size")
        return size and (max(size[0], height), max(size[1], width))


@dataclass(frozen=True)
class Normalize(Transform):
    """`(pixel / 255 - mean) / std`, to float and, by default, to NCHW. The last transform of a sequence.

    Args:
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.
        dtype: "float32" or "float16".
        layout: "CHW" or "HWC".
    """

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["CHW", "HWC"] = "CHW"

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"Normalize needs three means and three positive stds, not {self.mean} and {self.std}")
        if self.dtype not in ("float32", "float16") or self.layout not in ("CHW", "HWC"):
            raise ValueError(f"Normalize gives float32 or float16 in CHW or HWC, not {self.dtype} in {self.layout}")

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        return fn.crop_mirror_normalize(
            images,
            mean=[255 * m for m in self.mean],
            std=[255 * s for s in self.std],
            dtype=types.FLOAT if self.dtype == "float32" else types.FLOAT16,
            output_layout=self.layout,
        )


def clip(size: int = 224, *, normalize: bool = False) -> tuple[Transform, ...]:
    """CLIP's evaluation preprocessing: bicubic resize of the shorter side, centre crop, and (if wanted) normalise.

    Equals transformers' `CLIPImageProcessor` within 2/255 but for the border, where it differs by up to 7/255.

    Args:
        size: Side of the square, in pixels.
        normalize: Whether to end with `Normalize()`: (N, 3, H, W) float32 instead of (N, H, W, 3) uint8.
    """
    return (Resize(size), CenterCrop(size), *([Normalize()] if normalize else []))


def output_size(transforms: Sequence[Transform]) -> tuple[int, int] | None:
    """(height, width) that a sequence of transforms gives every image, or None where they differ.

    Raises:
        TypeError: Something in the sequence is no transform.
        ValueError: `Normalize` is not the last.
    """
    size: tuple[int, int] | None = None
    for i, transform in enumerate(transforms):
        if not isinstance(transform, Transform):
            raise TypeError(f"transforms[{i}] is {transform!r}; give values of curator_dali.transforms, as Resize(224)")
        if isinstance(transform, Normalize) and i + 1 < len(transforms):
            raise ValueError("Normalize must be the last transform: the others work on HWC uint8 pixels")
        size = transform.output_size(size)
    return size

"""Pillow's Lanczos reduction of grey images as matrix products: the same integers, on every device.

Pillow (13) makes an image narrower, rounds to uint8, then makes it lower; in the other order if it loses more than
twice as many rows as columns. Its weights are fixed-point numbers of 22 bits, so a pass is an integer matrix product.
On a CPU that multiplies int8 fast (VNNI, AMX), each weight is taken apart into three int8 digits; elsewhere the product
runs in float64, where such sums are exact as well.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["reduce"]

_LOBES = 3  # of the kernel, on each side
_BITS = 22  # of Pillow's weights behind the point
_VALUES_AT_ONCE = 2**22  # as float64: 32 MB


def reduce(images: torch.Tensor, size: tuple[int, int], *, fast: bool | None = None) -> torch.Tensor:
    """Scale grey images as `image.resize((width, height), Image.Resampling.LANCZOS)`, bit for bit.

    Args:
        images: (N, H, W) uint8, on any device.
        size: (height, width).
        fast: Whether to multiply in int8; None where the hardware does so.

    Returns:
        (N, height, width) uint8, on the same device.

    Raises:
        ValueError: The images have no pixels.
    """
    if 0 in images.shape[1:]:
        raise ValueError(f"images of {images.shape[1]} x {images.shape[2]} pixels have nothing to make smaller")
    fast = _has_fast_int8(images.device.type) if fast is None else fast
    (old_height, old_width), (height, width) = images.shape[1:], size
    tall = old_height > height and old_height - height > 2 * (old_width - width)
    images = images.transpose(1, 2) if tall else images
    for length in (height, width) if tall else (width, height):
        images = images.contiguous()
        if len(images) and images.shape[2] != length:
            # flat first: with one column the strides say nothing, and _int_mm goes by them
            narrow = (_by_digits if fast else _by_floats)(images.flatten().view(-1, images.shape[2]), length)
            images = narrow.view(*images.shape[:2], length)
        images = images.transpose(1, 2)
    return (images.transpose(1, 2) if tall else images).reshape(-1, *size)


def _has_fast_int8(device: str) -> bool:
    import torch

    # torch has no public names for either (2.13)
    return device == "cpu" and hasattr(torch, "_int_mm") and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _by_digits(rows: torch.Tensor, length: int) -> torch.Tensor:
    """One pass: (M, K) to (M, length), uint8."""
    import torch

    digits, offset = _digits(rows.shape[1], length)
    products = torch._int_mm((rows ^ 128).view(torch.int8), digits)  # of value - 128
    low, middle, high = torch.split(products, length, dim=1)
    sums = torch.add(low, middle, alpha=1 << 8).add_(high, alpha=1 << 16).add_(offset)
    return sums.bitwise_right_shift_(_BITS).clamp_(0, 255).to(torch.uint8)


def _by_floats(rows: torch.Tensor, length: int) -> torch.Tensor:
    """The same."""
    import torch

    weights = _floats(rows.shape[1], length, str(rows.device))
    parts = torch.split(rows, max(1, _VALUES_AT_ONCE // rows.shape[1]))
    sums = torch.cat([part.to(torch.float64) @ weights for part in parts]).add_(1 << (_BITS - 1))
    return sums.mul_(2.0**-_BITS).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=1024)  # of ordinary photographs 60 kB each
def _digits(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(old, 3 new) int8, the lowest digits to base 256 first; (new,) int32 to add, for rounding and the 128."""
    import torch

    at, weights = _weights(old, new)
    offset = 128 * weights.sum(1, dtype=np.int32) + np.int32(1 << (_BITS - 1))
    table = np.zeros((old + at.shape[1], 3, new), np.int8)
    for place in range(3):
        digit = weights.astype(np.int8)
        table[at, place, np.arange(new)[:, None]] = digit
        weights = (weights - digit) >> 8
    return torch.from_numpy(table[:old].reshape(old, -1)), torch.from_numpy(offset)


@lru_cache(maxsize=256)
def _floats(old: int, new: int, device: str) -> torch.Tensor:
    """(old, new) float64."""
    import torch

    at, weights = _weights(old, new)
    table = np.zeros((old + at.shape[1], new))
    table[at, np.arange(new)[:, None]] = weights
    return torch.from_numpy(table[:old]).to(device)


def _weights(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Of each new value the places of the old ones that it is made of, (new, K), and their weights in fixed point.

    Places may go beyond the last old value; the weight is 0 there.
    """
    scale = old / new
    reach = _LOBES * max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(0, (centre - reach + 0.5).astype(np.int64))
    last = np.minimum(old, (centre + reach + 0.5).astype(np.int64))
    at = first[:, None] + np.arange((last - first).max())
    angle = (at - centre[:, None] + 0.5) * (np.pi * _LOBES / reach)
    angle[angle == 0] = 1e-9
    weights = np.sin(angle) * np.sin(angle / _LOBES) / (angle * angle)
    weights[(at >= last[:, None]) | (np.abs(angle) > np.pi * _LOBES)] = 0
    weights /= weights.sum(1, keepdims=True)
    return at, np.rint(weights * 2**_BITS).astype(np.int32)

"""Thumbnails: made where the images are, and encoded as JPEGs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.view.html import WIDEST_CARD

if TYPE_CHECKING:
    import torch

HEIGHT = 168  # pixels of a thumbnail in a display, at the most

# (pixels of the height, JPEG quality), until all images of a sheet fit into its bytes
_JPEG_SETTINGS = ((320, 84), (168, 82), (152, 76), (136, 70), (120, 62), (104, 52), (80, 40), (56, 35), (40, 30))
_AVERAGED_PIXELS = 4  # rows and columns to be averaged for one of the thumbnail; all beyond are skipped


def make_thumbnails(
    images: Sequence[Any], height: int = HEIGHT, width: int | None = None, *, enlarge: bool = False
) -> list[NDArray[np.uint8]]:
    """Thumbnails, made where the images are; nothing else comes to the host.

    Huge images are thinned out before they are averaged, which bounds the memory: good to look at, not to measure on.
    Floating-point images (after a `Normalize`) are stretched from their lowest to their highest value.

    Args:
        images: Arrays (numpy, CuPy) or tensors, (H, W, 3) uint8, or (H, W, 3) or (3, H, W) floating point.
        height: Most rows of a thumbnail.
        width: Most columns; by default 2.4 times as many.
        enlarge: Whether small images are enlarged. Else they stay as they are.

    Returns:
        (h, w, 3) uint8 on the host, one an image.

    Raises:
        ValueError: An image has another shape or is empty.
    """
    small = [_reduce_image(image, height, width or height * WIDEST_CARD, enlarge) for image in images]
    return [np.asarray(image) for image in arrays.to_host(small)] if small else []


def encode(thumbnails: Sequence[NDArray[np.uint8]], budget: int) -> list[bytes]:
    """Thumbnails as JPEGs that have at most `budget` bytes in all, smaller and coarser the more there are.

    Of more than some thousand thumbnails the budget is passed, for no size is left to take away.
    """
    encoded: list[bytes] = []
    for height, quality in _JPEG_SETTINGS:
        encoded = list(_encode_jpegs(thumbnails, height, quality, budget))
        if len(encoded) == len(thumbnails):
            break
    else:
        encoded = list(_encode_jpegs(thumbnails, *_JPEG_SETTINGS[-1], budget=None))
    return encoded


def _encode_jpegs(
    thumbnails: Sequence[NDArray[np.uint8]], height: int, quality: int, budget: int | None
) -> Iterator[bytes]:
    from PIL import Image

    used = 0
    for pixels in thumbnails:
        image = Image.fromarray(pixels)
        image.thumbnail((round(height * WIDEST_CARD), height))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        used += buffer.tell()
        if budget is not None and used > budget:
            return
        yield buffer.getvalue()


def _reduce_image(image: Any, height: int, width: float, enlarge: bool) -> Any:
    """One thumbnail, (h, w, 3) uint8 on the image's device."""
    on_host = isinstance(image, np.ndarray) and image.dtype == np.uint8
    pixels = image if on_host else arrays.to_torch(image)
    if pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        pixels = pixels.swapaxes(0, 1).swapaxes(1, 2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"an image to show must be (H, W, 3) or (3, H, W), got {tuple(pixels.shape)}")
    rows, columns = pixels.shape[:2]
    scale = min(height / rows, width / columns, math.inf if enlarge else 1.0)
    size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    pixels = pixels[:: max(1, rows // (_AVERAGED_PIXELS * size[0])), :: max(1, columns // (_AVERAGED_PIXELS * size[1]))]
    return (_resize_bytes if on_host else _resize_tensor)(pixels, size)


def _resize_bytes(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize on the host by Pillow: without torch, whose threads wait for each other where cores are busy."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def _resize_tensor(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize where the pixels are, by the same kernel as Pillow's."""
    import torch
    from torch.nn import functional as F

    with torch.inference_mode():
        planes = pixels.permute(2, 0, 1)[None].float()
        if pixels.is_floating_point():
            planes = torch.nan_to_num(planes, nan=0.0, posinf=0.0, neginf=0.0)
            low, high = planes.aminmax()
            planes = (planes - low) * (255 / (high - low).clamp(min=1e-6))
        if tuple(planes.shape[2:]) != size:
            planes = F.interpolate(planes, size, mode="bicubic", antialias=True)
        return planes.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous()

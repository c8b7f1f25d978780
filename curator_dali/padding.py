"""Images of different sizes as one tensor, with a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["Padded", "pad_images"]


class Padded(NamedTuple):
    """Images of different sizes in one tensor.

    Attributes:
        images: (N, H, W, C) or (N, C, H, W), zero where there is no image.
        mask: (N, H, W) bool on the same device, true where there is one.
    """

    images: torch.Tensor
    mask: torch.Tensor


def pad_images(images: Any, multiple: int = 1, *, channels_first: bool = False) -> Padded:
    """Put images of different sizes into the upper left corners of one tensor.

    Args:
        images: N tensors (H_i, W_i, C), or (C, H_i, W_i), on one device; or one tensor of equal ones.
        multiple: Height and width are rounded up to a multiple of this.
        channels_first: Which of the two.
    """
    import torch

    rows = 1 if channels_first else 0
    sizes = [tuple(image.shape[rows : rows + 2]) for image in images]
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    mask = torch.zeros((len(images), height, width), dtype=torch.bool, device=images[0].device)
    for one, (h, w) in zip(mask, sizes, strict=True):
        one[:h, :w] = True
    if isinstance(images, torch.Tensor) and sizes[0] == (height, width):
        return Padded(images, mask)
    channels = images[0].shape[0 if channels_first else 2]
    shape = (channels, height, width) if channels_first else (height, width, channels)
    padded = images[0].new_zeros((len(images), *shape))
    for one, image, (h, w) in zip(padded, images, sizes, strict=True):
        (one[:, :h, :w] if channels_first else one[:h, :w]).copy_(image)
    return Padded(padded, mask)

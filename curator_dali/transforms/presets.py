"""Ready sequences."""

from __future__ import annotations

from curator_dali.transforms.base import Transform
from curator_dali.transforms.geometry import CenterCrop, Resize
from curator_dali.transforms.normalize import Normalize

__all__ = ["clip"]


def clip(size: int = 224, *, normalize: bool = False) -> tuple[Transform, ...]:
    """CLIP's evaluation preprocessing: bicubic resize of the shorter side, centre crop, and (if wanted) normalise.

    Equals transformers' `CLIPImageProcessor` within 2/255 but for the border, where it differs by up to 7/255.

    Args:
        size: Side of the square, in pixels.
        normalize: Whether to end with `Normalize()`: (N, 3, H, W) float32 instead of (N, H, W, 3) uint8.
    """
    return (Resize(size), CenterCrop(size), *([Normalize()] if normalize else []))

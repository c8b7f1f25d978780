"""Grey as Pillow has it: for what must agree with other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curator_dali.transforms.base import Transform

__all__ = ["Grey"]


@dataclass(frozen=True)
class Grey(Transform):
    """Brightness in one channel, (H, W, 1) uint8: Pillow's `convert("L")`, ITU-R 601-2, within 1/255, mostly equal."""

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)

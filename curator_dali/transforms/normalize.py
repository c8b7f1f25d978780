"""From pixels to what a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from curator_dali.arguments import checked
from curator_dali.transforms.base import Transform

__all__ = ["CLIP_MEAN", "CLIP_STD", "IMAGENET_MEAN", "IMAGENET_STD", "Normalize"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Means of CLIP's training set (Radford et al. 2021), in units of 0..1, as in OpenAI's preprocessing."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Means of ImageNet's training set, in units of 0..1, as torchvision's and most other weights expect them."""
IMAGENET_STD = (0.229, 0.224, 0.225)


@checked
@dataclass(frozen=True)
class Normalize(Transform):
    """`(pixel / 255 - mean) / std`, to float and, by default, to NCHW. The last transform of a sequence.

    Args:
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.
        dtype: "float32" or "float16".
        layout: "CHW" or "HWC".
    """

    gives_floats: ClassVar[bool] = True

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["CHW", "HWC"] = "CHW"

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"Normalize.mean is {self.mean}; give three finite numbers")
        if not all(0 < s < math.inf for s in self.std):
            raise ValueError(f"Normalize.std is {self.std}; give three positive numbers")

    def lower(self, images: Any) -> Any:  # noqa: D102
        return self.lower_mirrored(images, 0)

    def lower_mirrored(self, images: Any, mirror: Any) -> Any:
        """The DALI graph of a horizontal flip and this, in one pass over the pixels.

        Args:
            images: The node.
            mirror: 0, 1 or a node of them.
        """
        from nvidia.dali import fn, types

        return fn.crop_mirror_normalize(
            images,
            mirror=mirror,
            mean=[255 * m for m in self.mean],
            std=[255 * s for s in self.std],
            dtype=types.FLOAT if self.dtype == "float32" else types.FLOAT16,
            output_layout=self.layout,
        )

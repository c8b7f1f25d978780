"""`Quality`: sharpness, brightness, contrast, entropy and shape, from one small view of each image, on the device.

Everything is counted in integers and divided once in float64, so that a score does not depend on the device, on the
batch that an image came in, or on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from curator_dali.batch import ImageBatch
from curator_dali.similarity import grey
from curator_dali.stages.base import Stage, View
from curator_dali.transforms import Resize

if TYPE_CHECKING:
    import torch

SIDE = 256
"""Side of the square that every image is resized to, so that scores of images of different sizes can be compared."""


@dataclass(frozen=True)
class Quality(Stage):
    """Write what an image looks like, in numbers, seen at 256 x 256 pixels whatever its own size and shape.

    Columns, float32 unless said otherwise:

    - `sharpness`: variance of the Laplacian of the grey image, in squared grey levels (0 to 255); below about 100 most
      images look blurred. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000.
    - `brightness`: mean grey level, 0 (black) to 1 (white).
    - `contrast`: standard deviation of the grey level divided by 255, 0 to 0.5. The RMS contrast of Peli, "Contrast
      in complex images", 1990.
    - `entropy`: of the histogram of the 256 grey levels, 0 (one colour) to 8 bits. Shannon 1948.
    - `aspect_ratio`: width divided by height, of the upright original.
    - `pixels` (int64): width times height of the original.

    An image that is smaller than 256 pixels is enlarged for it, and less sharp by that.
    """

    VIEW: ClassVar[View] = (Resize((SIDE, SIDE), "linear"),)

    @property
    def reads(self) -> frozenset[str]:
        """Width and height, which the loader gives."""
        return frozenset(["width", "height"])

    @property
    def writes(self) -> Mapping[str, str]:
        """The six columns."""
        looks = dict.fromkeys(("sharpness", "brightness", "contrast", "entropy", "aspect_ratio"), "float32")
        return {**looks, "pixels": "int64"}

    @property
    def views(self) -> tuple[View, ...]:
        """The whole image, squeezed into a square."""
        return (self.VIEW,)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the columns."""
        import torch

        greys = grey(batch.to_torch(self.VIEW)).to(torch.int32)
        mean, variance = _moments(greys)
        scores = torch.stack([_sharpness(greys), mean / 255, variance.sqrt() / 255, _entropy(greys)])
        columns = scores.cpu().numpy().astype(np.float32)
        batch.columns.update(zip(("sharpness", "brightness", "contrast", "entropy"), columns, strict=True))
        width, height = batch.columns["width"].astype(np.int64), batch.columns["height"].astype(np.int64)
        batch.columns["aspect_ratio"] = (width / np.maximum(height, 1)).astype(np.float32)
        batch.columns["pixels"] = width * height
        return batch


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) float64 mean and (population) variance of (N, H, W) int32, at most 256 x 256 values of at most 1,020."""
    import torch

    flat = values.flatten(1)
    count = flat.shape[1]
    total, squares = flat.sum(1, dtype=torch.int64), flat.square().sum(1, dtype=torch.int64)
    # exact in int64, so that one colour has no variance at all
    return total.double() / count, (count * squares - total.square()).double() / count**2


def _sharpness(greys: torch.Tensor) -> torch.Tensor:
    """(N,) variance of the Laplacian (the four neighbours minus four times the pixel) inside the border."""
    inner = greys[:, 1:-1, 1:-1] * -4
    inner += greys[:, :-2, 1:-1]
    inner += greys[:, 2:, 1:-1]
    inner += greys[:, 1:-1, :-2]
    inner += greys[:, 1:-1, 2:]
    return _moments(inner)[1]


def _entropy(greys: torch.Tensor) -> torch.Tensor:
    """(N,) float64, 0 to 8 bits: the Shannon entropy of each image's histogram of 256 grey levels."""
    import torch

    n = len(greys)
    offsets = torch.arange(n, device=greys.device, dtype=torch.int32)[:, None] * 256
    counts = torch.bincount((greys.flatten(1) + offsets).flatten(), minlength=256 * n).view(n, 256)
    shares = counts.double() / greys[0].numel() if n else counts.double()
    bits: torch.Tensor = torch.special.xlogy(shares, shares).sum(1).abs() / np.log(2)  # abs: no -0.0
    return bits

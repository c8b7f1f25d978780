"""An encoder small enough to reason about, and batches to feed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject
from curator_dali.models import ImageEncoder
from curator_dali.transforms import Resize

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


class ColourEncoder(ImageEncoder):
    """Embeds an image as its mean colour and a text as the colours that it names: a CLIP of three dimensions."""

    name = "colours"
    dim = 3
    view = (Resize((16, 16), "linear"),)
    has_text = True

    def __init__(self) -> None:
        self.device = "cpu"
        self.lineage = {"model": "colours"}
        self.pointers: list[int] = []  # of the memory that it was given

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        self.pointers.append(images.data_ptr())
        return torch.nn.functional.normalize(images.float().mean((1, 2)), dim=1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        sums = [np.sum([np.array(rgb) for name, rgb in COLOURS.items() if name in text], axis=0) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(np.array(sums), dtype=torch.float32), dim=1)


class BlindEncoder(ColourEncoder):
    """The same without a text tower, and wider."""

    name = "blind"
    dim = 4
    has_text = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(super().__call__(images), (0, 1))


def flat(*colours: str, side: int = 16) -> NDArray[np.uint8]:
    """(N, side, side, 3) images of one colour each."""
    return np.stack([np.full((side, side, 3), np.array(COLOURS[name]) * 255, np.uint8) for name in colours])


def batch_of(
    view: tuple[Any, ...], pixels: NDArray[np.uint8], metadata: Sequence[dict[str, Any]] | None = None
) -> ImageBatch:
    """A batch as the loader makes it, with one view and no images."""
    n = len(pixels)
    metadata = metadata or [{}] * n
    return ImageBatch(
        data=[ImageObject(f"/{i}.jpg", str(i), dict(metadata[i])) for i in range(n)],
        views={view: pixels},
        columns={"width": np.full(n, 40, np.int32), "height": np.full(n, 20, np.int32), "index": np.arange(n)},
    )

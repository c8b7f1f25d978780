"""What every image encoder is, whatever computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from curator_dali.errors import CuratorDaliError
from curator_dali.transforms.base import Transform

if TYPE_CHECKING:
    import torch

__all__ = ["ImageEncoder", "NoTextTowerError"]


class NoTextTowerError(CuratorDaliError, NotImplementedError):
    """This encoder embeds images only."""


class ImageEncoder(ABC):
    """A frozen network that turns images into embeddings, on one device.

    Attributes:
        name: What it is called in logs and reports.
        dim: D, the length of an embedding.
        view: The transforms that make an image into what `__call__` takes; ends in a fixed size, uint8 HWC.
        device: "cpu" or "cuda:N", where it computes.
        lineage: Plain JSON for the output's records: the model, its weights' SHA-256, dtype, view, libraries.
        has_text: Whether `encode_text` works.
    """

    name: str
    dim: int
    view: tuple[Transform, ...]
    device: str
    lineage: dict[str, Any]
    has_text: bool = False

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images. Their normalisation happens in here, on the device.

        Args:
            images: (N, H, W, 3) uint8 RGB on the model's device, as `view` makes them; N may be 0.

        Returns:
            (N, dim) float32 on the same device, each row of length 1. Without gradients.

        Raises:
            ValueError: Another shape, dtype or device.
        """

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts into the space of the images.

        Args:
            texts: M texts; what is longer than the model reads is cut off.

        Returns:
            (M, dim) float32 on the model's device, each row of length 1.

        Raises:
            NoTextTowerError: The model has no text tower.
        """
        raise NoTextTowerError(
            f"{self.name} embeds images only; for texts load CLIP or SigLIP with their text tower and tokenizer"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, dim={self.dim}, {self.device})"

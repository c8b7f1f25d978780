"""What the two small networks on CLIP embeddings share: where their weights come from, and what they take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from curator_dali.arrays import resolve_device
from curator_dali.models.locating import find_file
from curator_dali.models.weights import check_state, lineage_of, load_state, sha256, state_sha256

if TYPE_CHECKING:
    import torch

__all__ = ["Head"]


class Head(ABC):
    """A small network that gives each embedding one number; float32, on one device.

    Attributes:
        name: What it is called in logs and reports.
        dim: Length of the embeddings it takes.
        shapes: Name -> shape of its tensors.
        device: "cpu" or "cuda:N".
        lineage: Plain JSON for the output's records.
    """

    name: ClassVar[str]
    dim: ClassVar[int]
    shapes: ClassVar[dict[str, tuple[int, ...]]]
    device: str
    lineage: dict[str, Any]

    def __init__(
        self,
        weights: str | Path | Mapping[str, torch.Tensor],
        *,
        device: str,
        default: str,
        filename: str,
        how: str = "",
    ) -> None:
        self.device = resolve_device(device)
        if isinstance(weights, Mapping):
            state = check_state(weights, self.shapes, self.name)
            hashes = {"state_dict": state_sha256(weights)}
        else:
            path = find_file(weights, default, filename, how=how)
            state = check_state(load_state(path), self.shapes, f"{self.name} ({path})")
            hashes = {path.name: sha256(path)}
        self.state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.lineage = lineage_of(self.name, hashes, dtype="float32")

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """A score an embedding.

        Args:
            embeddings: (N, dim) floating point on the head's device, rows of length 1; N may be 0.

        Returns:
            (N,) float32 on the same device. Without gradients.

        Raises:
            ValueError: Another shape, dtype or device.
        """
        import torch

        want = f"{self.name} takes a torch tensor (N, {self.dim}) of floats on {self.device}"
        if not isinstance(embeddings, torch.Tensor) or not embeddings.is_floating_point():
            raise ValueError(f"{want}; got {getattr(embeddings, 'dtype', type(embeddings).__name__)}")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(f"{want}, of CLIP ViT-L/14; got {tuple(embeddings.shape)}")
        if str(embeddings.device) != self.device:
            raise ValueError(f"{want}; these lie on {embeddings.device}")
        out = torch.empty(len(embeddings), dtype=torch.float32, device=embeddings.device)
        with torch.inference_mode():
            out.copy_(self.score(embeddings.float())[:, 0])
        return out

    @abstractmethod
    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, dim) float32 to (N, 1)."""

"""LAION's improved aesthetic predictor on embeddings of CLIP ViT-L/14."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from curator_dali.models.head import Head

if TYPE_CHECKING:
    import torch

__all__ = ["AestheticPredictor"]

MODEL = "ttj/sac-logos-ava1-l14-linearMSE"
FILE = "model.safetensors"

_WIDTHS = (768, 1024, 128, 64, 16, 1)
_PLACES = (0, 2, 4, 6, 7)  # of the linear layers in the published Sequential; dropouts lie between the first four


class AestheticPredictor(Head):
    """How pleasing an image is, about 1 (not) to 10 (very), from its CLIP ViT-L/14 embedding.

    The MLP 768-1024-128-64-16-1 of https://github.com/christophschuhmann/improved-aesthetic-predictor
    (sac+logos+ava1-l14-linearMSE), in float32. It has dropouts, which are off, and no activations.

    Args:
        weights: The file (model.safetensors, or the .pth of the original), its folder, a folder of models in NeMo
            Curator's layout, a hub id, or the tensors under their names.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        WeightsNotFoundError: No such file; says where it was looked for and how to get it.
        WeightsError: The file holds something else.
    """

    name = MODEL
    dim = _WIDTHS[0]
    shapes: ClassVar = {
        f"layers.{place}.{kind}": shape
        for place, inputs, outputs in zip(_PLACES, _WIDTHS[:-1], _WIDTHS[1:], strict=True)
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
    }

    def __init__(self, weights: str | Path | Mapping[str, torch.Tensor] = MODEL, *, device: str = "auto") -> None:
        super().__init__(weights, device=device, default=MODEL, filename=FILE)

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:  # noqa: D102
        import torch.nn.functional as F

        for place in _PLACES:
            embeddings = F.linear(embeddings, self.state[f"layers.{place}.weight"], self.state[f"layers.{place}.bias"])
        return embeddings

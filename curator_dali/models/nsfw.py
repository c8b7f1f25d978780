"""LAION's NSFW classifier on embeddings of CLIP ViT-L/14."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from curator_dali.models.head import Head

if TYPE_CHECKING:
    import torch

__all__ = ["NSFWClassifier"]

MODEL = "laion/clip-autokeras-binary-nsfw"
FILE = "clip_autokeras_binary_nsfw.pth"
_HOW = (
    "It is on no hub: download and unzip "
    "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/files/10250461/clip_autokeras_binary_nsfw.zip "
    f"into MODELS/{MODEL}/, and give MODELS"
)

_WIDTHS = (768, 64, 512, 256, 1)


class NSFWClassifier(Head):
    """The probability that an image is not safe for work, from its CLIP ViT-L/14 embedding.

    The network of https://github.com/LAION-AI/CLIP-based-NSFW-Detector (clip_autokeras_binary_nsfw): normalisation by
    stored mean and variance, then 768-64-512-256-1 with ReLUs and a sigmoid at the end, in float32.

    Args:
        weights: The file (clip_autokeras_binary_nsfw.pth), its folder, a folder of models in NeMo Curator's layout, or
            the tensors under their names.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        WeightsNotFoundError: No such file; says where it was looked for and how to get it.
        WeightsError: The file holds something else.
    """

    name = MODEL
    dim = _WIDTHS[0]
    shapes: ClassVar = {"norm.mean": (768,), "norm.variance": (768,)} | {
        f"linear_{i}.{kind}": shape
        for i, (inputs, outputs) in enumerate(pairwise(_WIDTHS), 1)
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
    }

    def __init__(self, weights: str | Path | Mapping[str, torch.Tensor] = MODEL, *, device: str = "auto") -> None:
        super().__init__(weights, device=device, default=MODEL, filename=FILE, how=_HOW)

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:  # noqa: D102
        import torch.nn.functional as F

        state = self.state
        x = (embeddings - state["norm.mean"]) / state["norm.variance"].sqrt()
        for i in range(1, len(_WIDTHS)):
            x = F.linear(x, state[f"linear_{i}.weight"], state[f"linear_{i}.bias"])
            x = F.relu(x) if i < len(_WIDTHS) - 1 else x.sigmoid()
        return x

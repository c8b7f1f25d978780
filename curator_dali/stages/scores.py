"""`Aesthetic` and `NSFW`: scores from heads on CLIP's embeddings, or from a network of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dali.batch.batch import ImageBatch
from curator_dali.stages.base import Stage, View, checked_stage
from curator_dali.stages.embed import refuse_width

if TYPE_CHECKING:
    import torch

__all__ = ["NSFW", "OPEN_NSFW", "Aesthetic"]

OPEN_NSFW = "open-nsfw"


@checked_stage
@dataclass(frozen=True)
class Aesthetic(Stage):
    """Write `aesthetic_score` (float32): LAION's improved aesthetic predictor, about 1 to 10.

    Reads embeddings of CLIP ViT-L/14. NaN where an embedding has NaNs.

    Args:
        model: What `curator_dali.models.AestheticPredictor` takes: a file, its folder, a folder of models, a hub id.
    """

    model: str | Path = "ttj/sac-logos-ava1-l14-linearMSE"

    @property
    def reads(self) -> frozenset[str]:
        """The embeddings."""
        return frozenset(["embeddings"])

    @property
    def writes(self) -> Mapping[str, str]:
        """The score."""
        return {"aesthetic_score": "float32"}

    @property
    def lineage(self) -> dict[str, Any]:
        """The head's."""
        return dict(self.state[1].lineage)

    def setup(self, device: str) -> None:
        """Load the head; see `Stage.setup`."""
        if not self._is_set_up(device):
            from curator_dali.models.scorers import AestheticPredictor

            self._keep((device, AestheticPredictor(self.model, device=device)))

    def connect(self, before: Sequence[Stage]) -> None:
        """Refuse embeddings of another width."""
        refuse_width(self, self.state[1].dim, before)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the score, as a column and to each image."""
        return _add(batch, "aesthetic_score", self.state[1](batch.to_torch("embeddings")))


@checked_stage
@dataclass(frozen=True)
class NSFW(Stage):
    """Write `nsfw_score` (float32): the probability, 0 to 1, that an image is not safe for work.

    Args:
        model: "open-nsfw" for Yahoo's network, which looks at the pixels; or what `curator_dali.models.NSFWClassifier`
            takes for LAION's head, which reads embeddings of CLIP ViT-L/14: a file, its folder, a folder of models.
    """

    model: str | Path = OPEN_NSFW

    @property
    def reads(self) -> frozenset[str]:
        """The embeddings, for LAION's head."""
        return frozenset() if self.model == OPEN_NSFW else frozenset(["embeddings"])

    @property
    def writes(self) -> Mapping[str, str]:
        """The score."""
        return {"nsfw_score": "float32"}

    @property
    def views(self) -> tuple[View, ...]:
        """What OpenNSFW looks at; none for LAION's head."""
        return (tuple(self.state[1].view),) if self.model == OPEN_NSFW else ()

    @property
    def lineage(self) -> dict[str, Any]:
        """The network's."""
        return dict(self.state[1].lineage)

    def setup(self, device: str) -> None:
        """Load the network; see `Stage.setup`."""
        if self._is_set_up(device):
            return
        from curator_dali import models

        if self.model == OPEN_NSFW:
            self._keep((device, models.OpenNSFW(device=device)))
        else:
            self._keep((device, models.NSFWClassifier(self.model, device=device)))

    def connect(self, before: Sequence[Stage]) -> None:
        """Refuse embeddings of another width."""
        if self.model != OPEN_NSFW:
            refuse_width(self, self.state[1].dim, before)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the score, as a column and to each image."""
        what = self.views[0] if self.model == OPEN_NSFW else "embeddings"
        return _add(batch, "nsfw_score", self.state[1](batch.to_torch(what)))


def _add(batch: ImageBatch, name: str, scores: torch.Tensor) -> ImageBatch:
    """One transfer of N numbers, which also waits for the device."""
    values = scores.cpu().numpy().astype(np.float32, copy=False)
    batch.columns[name] = values
    for item, value in zip(batch.data, values.tolist(), strict=True):
        setattr(item, name, value)
    return batch

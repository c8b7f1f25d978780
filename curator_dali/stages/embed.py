"""`Embed`: images to embeddings, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali import arrays
from curator_dali.batch.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.stages.base import Stage, View, checked_stage

if TYPE_CHECKING:
    from curator_dali.models.base import ImageEncoder

__all__ = ["Embed", "embedder_of", "refuse_width"]


@checked_stage
@dataclass(frozen=True)
class Embed(Stage):
    """Fill `batch.embeddings`: (N, D) float32, each of length 1.

    Args:
        model: What `curator_dali.models.load_encoder` takes: a local directory or hub id of a CLIP or SigLIP model,
            "efficientnet-lite0", "timm:NAME", or an `ImageEncoder`.
        options: Further arguments of `load_encoder`.
    """

    model: str | Path | ImageEncoder
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def writes(self) -> Mapping[str, str]:
        """The embeddings."""
        return {"embeddings": "float32"}

    @property
    def encoder(self) -> ImageEncoder:
        """The model, once `setup` has loaded it."""
        encoder: ImageEncoder = self.state[1]
        return encoder

    @property
    def dim(self) -> int:
        """The encoder's."""
        return self.encoder.dim

    @property
    def views(self) -> tuple[View, ...]:
        """The encoder's."""
        return (tuple(self.encoder.view),)

    @property
    def lineage(self) -> dict[str, Any]:
        """The encoder's."""
        return dict(self.encoder.lineage)

    def setup(self, device: str) -> None:
        """Load the encoder.

        Raises:
            CuratorDaliError: There are no such weights; the message says where they were looked for.
            ImportError: A package that the encoder needs is missing.
        """
        if not self._is_set_up(device):
            from curator_dali.models.backbones import load_encoder

            self._keep((device, load_encoder(self.model, device=device, **self.options)))

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Embed the encoder's view of a batch."""
        batch.embeddings = arrays.from_torch(self.encoder(batch.to_torch(self.views[0])))
        return batch


def embedder_of(stage: Stage, before: Sequence[Stage]) -> Stage:
    """The stage whose embeddings `stage` gets.

    Raises:
        StageError: There is none.
    """
    for earlier in reversed(before):
        if "embeddings" in earlier.writes:
            return earlier
    raise StageError(f"{stage.name} reads the embeddings, which no stage before it writes; put Embed before it")


def refuse_width(stage: Stage, dim: int, before: Sequence[Stage]) -> None:
    """Refuse embeddings that a head was not made for.

    Args:
        stage: What has the head.
        dim: The width it was made for.
        before: The stages before it.

    Raises:
        StageError: `Embed` gives another width.
    """
    source = embedder_of(stage, before)
    if source.dim != dim:
        by = f"{source.name}'s {source.encoder.name!r}" if isinstance(source, Embed) else source.name
        raise StageError(
            f"{stage.name} was made for embeddings of {dim} numbers, and {by} gives {source.dim}; "
            "embed with the model that it was trained on (LAION's heads: CLIP ViT-L/14)"
        )

"""`CLIPScore` and `ZeroShotTags`: images against texts, in the space that CLIP or SigLIP embeds both into."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from curator_dali.arguments import Limits
from curator_dali.batch.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.stages.base import Stage, checked_stage
from curator_dali.stages.embed import Embed, embedder_of

if TYPE_CHECKING:
    from curator_dali.models.base import ImageEncoder

__all__ = ["CLIPScore", "ZeroShotTags"]


@checked_stage
@dataclass(frozen=True)
class CLIPScore(Stage):
    """Write `clip_score` (float32): the cosine between an image and its caption, -1 to 1.

    The similarity of Hessel et al., "CLIPScore", 2021, as LAION and DataComp filter by it: without that paper's factor
    of 2.5 and without cutting off below 0. NaN where there is no caption. Texts are embedded by the model of the
    `Embed` before this stage.

    Args:
        caption: The field with the caption.
    """

    caption: str = "caption"

    @property
    def reads(self) -> frozenset[str]:
        """The embeddings and the caption."""
        return frozenset(["embeddings", self.caption])

    @property
    def writes(self) -> Mapping[str, str]:
        """The score."""
        return {"clip_score": "float32"}

    def connect(self, before: Sequence[Stage]) -> None:
        """Take the text tower of the encoder before it.

        Raises:
            StageError: There is none.
        """
        self._keep(_text_encoder(self, before))

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the score."""
        encoder: ImageEncoder = self.state
        captions = batch.values(self.caption).tolist()
        rows = [row for row, text in enumerate(captions) if isinstance(text, str) and text.strip()]
        scores = np.full(len(batch), np.nan, np.float32)
        if rows:
            texts = encoder.encode_text([captions[row] for row in rows])
            images = batch.to_torch("embeddings")[rows]
            scores[rows] = (images * texts).sum(1).cpu().numpy()
        batch.columns["clip_score"] = scores
        return batch


@checked_stage
@dataclass(frozen=True)
class ZeroShotTags(Stage):
    """Write `tag` (string), the best of some tags for each image, and `tag_score` (float32), its probability.

    The zero-shot classifier of Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", 2021: a tag's vector is the mean over the prompts, and the probabilities are the softmax of the
    cosines times `scale`, so they sum to one over the tags whether any of them fits or not.

    Args:
        tags: Two or more.
        prompts: Texts with `{}` for the tag.
        scale: What cosines are multiplied with; CLIP learnt 100.
        all_scores: Whether to write every tag's probability too, as `tag_<tag>`.

    Raises:
        StageError: Fewer than two tags, one twice, or a prompt without exactly one `{}`.
    """

    tags: Annotated[Sequence[str], Limits("a list of texts")]
    prompts: Annotated[Sequence[str], Limits("a list of texts")] = ("a photo of a {}.",)
    scale: float = 100.0
    all_scores: bool = False

    def __post_init__(self) -> None:
        for name in ("tags", "prompts"):
            value = getattr(self, name)
            if not all(isinstance(text, str) and text for text in value):
                raise StageError(f"ZeroShotTags.{name} is {value!r}; give a list of texts")
            object.__setattr__(self, name, tuple(value))
        if len(self.tags) < 2 or len(set(self.tags)) < len(self.tags):
            raise StageError(f"ZeroShotTags.tags are {list(self.tags)}; give two or more, each once")
        wrong = [text for text in self.prompts if _placeholders(text) != [""]]
        if wrong or not self.prompts:
            raise StageError(f"ZeroShotTags.prompts has {wrong[:1]}; each must have one {{}} in the tag's place")

    @property
    def reads(self) -> frozenset[str]:
        """The embeddings."""
        return frozenset(["embeddings"])

    @property
    def writes(self) -> Mapping[str, str]:
        """The tag and its probability, and where asked for everybody's."""
        every = {f"tag_{tag}": "float32" for tag in self.tags} if self.all_scores else {}
        return {"tag": "string", "tag_score": "float32", **every}

    def connect(self, before: Sequence[Stage]) -> None:
        """Embed the tags with the text tower of the encoder before it.

        Raises:
            StageError: There is none.
        """
        import torch

        encoder = _text_encoder(self, before)
        texts = [prompt.format(tag) for tag in self.tags for prompt in self.prompts]
        vectors = encoder.encode_text(texts).view(len(self.tags), len(self.prompts), -1).mean(1)
        self._keep(torch.nn.functional.normalize(vectors, dim=1))

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the tag and its probability."""
        shares = (self.scale * batch.to_torch("embeddings") @ self.state.T).softmax(1).cpu().numpy()
        best = shares.argmax(1)
        batch.columns["tag"] = np.array(self.tags, object)[best]
        batch.columns["tag_score"] = shares[np.arange(len(best)), best]
        if self.all_scores:
            batch.columns.update({f"tag_{tag}": shares[:, number].copy() for number, tag in enumerate(self.tags)})
        return batch


def _placeholders(text: str) -> list[Any]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:  # a single brace
        return []


def _text_encoder(stage: Stage, before: Sequence[Stage]) -> ImageEncoder:
    source = embedder_of(stage, before)
    if not isinstance(source, Embed) or not source.encoder.has_text:
        name = repr(source.encoder.name) if isinstance(source, Embed) else source.name
        raise StageError(
            f"{stage.name} compares images with texts, and {name} embeds images only; "
            "embed with a CLIP or SigLIP model that has its text tower and tokenizer"
        )
    return source.encoder

"""`Embed`, and the stages on embeddings: `Aesthetic`, `NSFW`, `CLIPScore`, `ZeroShotTags`."""

from __future__ import annotations

import string
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from curator_dali import arrays
from curator_dali.arguments import Limits
from curator_dali.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.stages.base import Prepared, Stage, View, checked_stage

if TYPE_CHECKING:
    import torch

    from curator_dali.models import ImageEncoder

_OPEN_NSFW = "open-nsfw"


class _ModelStage(Stage):
    """A stage with a network, which is on the device of `setup`."""

    @abstractmethod
    def _load(self, device: str) -> Any:
        """Load the network, which has a `lineage`."""

    @property
    def lineage(self) -> dict[str, Any]:
        """The network's."""
        return dict(self.state.model.lineage)

    def setup(self, device: str) -> None:
        """Load the network.

        Raises:
            CuratorDaliError: There are no such weights; the message says where they were looked for.
            ImportError: A package that the network needs is missing.
        """
        if not self._is_set_up(device):
            self._keep(Prepared(device, self._load(device)))


@checked_stage
@dataclass(frozen=True)
class Embed(_ModelStage):
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
        encoder: ImageEncoder = self.state.model
        return encoder

    @property
    def dim(self) -> int:
        """The encoder's."""
        return self.encoder.dim

    @property
    def views(self) -> tuple[View, ...]:
        """The encoder's."""
        return (tuple(self.encoder.view),)

    def _load(self, device: str) -> ImageEncoder:
        from curator_dali.models import load_encoder

        return load_encoder(self.model, device=device, **self.options)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Embed the encoder's view of a batch."""
        batch.embeddings = arrays.from_torch(self.encoder(batch.to_torch(self.views[0])))
        return batch


@checked_stage
@dataclass(frozen=True)
class Aesthetic(_ModelStage):
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

    def _load(self, device: str) -> Any:
        from curator_dali.models import AestheticPredictor

        return AestheticPredictor(self.model, device=device)

    def connect(self, before: Sequence[Stage]) -> None:
        """Refuse embeddings of another width."""
        _check_width(self, self.state.model.dim, before)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the score, as a column and to each image."""
        return _add_score(batch, "aesthetic_score", self.state.model(batch.to_torch("embeddings")))


@checked_stage
@dataclass(frozen=True)
class NSFW(_ModelStage):
    """Write `nsfw_score` (float32): the probability, 0 to 1, that an image is not safe for work.

    Args:
        model: "open-nsfw" for Yahoo's network, which looks at the pixels; or what `curator_dali.models.NSFWClassifier`
            takes for LAION's head, which reads embeddings of CLIP ViT-L/14: a file, its folder, a folder of models.
    """

    model: str | Path = _OPEN_NSFW

    @property
    def reads(self) -> frozenset[str]:
        """The embeddings, for LAION's head."""
        return frozenset() if self.model == _OPEN_NSFW else frozenset(["embeddings"])

    @property
    def writes(self) -> Mapping[str, str]:
        """The score."""
        return {"nsfw_score": "float32"}

    @property
    def views(self) -> tuple[View, ...]:
        """What OpenNSFW looks at; none for LAION's head."""
        return (tuple(self.state.model.view),) if self.model == _OPEN_NSFW else ()

    def _load(self, device: str) -> Any:
        from curator_dali import models

        if self.model == _OPEN_NSFW:
            return models.OpenNSFW(device=device)
        return models.NSFWClassifier(self.model, device=device)

    def connect(self, before: Sequence[Stage]) -> None:
        """Refuse embeddings of another width."""
        if self.model != _OPEN_NSFW:
            _check_width(self, self.state.model.dim, before)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the score, as a column and to each image."""
        looked_at = self.views[0] if self.model == _OPEN_NSFW else "embeddings"
        return _add_score(batch, "nsfw_score", self.state.model(batch.to_torch(looked_at)))


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


def embedder_of(stage: Stage, before: Sequence[Stage]) -> Stage:
    """The stage whose embeddings `stage` gets.

    Raises:
        StageError: There is none.
    """
    for earlier in reversed(before):
        if "embeddings" in earlier.writes:
            return earlier
    raise StageError(f"{stage.name} reads the embeddings, which no stage before it writes; put Embed before it")


def _check_width(stage: Stage, dim: int, before: Sequence[Stage]) -> None:
    """Refuse embeddings of another width than `dim`, for which the stage's head was made."""
    source = embedder_of(stage, before)
    if source.dim != dim:
        by = f"{source.name}'s {source.encoder.name!r}" if isinstance(source, Embed) else source.name
        raise StageError(
            f"{stage.name} was made for embeddings of {dim} numbers, and {by} gives {source.dim}; "
            "embed with the model that it was trained on (LAION's heads: CLIP ViT-L/14)"
        )


def _text_encoder(stage: Stage, before: Sequence[Stage]) -> ImageEncoder:
    source = embedder_of(stage, before)
    if not isinstance(source, Embed) or not source.encoder.has_text:
        name = repr(source.encoder.name) if isinstance(source, Embed) else source.name
        raise StageError(
            f"{stage.name} compares images with texts, and {name} embeds images only; "
            "embed with a CLIP or SigLIP model that has its text tower and tokenizer"
        )
    return source.encoder


def _add_score(batch: ImageBatch, name: str, scores: torch.Tensor) -> ImageBatch:
    """Add (N,) scores as a column and to each image, by one transfer, which also waits for the device."""
    values = scores.cpu().numpy().astype(np.float32, copy=False)
    batch.columns[name] = values
    for item, value in zip(batch.data, values.tolist(), strict=True):
        setattr(item, name, value)
    return batch


def _placeholders(text: str) -> list[Any]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:  # a single brace
        return []

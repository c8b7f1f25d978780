"""Stages that embed, score and compare: what they write, and that pixels stay where they are."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator_dali.batch.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.models import AestheticPredictor, NSFWClassifier
from curator_dali.stages import NSFW, Aesthetic, CLIPScore, Embed, Quality, Stage, ZeroShotTags
from tests.stages.helpers import BlindEncoder, ColourEncoder, batch_of, flat


@dataclass(frozen=True)
class Wide(Stage):
    """Writes embeddings as a CLIP ViT-L/14 would, without being one."""

    @property
    def writes(self) -> dict[str, str]:
        return {"embeddings": "float32"}

    @property
    def dim(self) -> int:
        return 768

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        rows = np.random.default_rng(0).normal(size=(len(batch), 768)).astype(np.float32)
        batch.embeddings = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return batch


def ready(*stages: Stage) -> tuple[Stage, ...]:
    for number, stage in enumerate(stages):
        stage.setup("cpu")
        stage.connect(stages[:number])
    return stages


def through(batch: ImageBatch, stages: Sequence[Stage]) -> ImageBatch:
    for stage in stages:
        batch = stage(batch)
    return batch


def write_head(folder: Path, kind: Any, name: str) -> Path:
    generator = torch.Generator().manual_seed(1)
    state = {key: torch.rand(shape, generator=generator) * 0.05 for key, shape in kind.shapes.items()}
    folder.mkdir()
    if name.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder


def test_embed_gets_the_views_memory_and_gives_rows_of_length_one() -> None:
    encoder = ColourEncoder()
    (embed,) = ready(Embed(encoder))
    assert embed.views == (encoder.view,)
    assert embed.dim == 3
    pixels = flat("red", "blue")
    batch = embed(batch_of(encoder.view, pixels))
    assert encoder.pointers == [pixels.ctypes.data]  # no copy on the way
    assert batch.embeddings.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert embed.lineage == {"model": "colours"}


def test_setup_is_needed_once_and_stays_behind_in_a_pickle() -> None:
    embed = Embed(ColourEncoder())
    with pytest.raises(StageError, match="Embed is not set up"):
        embed.views  # noqa: B018
    embed.setup("cpu")
    encoder = embed.encoder
    embed.setup("cpu")
    assert embed.encoder is encoder
    again = pickle.loads(pickle.dumps(Embed("efficientnet-lite0")))
    assert again == Embed("efficientnet-lite0")
    with pytest.raises(StageError, match="not set up"):
        again.encoder  # noqa: B018


def test_no_stage_asks_for_pixels_on_the_host_or_copies_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ImageBatch, release: bool = False) -> ImageBatch:
        raise AssertionError("a stage called to_host()")

    monkeypatch.setattr(ImageBatch, "to_host", refuse)
    monkeypatch.setattr(ImageBatch, "to_device", refuse)
    monkeypatch.setattr(ImageBatch, "copy", refuse)
    seen: list[int] = []
    original = ImageBatch.to_torch

    def spy(self: ImageBatch, what: Any = "images") -> Any:
        tensor = original(self, what)
        if not isinstance(what, str):
            seen.append(tensor.data_ptr() - self.views[tuple(what)].ctypes.data)
        return tensor

    monkeypatch.setattr(ImageBatch, "to_torch", spy)
    encoder = ColourEncoder()
    heads = Aesthetic(write_head(tmp_path / "a", AestheticPredictor, "model.safetensors"))
    stages = ready(
        Embed(encoder), CLIPScore(), ZeroShotTags(["red", "blue"]), NSFW(), Quality(), Wide(), heads,
    )  # fmt: skip
    batch = batch_of(encoder.view, flat("red", "green", "blue"), [{"caption": "red"}] * 3)
    for view in (stages[3].views[0], Quality.VIEW):
        batch.views[view] = flat("red", "green", "blue", side=224 if view is not Quality.VIEW else 256)
    before = {view: (rows, rows.copy()) for view, rows in batch.views.items()}
    through(batch, stages)
    assert seen == [0, 0, 0]  # Embed, NSFW and Quality, each on the view's own memory
    for view, (rows, content) in before.items():
        assert batch.views[view] is rows
        assert np.array_equal(rows, content)
    assert batch.images is None


def test_heads_score_as_their_models_do(tmp_path: Path) -> None:
    aesthetic = write_head(tmp_path / "a", AestheticPredictor, "model.safetensors")
    nsfw = write_head(tmp_path / "n", NSFWClassifier, "clip_autokeras_binary_nsfw.pth")
    stages = ready(Wide(), Aesthetic(aesthetic), NSFW(nsfw))
    assert not any(stage.views for stage in stages)
    batch = through(batch_of(("none",), flat("red", "blue", "green")), stages)
    rows = torch.from_numpy(batch.embeddings)
    for name, model in (
        ("aesthetic_score", AestheticPredictor(aesthetic, device="cpu")),
        ("nsfw_score", NSFWClassifier(nsfw, device="cpu")),
    ):
        assert batch.columns[name].dtype == np.float32
        assert batch.columns[name].tolist() == model(rows).tolist()
        assert [getattr(item, name) for item in batch.data] == model(rows).tolist()
    assert set(stages[1].lineage["weights"]) == {"model.safetensors"}


def test_a_head_refuses_embeddings_of_another_width_before_work(tmp_path: Path) -> None:
    head = Aesthetic(write_head(tmp_path / "a", AestheticPredictor, "model.safetensors"))
    with pytest.raises(
        StageError, match=r"Aesthetic was made for embeddings of 768 numbers, and Embed's 'colours' gives 3"
    ):
        ready(Embed(ColourEncoder()), head)


def test_clip_score_is_the_cosine_with_the_caption() -> None:
    encoder = ColourEncoder()
    captions: list[dict[str, Any]] = [
        {"caption": "red"}, {"caption": "blue"}, {"caption": "red and blue"}, {"caption": "  "}, {}, {"caption": 3}
    ]  # fmt: skip
    batch = through(batch_of(encoder.view, flat(*["red"] * 6), captions), ready(Embed(encoder), CLIPScore()))
    scores = batch.columns["clip_score"]
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx([1, 0, 0.5**0.5, *[np.nan] * 3], nan_ok=True)


def test_tags_are_the_softmax_over_the_tags() -> None:
    encoder = ColourEncoder()
    tags = ZeroShotTags(["red", "green", "blue"], prompts=["a {} thing", "{}"], scale=2.0, all_scores=True)
    batch = through(batch_of(encoder.view, flat("blue", "green")), ready(Embed(encoder), tags))
    assert batch.columns["tag"].tolist() == ["blue", "green"]
    share = np.exp(2) / (np.exp(2) + 2)
    assert batch.columns["tag_score"].tolist() == pytest.approx([share] * 2)
    assert batch.columns["tag_red"].tolist() == pytest.approx([(1 - share) / 2] * 2)
    assert set(tags.writes) == {"tag", "tag_score", "tag_red", "tag_green", "tag_blue"}


@pytest.mark.parametrize("stage", [CLIPScore(), ZeroShotTags(["a", "b"])])
def test_texts_need_a_text_tower(stage: Stage) -> None:
    with pytest.raises(StageError, match=r"'blind' embeds images only; embed with a CLIP or SigLIP"):
        ready(Embed(BlindEncoder()), stage)
    with pytest.raises(StageError, match="put Embed before it"):
        ready(Quality(), stage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tags": ["a"]}, "two or more, each once"),
        ({"tags": ["a", "a"]}, "two or more, each once"),
        ({"tags": "cats"}, "a list of texts"),
        ({"tags": ["a", "b"], "prompts": ["a photo"]}, "one {} in the tag's place"),
        ({"tags": ["a", "b"], "prompts": ["{} and {"]}, "one {} in the tag's place"),
        ({"tags": ["a", "b"], "prompts": []}, "one {} in the tag's place"),
    ],
)
def test_tags_that_cannot_be_meant(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        ZeroShotTags(**arguments)


def test_a_real_clip_with_both_towers(tmp_path: Path) -> None:
    from tests.models.makers import write_clip

    write_clip(tmp_path / "clip")
    embed, score, tags = ready(Embed(tmp_path / "clip"), CLIPScore(), ZeroShotTags(["cat", "rocket"]))
    batch = batch_of(embed.views[0], flat("red", "blue", side=32), [{"caption": "a cat"}, {"caption": "a rocket"}])
    through(batch, (embed, score, tags))
    texts = embed.encoder.encode_text(["a cat", "a rocket"]).numpy()
    assert batch.columns["clip_score"].tolist() == pytest.approx((batch.embeddings * texts).sum(1).tolist(), abs=1e-6)
    assert set(batch.columns["tag"]) <= {"cat", "rocket"}

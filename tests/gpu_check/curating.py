"""Decode, CLIP and two heads: against the model alone, and against NeMo Curator's stages on the same weights."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import curator_dali as cd
from curator_dali.models import AestheticPredictor, CLIPImageEncoder, NSFWClassifier
from tests.gpu_check.settings import Settings
from tests.gpu_check.speed import OURS, Case, again, base, compare, ratio

IMAGES = 16_384  # a run of curate() is timed whole: its start should not count for much
ALONE, NEMO = "the model alone", "NeMo Curator's stages"
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
"""CLIP ViT-L/14's image tower."""
SMALL = LARGE | {"num_hidden_layers": 1, "patch_size": 32, "intermediate_size": 64}


def make_models(settings: Settings) -> Path:
    """A folder of models with random weights in NeMo Curator's layout; CLIP is one layer deep in a rehearsal."""
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from tests.models import makers

    folder = settings.work / ("models-small" if settings.rehearse else "models")
    if folder.is_dir():
        return folder
    partial = folder.with_suffix(".partial")
    tower = SMALL if settings.rehearse else LARGE
    clip, head, nsfw = (partial / name for name in ("clip", "aesthetic", "nsfw"))
    for one in (clip, head, nsfw):
        one.mkdir(parents=True, exist_ok=True)
    makers.write_processor(clip, size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    makers.save(CLIPVisionModelWithProjection, CLIPVisionConfig(**tower, projection_dim=768), clip)
    generator = torch.Generator().manual_seed(0)
    for kind, path in ((AestheticPredictor, head / "model.safetensors"), (NSFWClassifier, nsfw / "model.safetensors")):
        save_file({name: torch.rand(shape, generator=generator) / 20 for name, shape in kind.shapes.items()}, path)
    partial.rename(folder)
    return folder


def section(settings: Settings) -> dict[str, Any]:
    """Rates, and ours over the others'."""
    folder = make_models(settings)
    encoder = CLIPImageEncoder(folder / "clip", device=settings.device, dtype="bfloat16" if settings.gpu else "float32")
    case = base(settings, ahead=2)
    stages = [
        cd.Embed(encoder),
        cd.Aesthetic(folder / "aesthetic" / "model.safetensors"),
        cd.NSFW(folder / "nsfw" / "model.safetensors"),
    ]

    @contextmanager
    def alone(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
        images = torch.randint(0, 255, (case.batch, 224, 224, 3), dtype=torch.uint8, device=settings.device)
        yield again(lambda: iter([len(encoder(images))]))

    @contextmanager
    def curated(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
        shards = settings.shards(case.size, images=IMAGES)

        def run() -> Iterator[int]:
            out = settings.work / f"curated-{time.time_ns()}"
            options = {"device": settings.device, "batch_size": case.batch, "num_threads": case.threads}
            yield int(cd.curate(shards, out, stages=stages, **options).samples)
            shutil.rmtree(out)

        yield again(run)

    results = compare(settings, {OURS: curated, ALONE: alone, NEMO: _nemo(folder)}, case)
    bars = {"x the model alone": (ratio(results, ALONE), 0.95), "x NeMo Curator": (ratio(results, NEMO), 5)}
    return {"rows": {"decode + CLIP + two heads": results}, "bars": bars}


def _nemo(folder: Path) -> Any:
    """NeMo Curator's reader and embedding, where it imports: without its heads, so in its favour."""

    @contextmanager
    def open_stages(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
        from nemo_curator.stages.image.embedders.clip_embedder import ImageEmbeddingStage
        from nemo_curator.stages.image.io.image_reader import ImageReaderStage
        from nemo_curator.tasks import FileGroupTask

        layout = folder / "openai"
        layout.mkdir(exist_ok=True)
        if not (layout / "clip-vit-large-patch14").exists():
            (layout / "clip-vit-large-patch14").symlink_to(folder / "clip")
        reader = ImageReaderStage(num_threads=case.threads)
        embedder = ImageEmbeddingStage(model_dir=str(folder), model_inference_batch_size=case.batch)
        embedder.setup()
        shards = settings.shards(case.size)

        def run() -> Iterator[int]:
            tasks = [FileGroupTask(dataset_name="shards", data=[shard]) for shard in shards]
            return (len(embedder.process(batch).data) for task in tasks for batch in reader.process(task))

        yield again(run)

    return open_stages

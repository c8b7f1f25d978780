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
from curator_dali.models import CLIPImageEncoder
from tests.benchmarks.curation import HIGH, LOW, mend
from tests.gpu_check.settings import Settings
from tests.gpu_check.speed import OURS, Case, again, base, compare, ratio
from tests.nemo_layout import CLIP

IMAGES = 16_384  # a run of curate() is timed whole: its start should not count for much
ALONE, NEMO = "the model alone", "NeMo Curator's stages"


def section(settings: Settings) -> dict[str, Any]:
    """Rates, and ours over the others'."""
    folder = settings.models()
    encoder = CLIPImageEncoder(folder / CLIP, device=settings.device, dtype="bfloat16" if settings.gpu else "float32")
    case = base(settings, ahead=2)
    stages = [cd.Embed(encoder), cd.Aesthetic(folder), cd.NSFW(folder)]

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

    results = compare(settings, {OURS: curated, ALONE: alone, NEMO: _nemo(folder)}, case, trace=True)
    bars = {"x the model alone": (ratio(results, ALONE), 0.95), "x NeMo Curator": (ratio(results, NEMO), 5)}
    return {"rows": {"decode + CLIP + two heads": results}, "bars": bars}


def _nemo(folder: Path) -> Any:
    """NeMo Curator's reader, embedding and heads, where they import. Nothing is written, which is in their favour."""

    @contextmanager
    def open_stages(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
        mend()
        from nemo_curator.stages.image.embedders import ImageEmbeddingStage
        from nemo_curator.stages.image.filters import ImageAestheticFilterStage, ImageNSFWFilterStage
        from nemo_curator.stages.image.io.image_reader import ImageReaderStage
        from nemo_curator.tasks import FileGroupTask

        models = str(folder)
        stages: list[Any] = [
            ImageReaderStage(num_threads=case.threads),
            ImageEmbeddingStage(model_dir=models, model_inference_batch_size=case.batch),
            ImageAestheticFilterStage(model_dir=models, score_threshold=LOW),
            ImageNSFWFilterStage(model_dir=models, score_threshold=HIGH),
        ]
        for stage in stages:
            stage.setup()
        shards = settings.shards(case.size)

        def run() -> Iterator[int]:
            for shard in shards:
                tasks: list[Any] = [FileGroupTask(dataset_name="shards", data=[shard])]
                for stage in stages:
                    made = [stage.process(task) for task in tasks]
                    tasks = [one for some in made for one in (some if isinstance(some, list) else [some])]
                yield sum(len(task.data) for task in tasks)

        yield again(run)

    return open_stages

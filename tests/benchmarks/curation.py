"""Shards to a curated data set, here and in NeMo Curator: embed, two scores, filter, write. A program, not a test.

    python -m tests.benchmarks.curation --python NEMO/bin/python         # 400 photographs of 640x480, ViT-B/32
    python -m tests.benchmarks.curation --python NEMO/bin/python --ray   # with NeMo Curator's RayDataExecutor too
    python -m tests.benchmarks.curation --python NEMO/bin/python --bad   # one image is none: who gets to the end

NEMO is an environment with nemo-curator, DALI and torchvision (docs/nemo.md). All rows run in it, on the same shards,
with the same seeded random weights and the same thresholds, which every image passes; each in a process of its own
that is bound to `--threads` CPUs, all in turn, round after round.

What is done to NeMo Curator for it to run without a GPU, and what is not its own:
- its reader's pipeline asks for the first GPU whether there is one or not: `device_id=None`;
- with transformers 5 its embedding fails, as `get_image_features` gives an object there: its `pooler_output` is
  taken. With transformers 4.57 nothing is changed;
- where torchvision's operators cannot be loaded (a CUDA build of it beside a CPU build of torch) they are declared,
  so that it imports; of its transforms, which it uses only for images of one size, none needs them.

`run` is from the first byte to the last file, weights loaded. Rows in a Pipeline include that of Ray's start and of
the weights, in `run` too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks import corpus
from tests.benchmarks.harness import ROOT, Job, Usage, in_child, spread, tree_usage
from tests.benchmarks.loading import table
from tests.helpers import write_shards

WORK = ROOT / ".bench"
MODELS = WORK / "curation-models"
BATCH = 32  # NeMo Curator's model_inference_batch_size
LOW, HIGH = -1e9, 2.0  # thresholds: every image passes, so that all rows write the same

OURS = "curator_dali.curate()"
OURS_DALI = "DaliCurationStage, ImageWriterStage"
NEMO = "NeMo Curator's stages, called in turn"
OURS_RAY = "DaliCurationStage, ImageWriterStage: RayDataExecutor"
NEMO_RAY = "NeMo Curator's Pipeline: RayDataExecutor"


def build(folder: Path, images: int, bad: bool) -> None:
    """Four tars of photographs of 640x480; with `bad`, the last image but ten is a web page."""
    rng = random.Random(11)
    photos = [path for path, width, height in corpus.photographs(None) if width >= 640 and height >= 480]
    samples = []
    for i in range(images):
        data = corpus.make(corpus.Crop(rng.choice(photos), (640, 480), rng.getrandbits(48)))
        if bad and i == images - 10:
            data = b"<!DOCTYPE html><title>404 Not Found</title>"
        samples.append((f"{i:06d}", {"jpg": data, "json": json.dumps({"number": i}).encode(), "txt": b"a photograph"}))
    write_shards(folder, samples, per_shard=-(-images // 4))


def embedding(models: Path) -> Any:
    from tests.nemo_layout import CLIP

    return models / CLIP


def our_stages() -> list[Any]:
    import curator_dali as cd

    stages = [cd.Embed(embedding(MODELS)), cd.Aesthetic(MODELS), cd.NSFW(MODELS)]
    return [*stages, cd.Filter("aesthetic_score", min=LOW), cd.Filter("nsfw_score", max=HIGH)]


@contextmanager
def ours(job: Job, out: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    from curator_dali.curation import Curation

    with Curation(
        job.shards, out, stages=our_stages(), device="cpu", batch_size=BATCH, num_threads=job.threads
    ) as curation:

        def run() -> dict[str, Any]:
            curation.run()
            return {}

        yield run


def fused(job: Job) -> Any:
    from curator_dali.nemo import DaliCurationStage

    return DaliCurationStage(
        our_stages(), keep_images=True, device="cpu", num_threads=job.threads, dali_batch_size=BATCH
    )


def writer(out: Path) -> Any:
    from nemo_curator.stages.image.io.image_writer import ImageWriterStage

    return ImageWriterStage(output_dir=str(out), images_per_tar=1000, remove_image_data=True)


def their_stages(job: Job, out: Path) -> list[Any]:
    mend()
    from nemo_curator.stages.image.embedders import ImageEmbeddingStage
    from nemo_curator.stages.image.filters import ImageAestheticFilterStage, ImageNSFWFilterStage
    from nemo_curator.stages.image.io.image_reader import ImageReaderStage

    return [
        ImageReaderStage(num_threads=job.threads, dali_batch_size=100),
        ImageEmbeddingStage(model_dir=str(MODELS), model_inference_batch_size=BATCH),
        ImageAestheticFilterStage(model_dir=str(MODELS), score_threshold=LOW),
        ImageNSFWFilterStage(model_dir=str(MODELS), score_threshold=HIGH),
        writer(out),
    ]


def mend() -> None:
    """See the top. In every process that runs NeMo Curator's reader or embedding; once."""
    import nvidia.dali
    import torch
    import transformers

    if hasattr(nvidia.dali, "mended"):
        return
    nvidia.dali.mended = True
    define = nvidia.dali.pipeline_def
    if not torch.cuda.is_available():
        nvidia.dali.pipeline_def = lambda **options: define(**{**options, "device_id": None})
    if int(transformers.__version__.split(".")[0]) >= 5:
        features = transformers.CLIPModel.get_image_features
        transformers.CLIPModel.get_image_features = lambda self, **given: features(self, **given).pooler_output


def import_torchvision() -> None:
    """Import it where its operators cannot be loaded too: transformers uses it wherever it lies, and fails with it."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys.modules["torchvision_operators"] = library  # type: ignore[assignment] # declared while it lives
        import torchvision  # noqa: F401
    except ImportError:
        pass


def chained(make: Callable[[Job, Path], list[Any]]) -> Any:
    """Stages called one after the other, a shard a task; the seconds of each."""

    @contextmanager
    def open_stages(job: Job, out: Path) -> Iterator[Callable[[], dict[str, Any]]]:
        from nemo_curator.tasks import FileGroupTask

        stages = make(job, out)
        for stage in stages:
            stage.setup()

        def run() -> dict[str, Any]:
            seconds = dict.fromkeys((stage.name for stage in stages), 0.0)
            for shard in job.shards:
                tasks: list[Any] = [FileGroupTask(dataset_name="photos", data=[shard])]
                for stage in stages:
                    began = time.perf_counter()
                    made = [stage.process(task) for task in tasks]
                    tasks = [one for some in made for one in (some if isinstance(some, list) else [some])]
                    seconds[stage.name] += time.perf_counter() - began
            return {"stages": seconds}

        yield run
        for stage in stages:
            stage.teardown()

    return open_stages


def piped(make: Callable[[Job, Path], list[Any]]) -> Any:
    """The same stages in a Pipeline on RayDataExecutor, one worker a stage."""

    @contextmanager
    def open_pipeline(job: Job, out: Path) -> Iterator[Callable[[], dict[str, Any]]]:
        import ray
        from nemo_curator.backends.ray_data import RayDataExecutor
        from nemo_curator.pipeline import Pipeline
        from nemo_curator.tasks import FileGroupTask

        os.environ["PYTHONPATH"] = str(ROOT)
        pipeline = Pipeline("photos", stages=[stage.with_(num_workers=1) for stage in make(job, out)])
        tasks = [FileGroupTask(dataset_name="photos", data=[shard]) for shard in job.shards]

        def run() -> dict[str, Any]:
            with tree_usage() as used:
                ray.init(
                    "local", num_cpus=8, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False,
                    runtime_env={"worker_process_setup_hook": "tests.benchmarks.curation.in_worker"},
                )  # fmt: skip
                pipeline.run(RayDataExecutor(), initial_tasks=tasks)  # ends Ray too
            return used

        yield run

    return open_pipeline


def in_worker() -> None:
    """What `measure` does for its own process, in a worker of Ray's."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    import_torchvision()
    mend()


ROWS: dict[str, Any] = {
    OURS: ours,
    OURS_DALI: chained(lambda job, out: [fused(job), writer(out)]),
    NEMO: chained(their_stages),
    OURS_RAY: piped(lambda job, out: [fused(job), writer(out)]),
    NEMO_RAY: piped(their_stages),
}


def measure(job: Job) -> dict[str, Any]:
    """One row in this process: a run after its weights are loaded. What it wrote is counted, then removed."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    import torch

    torch.set_num_threads(job.threads)
    import_torchvision()
    silence()
    out = WORK / "curation-out" / str(os.getpid())
    out.mkdir(parents=True)
    try:
        began = time.perf_counter()
        with ROWS[job.row](job, out) as run:
            setup = time.perf_counter() - began
            before = Usage.now()
            result = run()
            after = Usage.now()
        count = written(out)
    finally:
        shutil.rmtree(out)
    wall = after.wall - before.wall
    cpu = result.pop("cpu", after.cpu - before.cpu)
    return {
        "row": job.row, "setup": setup, "images": count, "run": wall, "rate": count / wall, "cpu_ms": 1e3 * cpu / count,
        "others": max(0.0, after.machine - before.machine - cpu) / wall, **versions(), **result,
    }  # fmt: skip


def silence() -> None:
    """Keep logs off the one line that the parent reads, and out of the time."""
    try:
        from loguru import logger

        logger.remove()
    except ImportError:
        pass


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "transformers", "torchvision", "nemo-curator", "nvidia-dali-cuda120"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return {"versions": json.dumps(found)}


def written(out: Path) -> int:
    import tarfile

    count = 0
    for path in out.rglob("*.tar"):
        with tarfile.open(path) as tar:
            count += sum(name.endswith(".jpg") for name in tar.getnames())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of an environment with nemo-curator")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"parts of names; of: {'; '.join(ROWS)}")
    parser.add_argument("--ray", action="store_true", help="also the rows on RayDataExecutor")
    parser.add_argument("--bad", action="store_true", help="one of the images is none")
    parser.add_argument("--json", type=Path, help="default: .bench/curation-TIME.json")
    args = parser.parse_args()

    folder = WORK / f"curation-{args.images}{'-bad' if args.bad else ''}"
    if not list(folder.glob("*.tar")):
        build(folder, args.images, args.bad)
    if not (MODELS / "laion").is_dir():
        from tests.nemo_layout import VIT_B_32, write_models

        write_models(MODELS, VIT_B_32)
    names = [name for name in ROWS if args.ray or "RayData" not in name]
    names = [name for name in ROWS if any(part in name for part in args.rows)] if args.rows else names
    shards = [str(path) for path in sorted(folder.resolve().glob("*.tar"))]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for i in range(args.rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            job = Job(name, shards, args.threads, str(WORK / "cache"))
            answer = in_child("tests.benchmarks.curation:measure", job, args.python)
            results[name].append(answer)
            told = answer.get("failed") or f"{answer['rate']:.1f} img/s, {answer['images']} images"
            print(f"round {i + 1}/{args.rounds}  {name}: {told}", file=sys.stderr, flush=True)
    lines = []
    for name, found in results.items():
        good = [one for one in found if "failed" not in one]
        if not good:
            lines.append([name, found[0]["failed"], "", "", "", ""])
            continue
        to = NEMO_RAY if "RayData" in name else NEMO
        pairs = zip(found, results.get(to, []), strict=False)
        ratio = [a["rate"] / b["rate"] for a, b in pairs if "rate" in a and "rate" in b]
        line = [name, str(good[0]["images"]), spread([one["rate"] for one in good], 1), spread(ratio, 2)]
        line += [spread([one["cpu_ms"] for one in good], 1), spread([one["others"] for one in good], 2)]
        lines.append(line)
    print(table(["row", "images written", "img/s", "x NeMo Curator", "CPU ms/img", "others"], lines))
    out = args.json or WORK / f"curation-{time.strftime('%Y%m%d-%H%M%S')}.json"
    out.write_text(
        json.dumps({"machine": platform.platform(), "arguments": sys.argv[1:], "results": results}, indent=1)
    )
    print(f"\n{args.images} images of 640x480, ViT-B/32 with seeded random weights, {args.threads} CPUs; all in {out}")


if __name__ == "__main__":
    main()

"""Speed on the device: rows in turn, round after round, in one process; ratios within a round are what counts.

A row is an endless iterator over batches, which gives the images in each. While the others are measured it decodes
ahead; so the clock starts only when all that is used up, and the batches come as fast as they are made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import curator_dali as cd
from curator_dali.decoding import decoder
from tests.benchmarks.rows import encoded_images
from tests.gpu_check.settings import SIZES, Settings
from tests.gpu_check.tracing import copied, in_kernels, traced

OURS = "curator_dali"


@dataclass(frozen=True)
class Case:
    """One setting of a comparison; `ahead` is how many batches a row may have ready, `images` how many are timed."""

    size: str = "mix"
    batch: int = 256
    threads: int = 8
    load: float = 0.65
    bad: float = 0.0
    ahead: int = 8
    images: int = 12_800


def base(settings: Settings, **changes: Any) -> Case:
    """The usual setting, or a small one in a rehearsal."""
    return replace(Case(batch=16, threads=2, images=48) if settings.rehearse else Case(), **changes)


def compare(settings: Settings, rows: dict[str, Any], case: Case, *, trace: bool = False) -> dict[str, Any]:
    """Name -> {"rate": images a second, round by round}, or {"skipped": why} where a row cannot run here.

    With `trace` also "device": what it did, an image, in some further batches.
    """
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        batches: dict[str, Iterator[int]] = {}
        for name, open_row in rows.items():
            try:
                running = stack.enter_context(open_row(settings, case))
                take(running, 1)
            except Exception as error:  # a peer that is not installed, or does not work, is a line of the table
                if name == OURS:
                    raise
                found[name] = {"skipped": f"{type(error).__name__}: {error}"[:160]}
            else:
                batches[name] = running
        names = list(batches)
        for i in range(1 if settings.rehearse else 3):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                take(batches[name], case.ahead * case.batch)
                _wait(settings)
                began = time.perf_counter()
                count = take(batches[name], case.images)
                _wait(settings)
                rate = count / (time.perf_counter() - began)
                found.setdefault(name, {"rate": []})["rate"].append(round(rate, 1))
        for name in names if trace else ():
            with traced(settings) as events:
                count = take(batches[name], 4 * case.batch)
                _wait(settings)
            found[name]["device"] = {"us in kernels": in_kernels(events, count), "bytes": copied(events, count)}
    return found


def take(batches: Iterator[int], images: int) -> int:
    """Go on until at least so many images came."""
    count = 0
    while count < images:
        count += next(batches)
    return count


def _wait(settings: Settings) -> None:
    if settings.gpu:
        import torch

        torch.cuda.synchronize()


def again(run: Callable[[], Iterator[int]]) -> Iterator[int]:
    """Pass after pass."""
    while True:
        yield from run()


def ratio(found: dict[str, Any], to: str, name: str = OURS) -> float | None:
    """Median over the rounds of one row's rate over another's; None where one did not run."""
    if "rate" not in found.get(name, {}) or "rate" not in found.get(to, {}):
        return None
    return round(statistics.median(a / b for a, b in zip(found[name]["rate"], found[to]["rate"], strict=True)), 3)


@contextmanager
def ours(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
    before = decoder._HW_DECODER_LOAD
    decoder._HW_DECODER_LOAD = case.load  # the loader has no such argument: is one needed? (docs/gpu.md)
    shards = settings.shards(case.size, case.bad)
    try:
        with cd.ImageLoader(shards, batch_size=case.batch, num_threads=case.threads, device=settings.device) as loader:
            yield again(lambda: (len(batch) for batch in loader))
    finally:
        decoder._HW_DECODER_LOAD = before


def dali(hints: bool = False) -> Any:
    """DALI's own reader (which indexes the shards first) and pipeline; with `hints` memory is reserved beforehand."""

    @contextmanager
    def open_pipeline(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
        from nvidia.dali import fn, pipeline_def, types

        shards = settings.shards(case.size)  # DALI's pipeline ends at the first bad image
        how: dict[str, Any] = {"device": "cpu", "jpeg_fancy_upsampling": True}
        if settings.gpu:
            how |= {"device": "mixed", "hw_decoder_load": case.load}
            if hints:
                width, height = SIZES.get(case.size, (2048, 1536))
                how |= {"preallocate_width_hint": width, "preallocate_height_hint": height}
        device_id = int(settings.device[5:]) if settings.gpu else None

        @pipeline_def(batch_size=case.batch, num_threads=case.threads, device_id=device_id, prefetch_queue_depth=2)
        def shards_to_pixels() -> Any:
            encoded = fn.readers.webdataset(
                name="shards",
                paths=shards,
                ext=["jpg"],
                missing_component_behavior="skip",
                pad_last_batch=True,
            )
            return fn.decoders.image(encoded, output_type=types.RGB, **how)

        pipeline = shards_to_pixels()
        pipeline.build()
        yield again(lambda: iter([len(pipeline.run()[0])]))

    return open_pipeline


@contextmanager
def torchvision(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in encoded_images(settings.shards(case.size))]

    def run() -> Iterator[int]:
        for first in range(0, len(data), case.batch):
            yield len(decode_jpeg(data[first : first + case.batch], mode=ImageReadMode.RGB, device=settings.device))

    yield again(run)


@contextmanager
def nvimagecodec(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
    from nvidia import nvimgcodec

    if not settings.gpu:
        raise RuntimeError("nvImageCodec's Decoder needs a driver")
    decoder = nvimgcodec.Decoder(device_id=int(settings.device[5:]), max_num_cpu_threads=case.threads)
    data = encoded_images(settings.shards(case.size))

    def run() -> Iterator[int]:
        for first in range(0, len(data), case.batch):
            yield sum(image is not None for image in decoder.decode(data[first : first + case.batch]))

    yield again(run)


@contextmanager
def nemo(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
    from nemo_curator.stages.image.io.image_reader import ImageReaderStage
    from nemo_curator.tasks import FileGroupTask

    shards = settings.shards(case.size)
    stage = ImageReaderStage(num_threads=case.threads)

    def run() -> Iterator[int]:
        tasks = [FileGroupTask(dataset_name="shards", data=[shard]) for shard in shards]
        return (len(batch.data) for task in tasks for batch in stage.process(task))

    yield again(run)


DALI, HINTS, ITERATOR = "DALI readers.webdataset", "the same, memory reserved", "DALI's PyTorch iterator"
DECODERS = {
    OURS: ours,
    DALI: dali(),
    HINTS: dali(hints=True),
    "torchvision decode_jpeg": torchvision,
    "nvImageCodec Decoder": nvimagecodec,
    "NeMo Curator reader": nemo,
}


def sizes(settings: Settings) -> dict[str, Any]:
    """Each size and the mix, against everybody; and ours with 1% bad images."""
    found: dict[str, Any] = {"rows": {}, "bars": {}}
    for size in [*SIZES, "mix"][:: 3 if settings.rehearse else 1]:
        results = found["rows"][size] = compare(settings, DECODERS, base(settings, size=size))
        both = [r for r in (ratio(results, DALI), ratio(results, HINTS)) if r is not None]
        found["bars"][f"{size}: x the best DALI pipeline"] = (min(both, default=None), 0.97)
    results = compare(settings, {OURS: ours, DALI: dali()}, base(settings, bad=0.01))
    found["rows"]["mix, 1% bad"] = results
    found["bars"]["mix, 1% bad: x DALI without them"] = (ratio(results, DALI), 0.9)
    return found


def sweep(settings: Settings) -> dict[str, Any]:
    """Ours and DALI's while one number changes: the hardware engine's share, batch, threads."""
    cases = {f"hw_decoder_load {load}": base(settings, load=load) for load in (0.0, 0.25, 0.5, 0.75, 1.0)}
    cases |= {f"batch {batch}": base(settings, batch=batch) for batch in (64, 128, 512)}
    cases |= {f"{threads} threads": base(settings, threads=threads) for threads in (1, 2, 4, 16)}
    if settings.rehearse:
        cases = dict(list(cases.items())[::9])
    rows = {name: compare(settings, {OURS: ours, DALI: dali()}, case) for name, case in cases.items()}
    return {"rows": rows, "bars": {f"{name}: x DALI": (ratio(results, DALI), 0) for name, results in rows.items()}}


def training(settings: Settings) -> dict[str, Any]:
    """Random 224 crops, flipped and normalised: against DALI's iterator for PyTorch and a DataLoader with all cores."""
    rows = {OURS: _ours_training, ITERATOR: _dali_training, "DataLoader, Pillow": _dataloader}
    case = base(settings, size="500x375", ahead=8 if settings.rehearse else 40)  # a DataLoader has two a worker ready
    results = compare(settings, rows, case, trace=True)
    return {"rows": {case.size: results}, "bars": {"x DALI's iterator": (ratio(results, ITERATOR), 1.0)}}


@contextmanager
def _ours_training(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
    from curator_dali import transforms
    from curator_dali.torch import TorchImageLoader

    augment = [transforms.RandomResizedCrop(224), transforms.HorizontalFlip(), transforms.Normalize()]
    options: dict[str, Any] = {"batch_size": case.batch, "num_threads": case.threads, "device": settings.device}
    shards = settings.shards(case.size)
    with TorchImageLoader(shards, target=None, transforms=augment, shuffle=0, **options) as loader:
        yield again(lambda: (len(images) for images in loader))


@contextmanager
def _dali_training(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    shards = settings.shards(case.size)
    device_id = int(settings.device[5:]) if settings.gpu else None

    @pipeline_def(batch_size=case.batch, num_threads=case.threads, device_id=device_id)
    def augmented() -> Any:
        encoded = fn.readers.webdataset(
            name="shards",
            paths=shards,
            ext=["jpg"],
            missing_component_behavior="skip",
            random_shuffle=True,
            initial_fill=1024,
        )
        images = fn.decoders.image(encoded, device="mixed" if settings.gpu else "cpu", jpeg_fancy_upsampling=True)
        images = fn.random_resized_crop(images, size=[224, 224])
        mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
        flip = fn.random.coin_flip()
        return fn.crop_mirror_normalize(
            images, mirror=flip, mean=mean.tolist(), std=std.tolist(), output_layout="CHW", dtype=types.FLOAT
        )

    iterator = DALIGenericIterator(
        [augmented()], ["images"], reader_name="shards", auto_reset=True, last_batch_policy=LastBatchPolicy.PARTIAL
    )
    yield again(lambda: (len(found[0]["images"]) for found in iterator))


@contextmanager
def _dataloader(settings: Settings, case: Case) -> Iterator[Iterator[int]]:
    import os

    import torch

    from tests.benchmarks.training import PillowCrop, to_batch

    data = [{"jpg": one} for one in encoded_images(settings.shards(case.size))]
    crop = PillowCrop()

    class Crops(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, i: int) -> Any:
            return crop(data[i])

    loader: Any = torch.utils.data.DataLoader(
        Crops(),
        batch_size=case.batch,
        num_workers=2 if settings.rehearse else len(os.sched_getaffinity(0)),
        collate_fn=to_batch,
        pin_memory=settings.gpu,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    yield again(lambda: (len(images.to(settings.device, non_blocking=True)) for images in loader))

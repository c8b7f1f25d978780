"""Pixels, ownership, streams, memory and transfers: what is found on the device, beside what is so on the CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import curator_dali as cd
from curator_dali import arrays
from curator_dali.models import CLIPImageEncoder
from curator_dali.sources import MemorySource
from tests import helpers
from tests.gpu_check.settings import ROOT, Settings
from tests.gpu_check.tracing import copied, traced
from tests.nemo_layout import CLIP


def pixels(settings: Settings) -> dict[str, Any]:
    """Decoded photographs, CLIP's view and embeddings: the device against the CPU, Pillow and transformers."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    photos = helpers.load_photos()
    variants: dict[str, dict[str, Any]] = {
        "4:2:0": {"subsampling": "4:2:0"},
        "4:2:2": {"subsampling": "4:2:2"},
        "4:4:4": {"subsampling": "4:4:4"},
        "progressive": {"progressive": True},
    }
    found: dict[str, Any] = {"decoded": {}}
    for name, options in variants.items():
        source = MemorySource({key: helpers.encode(photo, **options) for key, photo in photos.items()})
        here, there = (_images(source, device) for device in ("cpu", settings.device))
        found["decoded"][name] = _difference(here, there)
    source = MemorySource({key: helpers.encode(photo) for key, photo in photos.items()})
    ours = _images(source, settings.device, transforms=cd.transforms.clip(224))
    decoded = _images(source, "cpu")
    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    theirs = [np.asarray(one).transpose(1, 2, 0) for one in processor(decoded)["pixel_values"]]
    found["CLIP's view against transformers"] = _difference(theirs, ours)
    found["CLIP's view against the CPU"] = _difference(_images(source, "cpu", transforms=cd.transforms.clip(224)), ours)
    found["embeddings' lowest cosine, EfficientNet-Lite0"] = _lowest_cosine(source, settings.device)
    return found


def _lowest_cosine(source: Any, device: str) -> float | str:
    """Of each photograph's embedding on the device and on the CPU, by a trained model; or why there is none."""
    from curator_dali.models import EfficientNetLite0

    embedded = []
    for where in ("cpu", device):
        try:
            encoder = EfficientNetLite0(device=where)
        except ImportError as error:
            return f"not measured: {error}"
        with cd.ImageLoader(source, device=where, transforms=encoder.view) as loader:
            embedded.append(np.concatenate([arrays.to_host(encoder(b.to_torch()).cpu()) for b in loader]))
    return float((embedded[0] * embedded[1]).sum(1).min())


def _images(source: Any, device: str, **options: Any) -> list[Any]:
    with cd.ImageLoader(source, device=device, **options) as loader:
        return [np.array(image) for batch in loader for image in batch.to_host(release=True).images]


def _difference(one: list[Any], other: list[Any]) -> dict[str, float]:
    off = [np.abs(a.astype(int) - b.astype(int)) for a, b in zip(one, other, strict=True)]
    return {"max": int(max(x.max() for x in off)), "mean": round(float(np.mean([x.mean() for x in off])), 4)}


def ownership(settings: Settings) -> dict[str, Any]:
    """Checksums on two streams over many batches, some kept for long; the device's memory meanwhile."""
    import torch

    shards = settings.shards("500x375")
    limit, enough = (64, 5.0) if settings.rehearse else (10_000, 240.0)
    side = torch.cuda.Stream() if settings.gpu else None
    expected: dict[int, list[int]] = {}
    kept: list[tuple[int, Any]] = []
    pending: deque[tuple[int, str, Any, Any]] = deque()
    wrong: Counter[str] = Counter()
    memory: list[float] = []

    def settle(most: int) -> None:
        """Look at sums only when later batches were read: nothing has waited for the device before."""
        while len(pending) > most:
            number, where, sums, _ = pending.popleft()
            wrong[where] += sums.tolist() != expected.setdefault(number, sums.tolist())

    began, count = time.perf_counter(), 0
    with cd.ImageLoader(shards, batch_size=16, device=settings.device, transforms=cd.transforms.clip(64)) as loader:
        while count < limit and time.perf_counter() - began < enough:
            for number, batch in enumerate(loader):
                tensor = batch.to_torch()
                if side is not None and count % 2:
                    side.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(side):  # who works there keeps the batch until that is done
                        pending.append((number, "side stream", _sums(tensor), tensor))
                else:
                    pending.append((number, "current stream", _sums(tensor), None))
                if count % 50 == 0:
                    kept = [*kept[-9:], (number, tensor)]
                if count % 20 == 0:
                    memory.append(_used(settings.device))
                count += 1
                settle(8)
    settle(0)
    wrong["kept batch"] += sum(_sums(old).tolist() != expected[which] for which, old in kept)
    early, late = np.array_split(memory[1 + len(memory) // 5 :], 2)  # pools have grown by then
    growth = np.median(late) - np.median(early)
    found: dict[str, Any] = {
        "batches": count,
        "wrong sums": dict(wrong),
        "memory's growth, MB": round(float(growth), 1),
    }
    found["failures"] = [f"{n} wrong sums: {where}" for where, n in wrong.items() if n]
    if settings.gpu and not settings.rehearse and growth > 64:
        found["failures"].append(f"device memory grew by {growth:.0f} MB")
    return found


def _sums(tensor: Any) -> Any:
    """Of each image; behind some other work, so that memory that is used again too early is seen."""
    import torch

    if tensor.is_cuda:
        busy = torch.ones(2048, 2048, device=tensor.device)
        for _ in range(4):
            busy = (busy @ busy).clamp_(0, 1)
    return tensor.sum(dim=(1, 2, 3), dtype=torch.int64)


def _used(device: str) -> float:
    """MB in use: of the device, or of this process on a CPU."""
    if device == "cpu":
        from tests.benchmarks.harness import status

        return status("RssAnon")
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1e6


def bus(settings: Settings) -> dict[str, Any]:
    """What crosses the bus and who waits, from torch's profiler, an image; `to_host` against a plain pinned copy."""
    import torch

    found: dict[str, Any] = {}
    shards = settings.shards("500x375")
    encoded = sum(Path(shard).stat().st_size for shard in shards)
    with cd.ImageLoader(shards, batch_size=16, device=settings.device) as loader:
        found["bytes of the shards, an image"] = round(encoded / loader.num_samples)
    stages = [cd.Embed(CLIPImageEncoder(settings.models() / CLIP, device=settings.device)), cd.Quality()]
    out = settings.work / f"profile-{time.time_ns()}"
    with traced(settings) as events:
        report = cd.curate(shards[:2], out, stages=stages, device=settings.device, batch_size=64, num_threads=2)
    found["curate(): bytes an image"] = copied(events, report.samples)
    waits = Counter(event["name"] for event in events if "Synchronize" in event.get("name", ""))
    found["curate(): waits a batch"] = {name: round(n * 64 / report.samples, 2) for name, n in waits.items()}
    waits_for_device = waits["cudaDeviceSynchronize"] + waits["cuCtxSynchronize"]
    found["failures"] = []
    if waits_for_device * 64 > report.samples / 2:  # a few at the start are set-up
        found["failures"].append(f"{waits_for_device} waits for the whole device in {report.samples // 64} batches")
    if settings.gpu:
        block = torch.randint(0, 255, (256, 1024, 1024), dtype=torch.uint8, device=settings.device)
        host = torch.empty_like(block, device="cpu", pin_memory=True)
        plain, ours = [], []
        for _ in range(6):
            plain.append(_seconds(lambda: host.copy_(block, non_blocking=True)))
            ours.append(_seconds(lambda: arrays.to_host(arrays.from_torch(block))))
        rate = min(plain[1:]) / min(ours[1:])
        found |= {"pinned copy, GB/s": round(block.nbytes / min(plain[1:]) / 1e9, 1), "to_host's share": round(rate, 3)}
        if rate < 0.8:
            found["failures"].append(f"to_host reaches {rate:.0%} of a plain pinned copy")
        found |= _waits_for_readers(shards, settings.device)
    return found


def _seconds(run: Any) -> float:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _waits_for_readers(shards: list[str], device: str) -> dict[str, float]:
    """Does a batch wait for what the consumer still computes on one that it let go? (docs/gpu.md, question 1.)"""
    import torch

    matrix = torch.ones(8192, 8192, device=device)
    with cd.ImageLoader(shards, batch_size=16, device=device, prefetch=1, transforms=cd.transforms.clip(224)) as loader:
        running: Iterator[Any] = iter(loader)
        for _ in range(4):
            next(running)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            matrix = (matrix @ matrix).clamp_(0, 1)
        for _ in range(6):
            batch = next(running)
            batch.to_torch().float().mean()
            del batch
        handed = time.perf_counter() - began
        torch.cuda.synchronize()
        whole = time.perf_counter() - began
    return {
        "six batches behind a busy stream, ms": round(1e3 * handed, 1),
        "that stream's work, ms": round(1e3 * whole, 1),
    }


def full_memory(settings: Settings) -> dict[str, Any]:
    """A device that is nearly full: the error comes out as itself, no image is called bad, and it works again after."""
    if not settings.gpu:
        return {"skipped": "a CPU has no memory of its own"}
    import torch

    shards = settings.shards("2048x1536")[:1]
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(max(0, free - 500_000_000), dtype=torch.uint8, device=settings.device)
    found: dict[str, Any] = {"failures": []}
    with cd.ImageLoader(shards, batch_size=128, device=settings.device) as loader:
        try:
            found["decoded"] = sum(len(batch) for batch in loader)
        except Exception as error:  # which one is the finding
            found["raised"] = f"{type(error).__name__}: {error}"[:400]
        found["called bad"] = len(loader.errors)
    if found["called bad"]:
        found["failures"].append(f"{found['called bad']} whole images were called bad: {loader.errors[0].reason}")
    del hog
    torch.cuda.empty_cache()
    with cd.ImageLoader(shards, batch_size=16, device=settings.device) as loader:
        found["afterwards"] = sum(len(batch) for batch in loader)
    return found


_FUSED = """
import sys, numpy as np
from nvidia.dali import fn, pipeline_def, types
from tests import helpers
device, which = sys.argv[1:]
files = [np.frombuffer(bytearray(helpers.encode(p)), np.uint8) for p in helpers.load_photos().values()]
@pipeline_def(batch_size=len(files), num_threads=2, device_id=None if device == "cpu" else int(device[5:]), seed=1)
def pipe():
    data = fn.external_source(source=lambda: files, batch=True)
    on = {"device": "cpu" if device == "cpu" else "mixed", "jpeg_fancy_upsampling": True}
    whole = fn.decoders.image(data, **on)
    box = {"start": [10, 20], "shape": [100, 120], "axes": (0, 1)}
    if which == "image_slice":
        return fn.decoders.image_slice(data, **box, **on), fn.slice(whole, **box)
    if which == "image_crop":
        return fn.decoders.image_crop(data, crop=(100, 120), **on), fn.crop(whole, crop=(100, 120))
    part = fn.decoders.image_random_crop(data, **on)
    return part, part
running = pipe()
running.build()
for _ in range(20):
    one, two = (x.as_cpu() if device != "cpu" else x for x in running.run())
    off = max(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() for a, b in zip(one, two))
print("works, differs by", off)
"""


def fused(settings: Settings) -> dict[str, Any]:
    """Do the decoders that decode only a window work (nvImageCodec's issue 55)? Each in a process of its own."""
    found = {}
    for which in ("image_slice", "image_crop", "image_random_crop"):
        command = [sys.executable, "-c", _FUSED, settings.device, which]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            found[which] = "hangs"
            continue
        last = ((done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["?"])[-1]
        found[which] = last if done.returncode == 0 else f"exit status {done.returncode}: {last}"[:300]
    return found

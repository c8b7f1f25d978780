"""The training rows: tar shards to random 224 crops, flipped and normalised, as (64, 3, 224, 224) float32 tensors.

Each as its own project would have it, with augmentation as ImageNet training has it (Szegedy et al. 2015). Ours alone
gives the same crops in every run, whatever the threads and the batch size.
"""

from __future__ import annotations

import io
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.harness import Job, Pass, ratios, rounds, spread
from tests.benchmarks.rows import BATCH, Open, Row, dali_index, encoded_images

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def consume(batches: Iterable[Any]) -> int:
    """Look at each batch as a training step would; its pixels stay unread."""
    import torch

    count = 0
    for images in batches:
        if images.shape[1:] != (3, SIZE, SIZE) or images.dtype != torch.float32:
            raise AssertionError(f"not a batch: {images.shape} {images.dtype}")
        count += len(images)
    return count


@contextmanager
def ours(job: Job) -> Iterator[Pass]:
    from curator_dali import transforms
    from curator_dali.torch import TorchImageLoader

    augment = [transforms.RandomResizedCrop(SIZE), transforms.HorizontalFlip(), transforms.Normalize(MEAN, STD)]
    options: dict[str, Any] = {"batch_size": BATCH, "num_threads": job.threads, "device": "cpu", "shuffle": 0}
    with TorchImageLoader(job.shards, target=None, transforms=augment, **options) as loader:
        yield lambda: consume(loader)


def dali(fused: bool) -> Open:
    """DALI's reader, pipeline and iterator for PyTorch; `fused` decodes only the crop."""

    @contextmanager
    def open_iterator(job: Job) -> Iterator[Pass]:
        from nvidia.dali import fn, pipeline_def, types
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

        @pipeline_def(batch_size=BATCH, num_threads=job.threads, device_id=None)
        def augmented() -> Any:
            encoded = fn.readers.webdataset(
                name="shards",
                paths=job.shards,
                index_paths=[dali_index(Path(shard), Path(job.cache)) for shard in job.shards],
                ext=["jpg"],
                missing_component_behavior="skip",
                random_shuffle=True,
                initial_fill=256,
            )
            if fused:
                box = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}
                images = fn.decoders.image_random_crop(encoded, device="cpu", jpeg_fancy_upsampling=True, **box)
                images = fn.resize(images, size=[SIZE, SIZE])
            else:
                images = fn.decoders.image(encoded, device="cpu", jpeg_fancy_upsampling=True)
                images = fn.random_resized_crop(images, size=[SIZE, SIZE])
            return fn.crop_mirror_normalize(
                images,
                mirror=fn.random.coin_flip(),
                mean=[255 * m for m in MEAN],
                std=[255 * s for s in STD],
                output_layout="CHW",
                dtype=types.FLOAT,
            )

        iterator = DALIGenericIterator(
            [augmented()], ["images"], reader_name="shards", auto_reset=True, last_batch_policy=LastBatchPolicy.PARTIAL
        )
        yield lambda: consume(found[0]["images"] for found in iterator)

    return open_iterator


def crop_box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop, as torchvision chooses it."""
    for _ in range(10):
        area, ratio = width * height * rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def to_batch(images: list[NDArray[np.uint8]]) -> Any:
    """HWC uint8 images, normalised and in NCHW."""
    import torch

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor([255 * x for x in values]).view(1, 3, 1, 1) for values in (MEAN, STD))
    return batch.sub_(mean).div_(std)


def threaded(augment: Callable[[bytes, random.Random], NDArray[np.uint8]]) -> Open:
    """Threads that read images from memory, one at a time, and collect batches."""

    @contextmanager
    def open_threads(job: Job) -> Iterator[Pass]:
        import torch

        torch.set_num_threads(1)
        data, rng = encoded_images(job.shards), random.Random(0)

        def batches(pool: ThreadPoolExecutor) -> Iterator[Any]:
            waiting: deque[Future[NDArray[np.uint8]]] = deque()
            images: list[NDArray[np.uint8]] = []
            for i in range(len(data) + 96):
                if i < len(data):
                    waiting.append(pool.submit(augment, data[i], rng))
                if i >= 96 or len(data) <= i:
                    images += [waiting.popleft().result()] if waiting else []
                if len(images) == BATCH:
                    yield to_batch(images)
                    images = []
            images += [future.result() for future in waiting]
            if images:
                yield to_batch(images)

        with ThreadPoolExecutor(job.threads) as pool:
            yield lambda: consume(batches(pool))

    return open_threads


def simplejpeg_opencv(encoded: bytes, rng: random.Random) -> NDArray[np.uint8]:
    import cv2
    from simplejpeg import decode_jpeg

    image = decode_jpeg(encoded)
    left, top, width, height = crop_box(image.shape[1], image.shape[0], rng)
    image = cv2.resize(image[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return image[:, ::-1] if rng.random() < 0.5 else image


def spdl(encoded: bytes, rng: random.Random) -> NDArray[np.uint8]:
    """FFmpeg decodes, crops and scales, through SPDL."""
    import spdl.io
    from simplejpeg import decode_jpeg_header

    height, width, *_ = decode_jpeg_header(encoded)
    left, top, w, h = crop_box(width, height, rng)
    graph = f"crop={w}:{h}:{left}:{top},scale={SIZE}:{SIZE}:flags=bilinear,format=rgb24"
    image: NDArray[np.uint8] = spdl.io.to_numpy(spdl.io.load_image(encoded, filter_desc=graph))
    return image[:, ::-1] if rng.random() < 0.5 else image


class PillowCrop:
    """torchvision's transforms on a Pillow image, without torchvision, whose wheel needs a CUDA build of torch."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __call__(self, sample: dict[str, bytes]) -> NDArray[np.uint8]:
        from PIL import Image

        image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        left, top, width, height = crop_box(*image.size, self.rng)
        box = (left, top, left + width, top + height)
        pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
        return pixels[:, ::-1] if self.rng.random() < 0.5 else pixels


@contextmanager
def webdataset_workers(job: Job) -> Iterator[Pass]:
    import torch
    import webdataset

    def run() -> int:
        data = (
            webdataset.WebDataset(job.shards, shardshuffle=len(job.shards), empty_check=False)
            .shuffle(256)
            .map(PillowCrop())
            .batched(BATCH, collation_fn=to_batch)
        )
        return consume(torch.utils.data.DataLoader(data, batch_size=None, num_workers=job.threads))

    yield run


OURS = "curator_dali TorchImageLoader"
DALI_FULL, DALI_FUSED = "DALI, full decode", "DALI, fused random crop"
THREADS, WEBDATASET, SPDL = "simplejpeg + OpenCV from memory", "webdataset + DataLoader, Pillow", "SPDL from memory"

ROWS = {
    OURS: Row(ours),
    DALI_FULL: Row(dali(fused=False)),
    DALI_FUSED: Row(dali(fused=True)),
    THREADS: Row(threaded(simplejpeg_opencv), own_construction=False),
    WEBDATASET: Row(webdataset_workers, steady=False),
    SPDL: Row(threaded(spdl), own_construction=False),
}


def compare(jobs: dict[str, Job], count: int) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    """All rows against both of DALI's pipelines, and ours against the better of these in each round.

    Returns:
        The table's header and lines, and everything measured.
    """
    results = rounds(jobs, count, {})
    header = [
        "row",
        "whole, img/s",
        "steady, img/s",
        "x DALI full",
        "x DALI fused",
        "x the better",
        "CPU ms/img",
        "others",
    ]
    lines = []
    for name, everything in results.items():
        found = [one for one in everything if "failed" not in one]
        if not found:
            lines.append([name, everything[0]["failed"]] + [""] * (len(header) - 2))
            continue
        part = "steady" if "steady" in found[0] else "whole"
        against = [ratios(results, name, to, part) for to in (DALI_FULL, DALI_FUSED)]
        lines.append(
            [name]
            + [spread([one[which]["rate"] for one in found if which in one]) for which in ("whole", "steady")]
            + [spread(values, 2) for values in against]
            + [spread([min(pair) for pair in zip(*against, strict=False)], 2)]
            + [spread([one[part]["cpu_ms"] for one in found], 2), spread([one[part]["others"] for one in found], 2)]
        )
    return header, lines, results

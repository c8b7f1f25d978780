"""The rows: ways from tar shards to (H, W, 3) uint8 arrays on the host, each as its own project would have it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tests.benchmarks.harness import Job, Pass

BATCH = 64


class Open(Protocol):
    def __call__(self, job: Job) -> AbstractContextManager[Pass]: ...


@dataclass(frozen=True)
class Row:
    """A row: `open` sets up, and gives a function that goes over all images once and returns how many came out.

    Attributes:
        open: As above.
        own_construction: Whether a pass from construction to the end means something.
        steady: Whether a later pass of the same object differs from a first one.
    """

    open: Open
    own_construction: bool = True
    steady: bool = True


def consume(images: Iterable[Any]) -> int:
    """Look at each image as a user's code would; its pixels stay unread."""
    count = 0
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise AssertionError(f"not an image: {image.shape} {image.dtype}")
        count += 1
    return count


def ours(metadata: bool) -> Open:
    @contextmanager
    def open_loader(job: Job) -> Iterator[Pass]:
        from curator_dali import ImageLoader

        with ImageLoader(job.shards, batch_size=BATCH, num_threads=job.threads, device="cpu") as loader:

            def run() -> int:
                count = 0
                for batch in loader:
                    count += consume(batch.images)
                    for item in batch.data:
                        if not item.image_id or (metadata and "caption" not in item.metadata):
                            raise AssertionError(f"{item} lost who it is")
                return count

            yield run

    return open_loader


def dali(*extensions: str) -> Open:
    """DALI's own reader, with the index that its wds2idx makes."""

    @contextmanager
    def open_pipeline(job: Job) -> Iterator[Pass]:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=BATCH, num_threads=job.threads, device_id=None)
        def shards_to_pixels() -> Any:
            members = fn.readers.webdataset(
                name="shards",
                paths=job.shards,
                index_paths=[dali_index(Path(shard), Path(job.cache)) for shard in job.shards],
                ext=list(extensions),
                missing_component_behavior="skip",
            )
            encoded, *rest = members if len(extensions) > 1 else [members]  # one output comes without a list
            return fn.decoders.image(encoded, device="cpu", output_type=types.RGB), *rest

        pipeline = shards_to_pixels()
        pipeline.build()
        size = pipeline.epoch_size("shards")

        def run() -> int:
            count = 0
            while count < size:  # the last batch is filled up from the next epoch, and counted: it was decoded
                images, *rest = pipeline.run()
                count += consume(images.at(i) for i in range(len(images)))
                for part in rest:
                    _ = [part.at(i) for i in range(len(part))]
            return count

        yield run

    return open_pipeline


def dali_index(shard: Path, cache: Path) -> str:
    """Path of a shard's index in DALI's format, made where it is missing."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{shard.parent.name}-{shard.stem}.idx"
    if not path.exists():
        from wds2idx import IndexCreator

        partial = path.with_suffix(f".{os.getpid()}")
        with IndexCreator(str(shard), str(partial), verbose=False) as creator:
            creator.create_index()
        partial.rename(path)
    return str(path)


def encoded_images(shards: list[str]) -> list[bytes]:
    """All .jpg members of tars, in memory."""
    import tarfile

    found = []
    for shard in shards:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append(file.read())
    return found


@contextmanager
def libjpeg_turbo(job: Job) -> Iterator[Pass]:
    """The limit: threads that do nothing but decode from memory and let go."""
    from simplejpeg import decode_jpeg

    data = encoded_images(job.shards)

    def run() -> int:
        counts = [0] * job.threads

        def work(k: int) -> None:
            counts[k] = consume(decode_jpeg(one) for one in data[k :: job.threads])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(job.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    yield run


@contextmanager
def dali_from_memory(job: Job) -> Iterator[Pass]:
    """What DALI's decoder does where nothing is read and nobody is told apart: no loader on DALI can be faster."""
    from nvidia.dali import Pipeline, fn, types

    data = [np.frombuffer(bytearray(one), np.uint8) for one in encoded_images(job.shards)]
    batches = [data[first : first + BATCH] for first in range(0, len(data), BATCH)]
    pipeline = Pipeline(BATCH, job.threads, None, exec_dynamic=True, exec_pipelined=False, prefetch_queue_depth=2)
    with pipeline:
        encoded = fn.external_source(name="encoded", no_copy=True, dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(
            fn.decoders.image(encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True)
        )
    pipeline.build()

    def run() -> int:
        count = 0
        for number in range(len(batches) + 1):  # one batch is decoded while another is looked at
            if number < len(batches):
                pipeline.feed_input("encoded", batches[number])
                pipeline.schedule_run()
            if number:
                (images,) = pipeline.share_outputs()
                pipeline.release_outputs()
                count += consume(np.asarray(image) for image in images)
        return count

    yield run


@contextmanager
def webdataset_pillow(job: Job) -> Iterator[Pass]:
    import torch
    import webdataset

    def run() -> int:
        data = (
            webdataset.WebDataset(job.shards, shardshuffle=False).decode("rgb8", only="jpg").to_tuple("jpg", "__key__")
        )
        loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=job.threads)
        return consume(np.asarray(image) for image, _ in loader)

    yield run


@contextmanager
def nemo_curator(job: Job) -> Iterator[Pass]:
    """NeMo Curator's reader stage, a shard a task; its pipeline's fixed device_id=0 becomes None, for the CPU."""
    import nvidia.dali
    from loguru import logger
    from nemo_curator.stages.image.io.image_reader import ImageReaderStage
    from nemo_curator.tasks import FileGroupTask

    logger.remove()
    pipeline_def = nvidia.dali.pipeline_def
    nvidia.dali.pipeline_def = lambda **options: pipeline_def(**{**options, "device_id": None})

    def run() -> int:
        stage = ImageReaderStage(num_threads=job.threads)
        tasks = [FileGroupTask(dataset_name="shards", data=[shard]) for shard in job.shards]
        return sum(consume(item.image_data for item in batch.data) for task in tasks for batch in stage.process(task))

    try:
        yield run
    finally:
        nvidia.dali.pipeline_def = pipeline_def


OURS, OURS_METADATA = "curator_dali", "curator_dali, metadata read"
DALI, DALI_JSON = "DALI readers.webdataset", "DALI readers.webdataset, json too"
LIMIT, DALI_LIMIT = "libjpeg-turbo from memory (limit)", "DALI's decoder from memory (its limit)"
WEBDATASET, NEMO = "webdataset + Pillow", "NeMo Curator reader"

ROWS = {
    OURS: Row(ours(metadata=False)),
    OURS_METADATA: Row(ours(metadata=True)),
    DALI: Row(dali("jpg")),
    DALI_JSON: Row(dali("jpg", "json")),
    LIMIT: Row(libjpeg_turbo, own_construction=False),
    DALI_LIMIT: Row(dali_from_memory, own_construction=False),
    WEBDATASET: Row(webdataset_pillow, steady=False),
    NEMO: Row(nemo_curator, steady=False),
}

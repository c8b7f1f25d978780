"""The training loop on a real GPU: tensors on the device, in DALI's memory, refilled, padded and resumed there."""

from pathlib import Path

import numpy as np
import pytest
import torch

import curator_dali as cd
from curator_dali import transforms
from curator_dali.sources import MemorySource
from curator_dali.torch import TorchImageLoader

pytestmark = pytest.mark.gpu

SMALL = [transforms.RandomResizedCrop(32), transforms.HorizontalFlip(), transforms.Normalize()]


def test_batches_are_on_the_device_in_dalis_memory(shards: list[Path]) -> None:
    with TorchImageLoader(shards, batch_size=16, device="cuda", shuffle=1, transforms=SMALL) as loader:
        batch = next(iter(loader.loader))
        assert loader._out(batch)[0].data_ptr() == batch.images.data.ptr
        for images, targets in loader:
            assert images.device == targets.device == torch.device("cuda:0")
            assert images.shape[1:] == (3, 32, 32)
            assert images.isfinite().all()


def test_crops_are_those_of_the_cpu(shards: list[Path]) -> None:
    options = {"batch_size": 16, "shuffle": 1, "transforms": SMALL, "as_dict": True}
    with (
        TorchImageLoader(shards, device="cuda", **options) as gpu,
        TorchImageLoader(shards, device="cpu", **options) as cpu,
    ):
        for ours, expected in zip(gpu, cpu, strict=True):
            assert ours["ids"] == expected["ids"]
            assert torch.equal(ours["targets"].cpu(), expected["targets"])
            assert (ours["images"].cpu() - expected["images"]).abs().mean() < 0.05  # of a standard deviation


def test_bad_images_are_refilled_and_sizes_padded(shards: list[Path]) -> None:
    source = cd.open_source(shards)
    read = source.read(np.arange(12))
    files = [image.tobytes() if i % 3 else b"bad" for i, image in enumerate(read.images)]
    labels = [{"label": i} for i in range(12)]
    with TorchImageLoader(MemorySource(files, labels), batch_size=6, device="cuda", pad=True) as loader:
        for (images, mask), targets in loader:
            assert images.device == mask.device == targets.device == torch.device("cuda:0")
            assert len(images) == 6
            assert not images[~mask].any()


def test_buckets_and_resume(shards: list[Path]) -> None:
    sizes = cd.Buckets([(64, 64), (64, 96), (96, 64)])

    def make() -> TorchImageLoader:
        return TorchImageLoader(shards, batch_size=8, device="cuda", shuffle=1, buckets=sizes)

    with make() as loader:
        running = iter(loader)
        for _ in range(3):
            next(running)
        state = loader.state_dict()
        rest = [(images.cpu(), targets.cpu()) for images, targets in running]
    with make() as loader:
        loader.load_state_dict(state)
        for (images, targets), (others, labels) in zip(loader, rest, strict=True):
            assert tuple(images.shape[1:3]) in sizes.sizes
            assert images.shape == others.shape
            assert torch.equal(targets.cpu(), labels)

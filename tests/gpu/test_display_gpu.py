"""Displays of batches on a GPU: as on the host, and only thumbnails come down."""

from __future__ import annotations

import numpy as np
import pytest

from curator_dali import arrays
from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject
from curator_dali.view import thumbnails
from tests.helpers import crops


@pytest.fixture
def images(photos: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [np.ascontiguousarray(pixels) for _, pixels in crops(photos, 8)]


def test_thumbnails_are_those_of_the_host(images: list[np.ndarray]) -> None:
    there = arrays.to_device(images, "cuda:0")
    for mine, theirs in zip(thumbnails.make_thumbnails(there), thumbnails.make_thumbnails(images), strict=True):
        assert np.abs(mine.astype(int) - theirs).mean() < 0.5  # the same kernel; Pillow rounds between rows and columns


def test_a_display_brings_down_thumbnails_alone(images: list[np.ndarray]) -> None:
    import torch

    data = [ImageObject(f"{n}.jpg", f"{n}") for n in range(len(images))]
    batch = ImageBatch("t", "d", data, images=images).to_device("cuda:0")
    batch.show()  # what is loaded once is loaded
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        batch.show()
        torch.cuda.synchronize()
    down = [event for event in profile.events() if "DtoH" in event.name]
    # the thumbnails' rows, and low and high of no image: these are uint8
    assert 0 < len(down) <= len(images)
    assert all(item.image_data is None for item in batch)
    assert batch.device == "cuda:0"


def test_maps_and_neighbours_are_those_of_the_host() -> None:
    embeddings = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    host = ImageBatch("t", "d", [ImageObject(f"{n}", f"{n}") for n in range(50)], embeddings=embeddings)
    there = host.copy().to_device("cuda:0")
    assert [item.image_id for item in there.nearest(3, 9)] == [item.image_id for item in host.nearest(3, 9)]
    from curator_dali.view.plots import project

    assert project(there.embeddings) == pytest.approx(project(host.embeddings), abs=1e-3)

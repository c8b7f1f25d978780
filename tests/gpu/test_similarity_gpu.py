"""Similarity on a GPU gives what it gives on the host."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from curator_dali.similarity import (
    dhash,
    divide,
    nearest,
    pairs_between,
    phash,
    pixel_hash,
    similar_pairs,
)
from curator_dali.stages.deduplicate import HASH_VIEW
from curator_dali.transforms import apply
from tests.similarity.planted import planted


def test_hashes_are_equal(photos: dict[str, NDArray[np.uint8]]) -> None:
    images = [photo.copy() for photo in photos.values()] + [np.zeros((40, 50, 3), np.uint8)]
    small = np.stack([image[:32, :32] for image in images])
    for ours in (phash, dhash):
        assert (ours([torch.from_numpy(image).cuda() for image in images]) == ours(images)).all()
        assert (ours(torch.from_numpy(small).cuda()) == ours(small)).all()


def test_views_made_on_the_gpu_are_near(photos: dict[str, NDArray[np.uint8]]) -> None:
    images = [photo.copy() for photo in photos.values()]
    for ours in (phash, dhash):
        there, here = (ours(apply(images, HASH_VIEW, device=device)) for device in ("cuda:0", "cpu"))
        assert np.bitwise_count(there ^ here).max() <= 2


def test_pixel_hash_is_equal(photos: dict[str, NDArray[np.uint8]]) -> None:
    images = [photo.copy() for photo in photos.values()]
    assert (pixel_hash([torch.from_numpy(image).cuda() for image in images]) == pixel_hash(images)).all()
    batch = np.stack([image[:200, :300] for image in images])
    assert (pixel_hash(torch.from_numpy(batch).cuda()) == pixel_hash(batch)).all()


def test_pairs_are_equal() -> None:
    rows = planted(20_000, 256, 0.95, topics=100)
    here, there = similar_pairs(rows, 0.95), similar_pairs(torch.from_numpy(rows).cuda(), 0.95)
    assert len(here) > 500
    assert (here.first == there.first).all()
    assert (here.second == there.second).all()
    assert np.abs(here.value - there.value).max() < 2e-6
    moved = similar_pairs(rows, 0.95, device="cuda")  # blocks go up one by one
    assert (moved.first == there.first).all()


def test_clusters_find_nearly_all_and_the_same_each_time() -> None:
    rows = torch.from_numpy(planted(60_000, 256, 0.95, topics=100)).cuda()
    exact, near, again = (similar_pairs(rows, 0.95, exact=way) for way in (True, False, False))
    assert len(exact) >= len(near) >= 0.99 * len(exact)
    assert (near.first == again.first).all()
    old, new = rows[:50_000], rows[50_000:]
    found = pairs_between(new, old, 0.95, clusters=divide(old, 0.95))
    assert len(found) >= 0.99 * len(pairs_between(new, old, 0.95))


def test_nearest_is_equal() -> None:
    rows = planted(5000, 256, 0.95, topics=100)
    for one, other in zip(nearest(rows[:20], rows, 9), nearest(rows[:20], rows, 9, device="cuda"), strict=True):
        assert np.abs(one - other).max() < 2e-6

"""`reduce` and `Grey` against Pillow, on real photographs and on sizes around the kernel's reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import curator_dali as cd
from curator_dali.similarity.hashes import reduce
from curator_dali.sources import MemorySource
from curator_dali.stages.deduplicate import HASH_VIEW
from curator_dali.transforms import Grey, apply
from tests import helpers

WAYS = [None, False]  # in int8 where the hardware multiplies that, and in float64
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def pillow(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


@pytest.mark.parametrize("fast", WAYS)
@pytest.mark.parametrize("size", [(32, 32), (8, 9), (50, 20)])
def test_photographs_are_pillows(
    photos: dict[str, NDArray[np.uint8]], size: tuple[int, int], fast: bool | None
) -> None:
    crops = [np.ascontiguousarray(crop) for _, crop in helpers.crops(photos, 60, shortest=64)]
    for image in [*photos.values(), *crops]:
        grey = np.array(Image.fromarray(image).convert("L"))
        assert (reduce(torch.from_numpy(grey)[None], size, fast=fast).numpy()[0] == pillow(grey, size)).all()


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), SIZES, st.sampled_from(WAYS))
@example((84, 50), (16, 16), None)  # the last that is made narrower first
@example((85, 50), (16, 16), None)
@example((300, 1), (16, 16), None)
@example((1, 300), (16, 16), None)
def test_any_size_is_pillows(old: tuple[int, int], new: tuple[int, int], fast: bool | None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *old), np.uint8)
    images[1] //= 255  # black and nearly white lie beyond what a kernel's lobes make of them
    expected = np.stack([pillow(image, new) for image in images])
    assert (reduce(torch.from_numpy(images), new, fast=fast).numpy() == expected).all()


@pytest.mark.parametrize("fast", WAYS)
def test_none_and_nothing(fast: bool | None) -> None:
    assert reduce(torch.empty((0, 50, 40), dtype=torch.uint8), (8, 9), fast=fast).shape == (0, 8, 9)
    with pytest.raises(ValueError, match="0 x 40 pixels"):
        reduce(torch.empty((2, 0, 40), dtype=torch.uint8), (8, 9), fast=fast)


def test_the_images_stay_as_they_are() -> None:
    images = torch.randint(0, 256, (2, 32, 32), dtype=torch.uint8)
    before = images.clone()
    assert (reduce(images, (32, 32)).add_(1) == before + 1).all()
    reduce(images, (8, 9))
    assert (images == before).all()


def test_grey_is_pillows(photos: dict[str, NDArray[np.uint8]]) -> None:
    for ours, photo in zip(apply(list(photos.values()), Grey()), photos.values(), strict=True):
        difference = np.abs(ours[..., 0].astype(int) - np.asarray(Image.fromarray(photo).convert("L")))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 5e-3


def test_as_a_view_of_a_loader(photos: dict[str, NDArray[np.uint8]]) -> None:
    source = MemorySource([helpers.encode(photo, "PNG") for photo in photos.values()])
    with cd.ImageLoader(source, device="cpu", transforms=None, views=(HASH_VIEW,), batch_size=4) as loader:
        found = [image for batch in loader for image in batch.views[HASH_VIEW]]
    expected = apply(list(photos.values()), HASH_VIEW)
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))

"""`Grey` and `Thumbnail` against Pillow, on real photographs and on sizes around the kernel's reach."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import curator_dali as cd
from curator_dali.sources import MemorySource
from curator_dali.transforms import Grey, Thumbnail, Transform, apply
from tests import helpers


def pillow(image: NDArray[np.uint8], size: tuple[int, int], mode: str) -> NDArray[np.uint8]:
    resized = Image.fromarray(image).convert(mode).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(resized).reshape(*size, -1)


@pytest.mark.parametrize("size", [(32, 32), (8, 9), (50, 20)])
@pytest.mark.parametrize(("mode", "chain"), [("L", (Grey(),)), ("RGB", ())])
def test_thumbnails_equal_pillow(
    photos: dict[str, NDArray[np.uint8]], size: tuple[int, int], mode: str, chain: tuple[Transform, ...]
) -> None:
    images = [*photos.values(), *(np.ascontiguousarray(crop) for _, crop in helpers.crops(photos, 60, shortest=64))]
    ours = apply(images, (*chain, Thumbnail(size)))
    theirs = np.stack([pillow(image, size, mode) for image in images])
    difference = np.abs(ours.astype(int) - theirs)
    assert (difference > 1).mean() < 2e-3
    assert (difference > 0).mean() < 0.03
    assert difference.max() <= 8
    assert difference[:, [0, -1]].mean() < 0.04  # the border is no worse; DALI's own would be off by 0.3
    assert difference[:, :, [0, -1]].mean() < 0.04


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 3), (5, 4), (7, 40), (32, 32), (33, 31)])
def test_small_images_are_enlarged_as_in_pillow(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    ours = apply([image], Thumbnail((16, 20)))[0]
    assert np.abs(ours.astype(int) - pillow(image, (16, 20), "RGB")).max() <= 1


def test_grey_is_pillows(photos: dict[str, NDArray[np.uint8]]) -> None:
    for ours, photo in zip(apply(list(photos.values()), Grey()), photos.values(), strict=True):
        difference = np.abs(ours[..., 0].astype(int) - np.asarray(Image.fromarray(photo).convert("L")))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 5e-3


def test_as_views_of_a_loader(photos: dict[str, NDArray[np.uint8]]) -> None:
    view, other = (Grey(), Thumbnail(32)), (Grey(), Thumbnail((8, 9)))
    source = MemorySource([helpers.encode(photo, "PNG") for photo in photos.values()])
    with cd.ImageLoader(source, device="cpu", transforms=None, views=(view, other), batch_size=4) as loader:
        found = np.concatenate([batch.views[view] for batch in loader])
    assert (found == apply(list(photos.values()), view)).all()


def test_sizes() -> None:
    assert Thumbnail(32).output_size(None) == (32, 32)
    assert Thumbnail((8, 9)).output_size((100, 50)) == (8, 9)
    with pytest.raises(ValueError, match=r"Thumbnail\.size is 0"):
        Thumbnail(0)

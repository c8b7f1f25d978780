"""Hashes against imagehash, on real photographs, crops of them, and images on which rounding decides."""

from __future__ import annotations

import sys
from collections.abc import Callable

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from curator_dali import transforms
from curator_dali.similarity import HASH_VIEW, dhash, from_hex, grey, phash, to_hex
from tests import helpers

Hash = Callable[..., NDArray[np.uint64]]
CASES = [
    pytest.param(phash, imagehash.phash, (32, 32), id="phash"),
    pytest.param(dhash, imagehash.dhash, (9, 8), id="dhash"),
]


@pytest.fixture(scope="module")
def images(photos: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Nine photographs and 150 crops of 128 to 300 pixels a side."""
    crops = helpers.crops(photos, 150, shortest=128, longest=300, seed=3)
    return [*photos.values(), *(np.ascontiguousarray(crop) for _, crop in crops)]


def small(images: list[NDArray[np.uint8]], size: tuple[int, int]) -> NDArray[np.uint8]:
    resized = [Image.fromarray(image).convert("L").resize(size, Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def theirs(function: Callable[..., imagehash.ImageHash], images: NDArray[np.uint8]) -> list[str]:
    return [str(function(Image.fromarray(image))) for image in images]


def degenerate() -> NDArray[np.uint8]:
    """32 x 32: blank in every shade, ramps, boards, stripes, noise; and mirrored, where half the frequencies vanish."""
    y, x = np.mgrid[:32, :32]
    rng = np.random.default_rng(0)
    found = [np.full((32, 32), shade) for shade in range(256)]
    found += [x * 8, y * 8, (x + y) * 4, (x + y) % 2 * 255, (x // 4 + y // 4) % 2 * 255, np.where(y == 7, x * 8, 0)]
    for _ in range(40):
        noise = rng.integers(0, 256, (32, 32))
        across = np.where(x < 16, noise, noise[:, ::-1])
        found += [noise, across, across.T, np.where(y < 16, across, across[::-1]), (noise + noise.T) // 2]
    return np.stack(found).astype(np.uint8)


@pytest.mark.parametrize(("ours", "peer", "size"), CASES)
def test_bit_equal_from_the_same_small_image(
    ours: Hash,
    peer: Callable[..., imagehash.ImageHash],
    size: tuple[int, int],
    images: list[NDArray[np.uint8]],
) -> None:
    pixels = np.concatenate([small(images, size), degenerate()[:, : size[1], : size[0]]])
    expected = theirs(peer, pixels)
    assert to_hex(ours(pixels)) == expected
    assert to_hex(ours(torch.from_numpy(pixels)[..., None])) == expected
    assert (from_hex(expected) == ours(pixels)).all()
    assert len(set(expected)) > len(images)


@pytest.mark.parametrize(("ours", "peer", "size"), CASES)
def test_bit_equal_from_the_whole_image(
    ours: Hash,
    peer: Callable[..., imagehash.ImageHash],
    size: tuple[int, int],
    images: list[NDArray[np.uint8]],
) -> None:
    assert to_hex(ours(images)) == theirs(peer, images)
    crops = [image[:130, :128].copy() for image in images if min(image.shape[:2]) >= 130]
    assert to_hex(ours(np.stack(crops))) == theirs(peer, crops)
    # DALI's grey is off by one here and there
    apart = np.bitwise_count(ours(transforms.apply(images, HASH_VIEW)) ^ ours(images))
    assert apart.max() <= 2
    assert (apart == 0).mean() > 0.97


def test_alike_is_near_and_different_is_far(photos: dict[str, NDArray[np.uint8]]) -> None:
    whole = list(photos.values())
    smaller = [np.asarray(Image.fromarray(p).resize((p.shape[1] * 2 // 3, p.shape[0] * 2 // 3))) for p in whole]
    for ours in (phash, dhash):
        a, b = ours(whole), ours(smaller)
        apart = np.bitwise_count(a[:, None] ^ b)
        assert np.diag(apart).max() <= 6 < apart[~np.eye(len(a), dtype=bool)].min()


def test_colours_become_grey_as_in_pillow(photos: dict[str, NDArray[np.uint8]]) -> None:
    for photo in photos.values():
        expected = np.asarray(Image.fromarray(photo).convert("L"))
        assert (grey(photo[None].copy()).numpy()[0] == expected).all()
    thumbnails = np.stack([np.asarray(Image.fromarray(photo).resize((32, 32))) for photo in photos.values()])
    assert to_hex(phash(thumbnails)) == theirs(imagehash.phash, thumbnails)


@pytest.mark.parametrize(("ours", "peer", "size"), CASES)
def test_none_and_many(ours: Hash, peer: object, size: tuple[int, int]) -> None:
    assert ours(np.empty((0, size[1], size[0]), np.uint8)).shape == ours([]).shape == (0,)
    many = np.random.default_rng(0).integers(0, 256, (2500, size[1], size[0]), np.uint8)  # more than one block
    one_by_one = np.concatenate([ours(many[i : i + 1]) for i in range(0, 2500, 100)])
    assert (ours(many)[::100] == one_by_one).all()


@pytest.mark.parametrize("shape", [(1, 0, 32), (1, 32, 32, 4), (32, 32)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"0 x 32 pixels|\(N, h, w, 3\)"):
        phash(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        phash(np.zeros((1, 32, 32), np.float32))


def test_without_scipy_only_degenerate_images_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.fft", None)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32), np.uint8)
    assert to_hex(phash(pixels)) == theirs(imagehash.phash, pixels)
    with pytest.raises(ImportError, match=r"pip install 'curator-dali\[curate\]'"):
        phash(np.zeros((1, 32, 32), np.uint8))


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_hex_goes_round(values: list[int]) -> None:
    texts = to_hex(np.array(values, np.uint64))
    assert from_hex(texts).tolist() == values
    assert all(str(imagehash.hex_to_hash(text)) == text for text in texts)


@pytest.mark.parametrize("text", ["", "abc", "g" * 16, "0x" + "0" * 14, "1" * 17])
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="16 hexadecimal digits"):
        from_hex(["0" * 16, text])

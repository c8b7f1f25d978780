"""Hashes against imagehash, on real photographs, crops of them, and images on which rounding decides."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Literal

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from curator_dali import transforms
from curator_dali.arrays import objects
from curator_dali.similarity import dhash, find_comparable, hash_images, near_pairs, phash, to_hex
from curator_dali.similarity.hashes import from_hex, grey
from curator_dali.stages.deduplicate import HASH_VIEW
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


KINDS: list[Literal["phash", "dhash"]] = ["phash", "dhash"]
QUALITIES = (5, 10, 30, 50, 75, 90, 95, 100)


def as_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(helpers.encode(pixels, quality=quality))).convert("RGB"))


def one_colour() -> list[NDArray[np.uint8]]:
    colours = ["white", "black", "red", "blue", "grey", (12, 200, 99), (250, 251, 249)]
    sizes = [(200, 150), (64, 64), (33, 47), (700, 500), (1, 1)]
    whole = [np.asarray(Image.new("RGB", size, colour)) for size in sizes for colour in colours]
    return [*whole, *(as_jpeg(image, quality) for image in whole for quality in QUALITIES)]


def noisy_pages() -> list[NDArray[np.uint8]]:
    """White, cream, grey and black with noise, as scanners and cameras make it."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(64):
        colour = np.array([(255, 255, 255), (245, 240, 230), (128, 128, 128), (3, 3, 3)][number % 4])
        pixels = np.clip(colour + rng.normal(0, 1 + number % 3, (300, 200, 3)), 0, 255).round().astype(np.uint8)
        found += [pixels, as_jpeg(pixels, QUALITIES[number % 8])]
    return found


def ramps() -> list[NDArray[np.uint8]]:
    """From shade to shade, to the right and down, rising and falling."""
    y, x = np.mgrid[:150, :200]
    found = []
    for first, last in ((0, 255), (50, 200), (100, 125), (200, 100), (255, 0)):
        for share in (x / 199, y / 149):
            pixels = np.repeat((first + (last - first) * share)[..., None], 3, 2).round().astype(np.uint8)
            found += [pixels, as_jpeg(pixels, 75)]
    return found


def page(lines: int, seed: int) -> NDArray[np.uint8]:
    """A page with lines of text somewhere."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (850, 1100), "white")
    draw, font, top = ImageDraw.Draw(image), ImageFont.load_default(16), int(rng.integers(60, 1000 - 30 * lines))
    for line in range(lines):
        text = "".join(rng.choice([*"etaoinshrdlu      "], int(rng.integers(40, 75))))
        draw.text((90, top + 24 * line), text, "black", font)
    return np.asarray(image)


def faint(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With a tenth of its contrast."""
    return (128 + (pixels.astype(float) - 128) / 10).round().astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_structure_are_blank(kind: Literal["phash", "dhash"]) -> None:
    assert hash_images(one_colour(), kind)[1].all()
    hashes, blank = hash_images(noisy_pages(), kind)
    assert blank.mean() > 0.75
    some = hashes[~blank]  # of the noise that is left none is like another
    pairs = near_pairs(some, 6)
    assert not len(pairs.first)
    assert (pairs.same == np.arange(len(some))).all()


def test_ramps_are_blank_as_their_hash_is_that_of_one_colour_or_of_another_ramp() -> None:
    assert hash_images(ramps(), "phash")[1].all()
    assert hash_images(ramps(), "dhash")[1].all()
    y, x = np.mgrid[:32, :32].astype(np.uint8)
    assert phash(np.stack([x * 8, y * 8, np.full((32, 32), 200, np.uint8)])).tolist() == [1 << 63] * 3
    falls, rises = dhash([255 - 8 * x, 8 * y, 8 * x])[[0, 1]].tolist(), dhash([8 * x]).tolist()
    assert (falls, rises) == ([0, 0], [2**64 - 1])


def test_drawings_of_strong_shapes_are_not_blank() -> None:
    shapes = []
    for shape, box in (
        ("ellipse", (60, 60, 140, 140)),
        ("rectangle", (60, 60, 140, 140)),
        ("ellipse", (95, 95, 105, 105)),
    ):
        for colours in (("white", "black"), ("black", "white"), ("white", "red")):
            image = Image.new("RGB", (200, 200), colours[0])
            getattr(ImageDraw.Draw(image), shape)(box, fill=colours[1])
            shapes += [np.asarray(image), as_jpeg(np.asarray(image), 80)]
    assert not hash_images(shapes, "phash")[1].any()
    assert not hash_images(shapes, "dhash")[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_photographs_are_not_blank(kind: Literal["phash", "dhash"], photos: dict[str, NDArray[np.uint8]]) -> None:
    assert not hash_images([*photos.values(), *map(faint, photos.values())], kind)[1].any()
    crops = [np.ascontiguousarray(crop) for _, crop in helpers.crops(photos, 2000, shortest=64, longest=256, seed=5)]
    hashes, blank = hash_images(crops, kind)
    assert (hashes == (phash if kind == "phash" else dhash)(crops)).all()
    contrast = np.array([np.asarray(Image.fromarray(crop).convert("L")).std() for crop in crops])
    assert blank[contrast < 0.5].all()  # of a night, and margins
    assert 0 < blank.sum() < 20
    # by dHash also skies that are darker above: nothing changes from left to right
    assert (contrast[blank] > 1).sum() <= (0 if kind == "phash" else 10)


def test_pages_with_a_few_lines_of_text_are_not_blank() -> None:
    pages = [page(lines, seed) for lines in (2, 3, 6, 30) for seed in range(5)]
    assert not hash_images(pages, "phash")[1].any()
    assert not hash_images(pages, "dhash")[1].any()


def test_blank_as_rgb_grey_and_small(photo: Image.Image) -> None:
    for kind, size in (("phash", (32, 32)), ("dhash", (9, 8))):
        small = np.stack([np.asarray(photo.convert("L").resize(size)), np.full(size[::-1], 90, np.uint8)])
        for images in (small, small[..., None], np.repeat(small[..., None], 3, 3), torch.from_numpy(small)):
            assert hash_images(images, kind)[1].tolist() == [False, True]  # type: ignore[arg-type]
        assert [len(part) for part in hash_images([], kind)] == [0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("as_text", [False, True])
def test_hashes_that_may_be_compared(as_text: bool) -> None:
    values = np.array([5, 0, 1 << 63, 2**64 - 1, 0xE7989A656192A6D9], np.uint64)
    for kind, wanted in {"phash": [3, 4], "dhash": [0, 2, 4]}.items():
        rows, hashes = find_comparable(objects(to_hex(values)) if as_text else values, kind)
        assert rows.tolist() == wanted
        assert hashes.dtype == np.uint64
        assert hashes.tolist() == values[wanted].tolist()
    rows, hashes = find_comparable(np.array([None, to_hex(values)[0], None, to_hex(values)[1]], object), "dhash")
    assert (rows.tolist(), hashes.tolist()) == ([1], [5])
    for nothing in (np.array([None], object), np.empty(0, np.uint64), np.empty(0, object)):
        assert [len(found) for found in find_comparable(nothing, "phash")] == [0, 0]

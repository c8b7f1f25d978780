"""Exact duplicates: equal for equal pixels, different for everything that is nearly equal."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from curator_dali.similarity import content_hash, pixel_hash, same_digests, to_hex
from tests import helpers


def near_equal(photo: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Different images that are easily confused with a photograph and with each other."""
    height, width = photo.shape[:2]
    found = [photo]

    def changed() -> NDArray[np.uint8]:
        found.append(photo.copy())
        return found[-1]

    for y, x, channel in [(0, 0, 0), (0, 0, 2), (height // 2, width // 3, 1), (height - 1, width - 1, 2)]:
        changed()[y, x, channel] ^= 1
    both = changed()
    both[0, 0, 0] ^= 1
    both[-1, -1, -1] ^= 1
    for a, b in [((0, 0), (1, 1)), ((5, 5), (5, 6)), ((0, 0), (height - 1, width - 1))]:
        swapped = changed()
        swapped[a], swapped[b] = photo[b], photo[a]
    rows = changed()
    rows[[3, 40]] = photo[[40, 3]]
    columns = changed()
    columns[:, [3, 40]] = photo[:, [40, 3]]
    # chunks of the hash change places
    flat = photo.reshape(-1)
    found.append(np.concatenate([flat[8192:16384], flat[:8192], flat[16384:]]).reshape(photo.shape))
    found += [np.ascontiguousarray(p) for p in (photo[::-1], photo[:, ::-1], photo[..., ::-1], photo.swapaxes(0, 1))]
    found += [photo.reshape(width, height, 3), photo.reshape(height * width, 1, 3), photo.reshape(1, -1, 3)]
    found += [
        photo[:-1],
        photo[:, :-1],
        np.concatenate([photo, np.zeros_like(photo[:1])]),
        photo.reshape(height, -1, 1),
    ]
    return [np.ascontiguousarray(image) for image in found]


def test_never_across_different_content(photos: dict[str, NDArray[np.uint8]]) -> None:
    images = near_equal(photos["chelsea"].copy()) + near_equal(photos["coffee"].copy())
    images += [np.full((8, 8, 3), shade, np.uint8) for shade in range(256)]
    images += [np.zeros((height, width, 3), np.uint8) for height in range(1, 40) for width in range(1, 40)]
    shown = {(image.shape, image.tobytes()) for image in images}
    digests = pixel_hash(images)
    assert digests.shape == (len(images), 2)
    assert len(set(to_hex(digests))) == len(shown)
    for half in (digests & np.uint64(0xFFFFFFFF), digests >> np.uint64(32)):  # every 32 bits alone are a good hash
        for column in half.T:
            assert len(np.unique(column)) >= len(shown) - 1


def test_every_single_bit_counts() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    flipped = np.stack([image] * (image.size * 8))
    bits = np.arange(image.size * 8)
    flipped.reshape(len(bits), -1)[bits, bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
    assert len(np.unique(pixel_hash(np.concatenate([image[None], flipped])), axis=0)) == len(bits) + 1


def test_equal_pixels_however_they_come(photos: dict[str, NDArray[np.uint8]]) -> None:
    """Of two files of other bytes with the same pixels; one by one, batched, as a view, in torch."""
    photo = photos["motorcycle_left"].copy()
    files = [helpers.encode(photo, "PNG"), helpers.encode(photo, "BMP"), helpers.encode(photo, "WEBP", lossless=True)]
    assert len({content_hash(file) for file in files}) == 3
    decoded = [np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    wide = np.zeros((photo.shape[0], photo.shape[1] + 9, 3), np.uint8)
    wide[:, 4:-5] = photo
    digests = np.concatenate(
        [
            pixel_hash(decoded),
            pixel_hash(np.stack([photo, photo])),
            pixel_hash(torch.from_numpy(photo)[None]),
            pixel_hash([wide[:, 4:-5]]),
        ]
    )
    assert len(np.unique(digests, axis=0)) == 1


def test_the_digest_stays_what_it_is() -> None:
    """Digests are stored, and compared with those of later versions."""
    image = (np.arange(100 * 90 * 3) * 7 % 251).astype(np.uint8).reshape(1, 100, 90, 3)
    assert to_hex(pixel_hash(image)) == ["b3f8bff0c1906eb8e2418034c6222696"]
    assert content_hash(b"curator").hex() == "4137d18032ebad21bb9e3a48dfacc730"


def test_the_digest_is_what_its_module_says(photos: dict[str, NDArray[np.uint8]]) -> None:
    """The definition in whole numbers, one after the other."""

    def numbers(stream: int, count: int) -> list[int]:
        found = []
        for i in range(1, count + 1):
            x = (i * 0x9E3779B97F4A7C15 + (stream << 61)) % 2**64
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
            found.append(x ^ x >> 31)
        return found

    image = photos["coffee"][:80, :150]
    data = image.tobytes()
    chunks = [data[start : start + 8192] for start in range(0, len(data), 8192)]
    inner = [number >> 32 for number in numbers(0, 4 * 8192)]
    sums = [[sum(b * inner[4 * i + c] for i, b in enumerate(chunk)) for c in range(4)] for chunk in chunks]
    words = [[3] * 4, [80] * 4, [150] * 4, [3] * 4]
    words += [[s % 2**32 for s in four] for four in sums] + [[s >> 32 for s in four] for four in sums]
    keys = numbers(1, 4 * len(words))
    columns = [sum(word[c] * keys[4 * i + c] for i, word in enumerate(words)) % 2**64 >> 32 for c in range(4)]
    assert to_hex(pixel_hash(image[None].copy())) == ["".join(f"{column:08x}" for column in columns)]


def test_images_larger_than_a_block() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 1100, 1000, 3), np.uint8)
    other = image.copy()
    other[0, -1, -1, -1] ^= 1
    assert (pixel_hash(image) == pixel_hash([image[0]])).all()
    assert (pixel_hash(image) != pixel_hash(other)).any()


def test_none() -> None:
    assert pixel_hash([]).shape == pixel_hash(np.empty((0, 4, 4, 3), np.uint8)).shape == (0, 2)
    assert pixel_hash([np.empty((0, 3), np.uint8), np.empty((3, 0), np.uint8)]).shape == (2, 2)
    assert same_digests([]).shape == (0,)
    with pytest.raises(ValueError, match="uint8"):
        pixel_hash(np.zeros((1, 2, 2), np.int64))


@given(st.lists(st.integers(0, 5)), st.booleans())
def test_same_digests_names_the_first(which: list[int], as_bytes: bool) -> None:
    pool = np.random.default_rng(0).integers(0, 2**63, (6, 2)).astype(np.uint64)
    pool[1, 0], pool[2, 1] = pool[0, 0], pool[0, 1]  # half of a digest is not enough
    digests = pool[which].reshape(-1, 2)
    same = same_digests([digest.tobytes() for digest in digests] if as_bytes else digests)
    assert same.tolist() == [which.index(number) for number in which]


def test_a_short_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        same_digests([b"x" * 16, b"short"])
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        same_digests(np.zeros(3, np.uint64))

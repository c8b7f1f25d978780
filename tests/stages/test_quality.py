"""`Quality` against plain numpy on real photographs, and against values that one can work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from curator_dali.stages import Quality
from curator_dali.stages.quality import SIDE
from tests.stages.helpers import batch_of

SCORES = ("sharpness", "brightness", "contrast", "entropy")


def measure(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    batch = Quality()(batch_of(Quality.VIEW, pixels))
    return {name: batch.columns[name] for name in Quality().writes}


def by_numpy(pixels: NDArray[np.uint8]) -> tuple[float, ...]:
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    shares = np.bincount(grey.astype(int).ravel(), minlength=256) / grey.size
    bits = -sum(share * np.log2(share) for share in shares if share)
    return float(laplacian.var()), grey.mean() / 255, grey.std() / 255, float(bits)


@pytest.fixture(scope="module")
def views(photos: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.fromarray(photo).resize((SIDE, SIDE))) for photo in photos.values()])


def test_equals_numpy_on_photographs(views: NDArray[np.uint8]) -> None:
    found = measure(views)
    for row, pixels in enumerate(views):
        assert [found[name][row] for name in SCORES] == pytest.approx(by_numpy(pixels), rel=1e-6)


def test_scores_do_not_depend_on_the_batch_or_on_threads(views: NDArray[np.uint8]) -> None:
    whole = measure(views)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = [measure(views[row : row + 1]) for row in range(len(views))]
    finally:
        torch.set_num_threads(threads)
    for name in SCORES:
        assert whole[name].tolist() == [one[name][0] for one in alone]


def test_values_by_hand() -> None:
    black, half, stripes = (np.zeros((SIDE, SIDE, 3), np.uint8) for _ in range(3))
    half[: SIDE // 2] = 255
    stripes[:, ::2] = 255  # every pixel's left and right neighbours are the opposite of it: |Laplacian| = 510
    grey = np.full((SIDE, SIDE, 3), 51, np.uint8)
    found = measure(np.stack([black, half, stripes, grey]))
    assert found["brightness"].tolist() == pytest.approx([0, 0.5, 0.5, 0.2])
    assert found["contrast"].tolist() == pytest.approx([0, 0.5, 0.5, 0])
    assert found["entropy"].tolist() == pytest.approx([0, 1, 1, 0])
    assert found["sharpness"].tolist() == pytest.approx([0, 255**2 * 2 / (SIDE - 2), 510**2, 0])
    assert not np.signbit(found["entropy"]).any()
    every = np.repeat(np.arange(SIDE, dtype=np.uint8)[None, :, None], SIDE, 0).repeat(3, 2)
    assert measure(every[None])["entropy"][0] == 8


def test_blur_lowers_sharpness_and_nothing_else_much(photos: dict[str, NDArray[np.uint8]]) -> None:
    sharp = Image.fromarray(photos["chelsea"])
    pixels = [np.asarray(sharp.reduce(factor).resize((SIDE, SIDE))) for factor in (1, 2, 4)]
    found = measure(np.stack(pixels))
    assert found["sharpness"][0] > 2 * found["sharpness"][1] > 4 * found["sharpness"][2]
    assert np.ptp(found["brightness"]) < 0.01


def test_shape_is_that_of_the_upright_original() -> None:
    batch = batch_of(Quality.VIEW, np.zeros((2, SIDE, SIDE, 3), np.uint8))
    batch.columns["width"][:], batch.columns["height"][:] = [40_000, 30], [60_000, 40]
    Quality()(batch)
    assert batch.columns["aspect_ratio"].tolist() == pytest.approx([2 / 3, 0.75])
    assert batch.columns["pixels"].tolist() == [2_400_000_000, 1200]  # more than 32 bits hold
    for name, kind in Quality().writes.items():
        assert batch.columns[name].dtype == kind


def test_no_images() -> None:
    assert all(len(values) == 0 for values in measure(np.zeros((0, SIDE, SIDE, 3), np.uint8)).values())

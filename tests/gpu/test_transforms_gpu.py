"""Random transforms on a real GPU: what the CPU gives for the same samples."""

import numpy as np
import pytest
from numpy.typing import NDArray

from curator_dali import transforms as T

pytestmark = pytest.mark.gpu

EACH = [
    T.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
    T.RandomGrayscale(0.5),
    T.GaussianBlur(p=0.5),
    T.Rotate(30, p=0.6),
    T.RandomErasing(0.7),
    T.AutoAugment(),
    T.RandAugment(1),
    T.TrivialAugmentWide(),
]


@pytest.mark.parametrize("transform", EACH, ids=lambda transform: type(transform).__name__)
def test_a_sample_looks_as_on_the_cpu(photos: dict[str, NDArray[np.uint8]], transform: T.RandomTransform) -> None:
    images = [np.ascontiguousarray(photo[20:220, 30:254]) for photo in photos.values()] * 4
    expected = T.apply(images, transform, "cpu", key=(1, 2))
    found = T.apply(images, transform, "cuda:0", key=(1, 2))
    again = T.apply(images[::-1], transform, "cuda:0", key=(1, 2), indices=np.arange(len(images))[::-1])
    assert np.array_equal(found.get(), again.get()[::-1])
    difference = np.abs(found.get().astype(int) - expected.astype(int))
    assert (difference > 2).mean() < 0.01

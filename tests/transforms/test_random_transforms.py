"""Random transforms: a sample looks the same whatever surrounds it, and parameters stay in their ranges."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali import transforms as T
from curator_dali.sources import MemorySource
from curator_dali.transforms.graph import Graph
from tests import helpers

COLOURS = T.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
CHAINS: dict[str, tuple[T.Transform, ...]] = {
    "crop first": (
        T.RandomResizedCrop(24),
        T.HorizontalFlip(),
        COLOURS,
        T.RandomGrayscale(0.3),
        T.GaussianBlur(p=0.5),
        T.Rotate(30, p=0.6),
        T.RandomErasing(0.7),
    ),
    "ragged": (T.HorizontalFlip(), COLOURS, T.Rotate(90, "nearest"), T.RandomErasing(0.9, value=9.0)),
    "policies": (T.AutoAugment(), T.RandAugment(), T.Resize((30, 24)), T.TrivialAugmentWide(interpolation="linear")),
    "normalised": (T.Resize(20), T.RandomResizedCrop((16, 20)), T.HorizontalFlip(), T.Normalize(), T.RandomErasing()),
}
EVERY = (
    T.RandomResizedCrop(24),
    T.HorizontalFlip(),
    T.ColorJitter(0.4, (0.2, 1.7), 0.4, 0.1, p=0.8),
    T.RandomGrayscale(0.3),
    T.GaussianBlur(p=0.5),
    T.Rotate(30, p=0.6),
    T.RandomErasing(0.7),
    T.AutoAugment(),
    T.RandAugment(3, 7),
    T.TrivialAugmentWide(),
)
COUNT = 26


@pytest.fixture(scope="module")
def pictures(photos: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Crops of photographs in many shapes, down to one pixel."""
    rng = np.random.default_rng(3)
    found = [np.ascontiguousarray(crop) for _, crop in helpers.crops(photos, COUNT - 2, shortest=20, longest=70)]
    return [*found, *(rng.integers(0, 256, shape, np.uint8) for shape in [(1, 1, 3), (3, 40, 3)])]


def source(pictures: Sequence[NDArray[np.uint8]], pillow: set[int] | None = None) -> MemorySource:
    """The same pixels in every format: PNG for DALI, TIFF for the samples that Pillow is to decode."""
    chosen = pillow or set()
    return MemorySource([helpers.encode(p, "TIFF" if i in chosen else "PNG") for i, p in enumerate(pictures)])


def seen(given_source: Any, chain: Sequence[T.Transform], pillow: int = 0, **options: Any) -> dict[str, NDArray[Any]]:
    """Image id -> what one pass gives; Pillow must have decoded so many."""
    options = {"device": "cpu", "num_threads": 1, "batch_size": 7, "shuffle": 5} | options
    with cd.ImageLoader(given_source, transforms=chain, **options) as loader:
        loader.set_epoch(1)
        found = {
            item.image_id: np.array(image) for batch in loader for item, image in zip(batch, batch.images, strict=True)
        }
        assert loader.errors == []
        assert loader.stats.fallback == pillow
        return found


def assert_same(some: dict[str, NDArray[Any]], others: dict[str, NDArray[Any]]) -> None:
    assert some.keys() == others.keys()
    for name, image in some.items():
        assert np.array_equal(image, others[name]), name


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_sample_is_the_same_whatever_surrounds_it(
    pictures: list[NDArray[np.uint8]], chain: tuple[T.Transform, ...]
) -> None:
    whole = source(pictures)
    expected = seen(whole, chain)
    assert len(expected) == COUNT
    assert_same(expected, seen(whole, chain, batch_size=COUNT, num_threads=2, prefetch=4))
    assert_same(expected, seen(whole, chain, batch_size=1, shuffle=5, prefetch=1))
    mixed = source(pictures, {1, 2, 9, COUNT - 2, COUNT - 1})
    assert_same(expected, seen(mixed, chain, 5, batch_size=9, num_threads=2))
    assert_same(expected, seen(source(pictures, set(range(COUNT))), chain, COUNT))
    ranks = [seen(whole, chain, batch_size=4, shard=cd.Shard(rank, 3)) for rank in range(3)]
    assert_same(expected, ranks[0] | ranks[1] | ranks[2])
    for image_id in ranks[0].keys() & ranks[1].keys():  # the last step is filled up from the first samples
        assert np.array_equal(ranks[0][image_id], ranks[1][image_id])


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_resumed_pass_gives_the_same(pictures: list[NDArray[np.uint8]], chain: tuple[T.Transform, ...]) -> None:
    whole = source(pictures)
    expected = seen(whole, chain)
    options: dict[str, Any] = {"device": "cpu", "num_threads": 1, "shuffle": 5, "transforms": chain}
    with cd.ImageLoader(whole, batch_size=5, **options) as loader:
        loader.set_epoch(1)
        batches = iter(loader)
        begun = [next(batches), next(batches)]
        state = loader.state_dict()
    with cd.ImageLoader(whole, batch_size=8, **options) as other:
        other.load_state_dict(state)
        rest = list(other)
    found = {
        item.image_id: np.array(image)
        for batch in [*begun, *rest]
        for item, image in zip(batch, batch.images, strict=True)
    }
    assert_same(expected, found)


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
def test_seed_epoch_sample_place_and_stream_give_other_parameters(transform: T.RandomTransform) -> None:
    indices, sizes = np.arange(40), np.tile(np.array([[60, 80]]), (40, 1))

    def values(
        *chain: T.Transform, key: tuple[int, int] = (1, 2), at: NDArray[np.int64] = indices
    ) -> list[NDArray[Any]]:
        found = Graph([chain]).arguments(key, at, sizes)
        last = f"{len(chain) - 1}."
        return [array for name, array in found.items() if name.startswith(last)]

    def differ(some: list[NDArray[Any]], others: list[NDArray[Any]]) -> bool:
        return any(not np.array_equal(a, b) for a, b in zip(some, others, strict=True))

    usual = values(transform)
    assert not differ(usual, values(transform))
    assert differ(usual, values(transform, key=(2, 2)))
    assert differ(usual, values(transform, key=(1, 3)))
    assert differ(usual, values(transform, at=indices + 40))
    assert differ(usual, values(T.CenterCrop((60, 80)), transform))
    assert differ(usual, values(replace(transform, stream=1)))
    assert any(len(np.unique(array, axis=0)) > 1 for array in usual)  # samples of one batch differ


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 10**6),
    indices=st.lists(st.integers(0, 2**62), min_size=1, max_size=12),
    data=st.data(),
)
def test_parameters_are_a_samples_own_and_in_range(
    seed: int, epoch: int, indices: list[int], data: st.DataObject
) -> None:
    sides = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
    sizes = np.array(data.draw(st.lists(sides, min_size=len(indices), max_size=len(indices))))
    numbers = np.array(indices)
    graph = Graph([(transform,) for transform in EVERY])
    whole = graph.arguments((seed, epoch), numbers, sizes)
    some = np.array(data.draw(st.permutations(range(len(indices)))))[: data.draw(st.integers(1, len(indices)))]
    part = graph.arguments((seed, epoch), numbers[some], sizes[some])
    assert whole.keys() == part.keys() == graph.inputs.keys()
    for name, values in whole.items():
        assert values.dtype == graph.inputs[name][0]
        assert np.array_equal(values[some], part[name]), name
        assert np.isfinite(values).all()

    start, shape = whole["0.start"], whole["0.shape"]
    assert (start >= 0).all()
    assert (shape >= 1).all()
    assert (start + shape <= sizes).all()
    assert set(whole["1.mirror"].tolist()) <= {0, 1}
    assert ((whole["4.sigma"] >= 0.1) & (whole["4.sigma"] <= 2)).all()
    assert (whole["4.window_size"] % 2 == 1).all()
    assert (np.abs(whole["5.angle"]) <= 30).all()
    anchor, erased = whole["6.anchor"], whole["6.shape"]
    assert (anchor >= 0).all()
    assert (anchor + erased <= sizes).all()
    assert (np.maximum(erased - 0.5, 0).prod(axis=1) <= 0.33 * sizes.prod(axis=1)).all()  # sides are rounded


def test_probabilities_are_kept() -> None:
    numbers, sizes = np.arange(20_000), np.tile(np.array([[60, 80]]), (20_000, 1))
    found = Graph([(transform,) for transform in EVERY]).arguments((0, 0), numbers, sizes)
    shares = {
        "mirror": (found["1.mirror"].mean(), 0.5),
        "colours": (found["2.apply"].mean(), 0.8),
        "grey": (found["3.apply"].mean(), 0.3),
        "blur": (found["4.apply"].mean(), 0.5),
        "turn": (found["5.apply"].mean(), 0.6),
        "erase": ((found["6.shape"] > 0).all(axis=1).mean(), 0.7),
    }
    for name, (share, p) in shares.items():
        assert share == pytest.approx(p, abs=0.015), name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: T.ColorJitter(brightness=-1), "ColorJitter.brightness is -1"),
        (lambda: T.ColorJitter(contrast=(2.0, 1.0)), "ColorJitter.contrast"),
        (lambda: T.ColorJitter(hue=0.6), "0 to 0.5"),
        (lambda: T.RandomGrayscale(1.5), "RandomGrayscale.p is 1.5"),
        (lambda: T.GaussianBlur(0), "GaussianBlur.sigma"),
        (lambda: T.GaussianBlur(kernel_size=4), "odd positive"),
        (lambda: T.Rotate(400), "Rotate.degrees is 400"),
        (lambda: T.Rotate(1, "cubic"), 'allowed: "linear", "nearest"'),  # type: ignore[arg-type]
        (lambda: T.Rotate(1, fill=256), "0 to 255"),
        (lambda: T.RandomErasing(scale=(0.5, 0.1)), "RandomErasing.scale"),
        (lambda: T.RandomResizedCrop(0), "RandomResizedCrop.size is 0"),
        (lambda: T.RandomResizedCrop(3, ratio=(0, 1)), "RandomResizedCrop.ratio"),
        (lambda: T.HorizontalFlip(-0.1), "HorizontalFlip.p is -0.1"),
    ],
)
def test_wrong_values_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()

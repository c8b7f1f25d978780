"""Mixtures: shares as asked for, every sample of a source before any comes again, a pure function of the position."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.sampling import MixedOrder, Shard, Shuffle, quantise

GOLDEN = [6, 0, 3, 2, 4, 5, 8, 1, 3, 0, 2, 7, 1, 5, 4, 6]


def mixed(sizes: list[int], counts: list[int], samples: int, shuffle: Shuffle | None) -> MixedOrder:
    names = [f"s{i}" for i in range(len(sizes))]
    return MixedOrder(shuffle, [np.array([n], np.int64) for n in sizes], names, counts, samples)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ({"a": 0.7, "b": 0.3}, {"a": 7, "b": 3}),
        ({"a": 1}, {"a": 1}),
        ({"a": 5.0, "b": 5.0, "c": 10.0}, {"a": 1, "b": 1, "c": 2}),
        ({"a": 0.999, "b": 0.001}, {"a": 999, "b": 1}),
        ({"a": 2, "b": 1}, {"a": 667, "b": 333}),
    ],
)
def test_weights_become_small_whole_numbers(weights: dict[str, float], counts: dict[str, int]) -> None:
    assert quantise(weights) == counts


@settings(max_examples=100)
@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=6))
def test_shares_are_kept(weights: list[float]) -> None:
    named = {str(i): weight for i, weight in enumerate(weights)}
    if min(weights) / sum(weights) < 1e-4:
        return
    counts = quantise(named)
    shares = {name: weight / sum(weights) for name, weight in named.items()}
    for name, count in counts.items():
        assert count / sum(counts.values()) == pytest.approx(shares[name], rel=0.006, abs=1e-5)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "1", True, 1e-9])
def test_a_wrong_weight_is_refused_by_its_name(weight: object) -> None:
    with pytest.raises(ValueError, match="'b'"):
        quantise({"a": 1.0, "b": weight})  # type: ignore[dict-item]


def test_the_order_is_pinned() -> None:
    """A golden order: it must not change between releases, or resumed runs would see other samples."""
    order = mixed([6, 3], [3, 1], 16, Shuffle(11))
    assert (order.indices(np.arange(16), 1) % 9).tolist() == GOLDEN


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.none() | st.integers(0, 2**70),
    window=st.none() | st.integers(1, 20),
    samples=st.integers(1, 90),
    data=st.data(),
)
def test_shares_hold_and_no_sample_comes_again_before_all_did(
    sizes: list[int], seed: int | None, window: int | None, samples: int, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    order = mixed(sizes, counts, samples, None if seed is None else Shuffle(seed, window))
    total, period = sum(sizes), sum(counts)
    drawn = np.concatenate([order.indices(np.arange(samples), epoch) for epoch in range(4)])
    begins = np.cumsum([0, *sizes])
    whole = len(drawn) // period * period  # of complete periods, over epochs
    owner = np.searchsorted(begins, drawn % total, side="right") - 1
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        for start in range(0, whole, period):
            assert int((owner[start : start + period] == number).sum()) == count
        seen = Counter(drawn[:whole][owner[:whole] == number].tolist())
        assert all(times == 1 for times in seen.values())  # index and repeat together are unique
        draws = whole // period * count
        times = Counter((drawn[:whole][owner[:whole] == number] % total).tolist())
        assert set(times.values()) <= {draws // size, draws // size + 1}
        assert sum(times.values()) == draws
    if seed is None:
        again = mixed(sizes, counts, samples, None)
        assert np.array_equal(again.indices(np.arange(samples), 0), order.indices(np.arange(samples), 0))


def test_a_position_needs_no_other() -> None:
    order = mixed([500, 70, 9], [5, 3, 2], 1000, Shuffle(3, 50))
    whole = order.indices(np.arange(1000), 2)
    some = np.array([999, 3, 3, 500, 0])
    assert np.array_equal(order.indices(some, 2), whole[some])


def test_ranks_and_epochs_differ_and_a_period_is_shuffled_anew() -> None:
    order = mixed([1000, 1000], [1, 1], 1000, Shuffle(0))
    first = order.indices(np.arange(1000), 0)
    assert not np.array_equal(first, order.indices(np.arange(1000), 1))
    pattern = (first >= 1000).reshape(-1, 2)[:, 0]
    assert 200 < pattern.sum() < 300  # which of the two comes first
    seen = [index for rank in range(3) for part, _ in order.steps(0, 0, 7, Shard(rank, 3)) for index in part]
    assert set(seen) == set(first.tolist())


def test_a_billion_samples_cost_nothing() -> None:
    order = mixed([10**9, 10**9], [7, 3], 2 * 10**9, Shuffle(0))
    far = order.indices(np.arange(2 * 10**9 - 64, 2 * 10**9), 50)
    assert len(np.unique(far)) == 64
    assert (far >= 0).all()

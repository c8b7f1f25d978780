"""Order: a permutation for every N, equal steps on all ranks, exact resume with any world size."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.sampling import MixedOrder, Shard, Shuffle, uniforms
from curator_dali.sampling.order import permute

GOLDEN = [8, 9, 2, 7, 0, 4, 1, 3, 5, 6]
GOLDEN_WINDOWED = [6, 0, 4, 5, 2, 3, 7, 1, 8, 9]
PINNED = [
    [0.659398632930239, 0.6972440462470633, 0.4289304442830103],
    [0.4418450248728947, 0.8559239692746413, 0.009346807914858979],
]


def sizes_of(n: int, shards: int = 1) -> np.ndarray:
    return np.array([len(part) for part in np.array_split(np.arange(n), shards)], np.int64)


def test_permute_is_a_permutation_for_every_n_up_to_3000() -> None:
    for n in range(1, 3001):
        assert np.array_equal(np.sort(permute(np.arange(n), n, 7)), np.arange(n)), n


def test_permute_is_one_to_one_on_a_billion() -> None:
    n = 10**9
    out = permute(np.concatenate([np.arange(200_000), np.arange(n - 200_000, n)]), n, 3)
    assert out.min() >= 0
    assert out.max() < n
    assert len(np.unique(out)) == 400_000


def test_permute_moves_every_position_about_everywhere() -> None:
    n, keys = 100, 4000
    seen = np.array([permute(np.arange(n), n, key) for key in range(keys)])
    counts = np.array([np.bincount(seen[:, position], minlength=n) for position in range(n)])
    chi2 = ((counts - keys / n) ** 2 / (keys / n)).sum() / (n * n)
    assert 0.9 < chi2 < 1.1  # a uniform choice gives 1 - 1/n


def test_the_order_is_pinned() -> None:
    """A golden order: it must not change between releases, or resumed runs would see other samples."""
    order = Shuffle(1234).indices(np.arange(10), 5, sizes_of(10))
    windowed = Shuffle(1234, window=4).indices(np.arange(10), 5, sizes_of(10, 3))
    assert order.tolist() == GOLDEN
    assert windowed.tolist() == GOLDEN_WINDOWED


@given(
    n=st.integers(1, 400), shards=st.integers(1, 9), window=st.none() | st.integers(1, 500), seed=st.integers(-5, 2**70)
)
def test_every_epoch_is_a_permutation(n: int, shards: int, window: int | None, seed: int) -> None:
    order = Shuffle(seed, window=window).indices(np.arange(n), 1, sizes_of(n, shards))
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    sizes = sizes_of(500, 5)
    for window in (None, 100):
        orders = {tuple(Shuffle(s, window=window).indices(np.arange(500), e, sizes)) for s in (0, 1) for e in range(5)}
        assert len(orders) == 10


def test_a_window_reads_one_or_two_shards_at_a_time() -> None:
    sizes = sizes_of(1000, 10)
    order = Shuffle(1, window=50).indices(np.arange(1000), 0, sizes)
    assert all(len(set(order[i : i + 50] // 100)) <= 2 for i in range(0, 1000, 50))


def test_a_windows_shards_are_permuted_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(positions: np.ndarray, n: int, *keys: int) -> np.ndarray:
        asked.append(keys[-1])
        return permute(positions, n, *keys)

    monkeypatch.setattr("curator_dali.sampling.order.permute", counted)
    sizes, other, one = sizes_of(1000, 10), sizes_of(1000, 7), Shuffle(1, window=50)
    mix = MixedOrder(one, [sizes, other], ["a", "b"], [1, 1], 1000)
    for start in range(0, 1000, 100):
        one.indices(np.arange(start, start + 100), 3, sizes)
    assert asked.count(-1) == 1
    for start in range(0, 1000, 100):
        mix.indices(np.arange(start, start + 100), 0)
    assert asked.count(-1) == 1 + 2  # a mixture's sources have each their own


def test_what_a_shuffle_keeps_of_an_epoch_serves_no_other() -> None:
    sizes, positions = sizes_of(1000, 10), np.arange(1000)
    kept = Shuffle(1, window=50)
    for epoch in (0, 1, 0):
        for shards in (sizes, sizes_of(1000, 7), sizes):
            expected = Shuffle(1, window=50).indices(positions, epoch, shards)
            assert kept.indices(positions, epoch, shards).tolist() == expected.tolist()
    before = kept.indices(positions, 0, sizes)
    sizes[[0, 1]] = [1, 199]
    assert sorted(kept.indices(positions, 0, sizes)) == positions.tolist()
    assert kept.indices(positions, 0, sizes).tolist() != before.tolist()
    assert kept == Shuffle(1, window=50)
    assert len(pickle.dumps(kept)) == len(pickle.dumps(Shuffle(1, window=50)))


@settings(max_examples=200)
@given(
    n=st.integers(1, 200),
    worlds=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    batch=st.integers(1, 9),
    steps=st.lists(st.integers(0, 12), min_size=4, max_size=4),
)
def test_resume_with_other_world_sizes_sees_each_sample_once(
    n: int, worlds: list[int], batch: int, steps: list[int]
) -> None:
    """Interrupted after any number of steps, each time with another number of ranks."""
    seen: list[int] = []
    start = 0
    for turn, world in enumerate(worlds):
        remaining = n - start
        shares = [Shard(rank, world).num_samples(remaining) for rank in range(world)]
        assert len(set(shares)) == 1  # all ranks make the same steps
        last = turn == len(worlds) - 1
        take = shares[0] if last else min(shares[0], steps[turn] * batch)
        for rank in range(world):
            seen += Shard(rank, world).positions(start, take, n).tolist()
        start = min(n, start + take * world)
        if start == n:
            break
    assert set(seen) == set(range(n))
    assert len(seen) - n < worlds[min(turn, len(worlds) - 1)]  # only the last step wraps


def test_positions_are_the_same_in_pieces() -> None:
    shard = Shard(1, 3)
    whole = shard.positions(6, 20, 100)
    pieces = [shard.positions(6, 5, 100, first) for first in range(0, 20, 5)]
    assert np.array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_wrong_rank_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of world size {world}"):
        Shard(rank, world)


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_rank_and_world_size_come_from_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, RANK="1", WORLD_SIZE="4")
    assert Shard.from_torch() == Shard(1, 4)


def test_without_torchrun_a_process_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torch and accelerate: the same script runs under torchrun and alone."""
    set_environment(monkeypatch)
    assert Shard.from_torch() == Shard(0, 1)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"RANK": "1"}, "RANK is '1', WORLD_SIZE is None; set both"),
        ({"WORLD_SIZE": "2"}, "RANK is None, WORLD_SIZE is '2'; set both"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK is ''"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of world size 2"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], match: str) -> None:
    set_environment(monkeypatch, **values)
    with pytest.raises(ValueError, match=match):
        Shard.from_torch()


def test_uniforms_are_uniform_and_independent() -> None:
    """Neither a sample's numbers, nor those of neighbouring samples or epochs, move together."""
    lanes = np.concatenate([place * (1 << 16) + np.arange(6) for place in range(3)])
    drawn = uniforms((1, 2), np.arange(20_000), lanes)
    assert drawn.shape == (18, 20_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(np.quantile(drawn, np.linspace(0, 1, 11), axis=1).T - np.linspace(0, 1, 11)).max() < 0.02
    limit = 5 / 20_000**0.5  # of a correlation that is none
    assert np.abs(np.corrcoef(drawn) - np.eye(18)).max() < limit
    assert np.abs(np.corrcoef(drawn[:, 1:], drawn[:, :-1])[:18, 18:]).max() < limit
    assert np.abs(np.corrcoef(uniforms((1, 3), np.arange(20_000), lanes), drawn)[:18, 18:]).max() < limit


def test_uniforms_are_pinned() -> None:
    """Another value here is another augmentation of every sample of every run that is resumed."""
    drawn = uniforms((7, 1), np.array([0, 5, 10**12]), np.array([0, 1 << 16]))
    assert drawn.tolist() == PINNED


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_a_rank_takes_every_position_of_its_remainder(world_size: int) -> None:
    for rank in range(world_size):
        shard = Shard(rank, world_size)
        taken = shard.positions(0, shard.num_samples(20), 20)
        inside = taken[: len(range(rank, 20, world_size))]
        assert inside.tolist() == list(range(rank, 20, world_size))
        assert (taken[len(inside) :] < world_size).all()  # the epoch's first ones fill the last step up

"""Buckets: steps of one bucket on all ranks, every sample once, resumable with another number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.decoding.headers import read_headers
from curator_dali.errors import SourceError
from curator_dali.loader.state import order_of
from curator_dali.sampling import BucketedOrder, Buckets, Order, Shard, Shuffle, ShuffledOrder
from curator_dali.sources import EncodedBatch, MemorySource
from tests.helpers import encode

SIZES = Buckets([(16, 16), (16, 32), (32, 16)])


def bucketed(groups: np.ndarray, run: int, seed: int | None = 1) -> BucketedOrder:
    base = ShuffledOrder(None if seed is None else Shuffle(seed), np.array([len(groups)], np.int64))
    return BucketedOrder(base, SIZES, lambda: groups, run)


def steps(
    order: Order, start: int, batch: int, world: int, drop_last: bool = False
) -> list[tuple[list[list[int]], int]]:
    """For each step the samples of each rank, and the position behind it."""
    ranks = [list(order.steps(0, start, batch, Shard(rank, world), drop_last)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {order.count(0, start, batch, Shard(0, world), drop_last)}
    found = []
    for parts in zip(*ranks, strict=True):
        (end,) = {end for _, end in parts}
        found.append(([part.tolist() for part, _ in parts], end))
    return found


def test_an_image_goes_to_the_nearest_shape() -> None:
    sizes = np.array([[10, 10], [100, 250], [300, 100], [0, 0], [10, 13], [10, 15]])
    assert SIZES.assign(sizes).tolist() == [0, 1, 2, 255, 0, 1]


def test_buckets_from_ratios_have_about_the_pixels() -> None:
    made = Buckets.from_ratios([1, 1.5, 2 / 3], pixels=512 * 512, multiple=64)
    assert made.sizes == ((512, 512), (448, 640), (640, 448))


@pytest.mark.parametrize("sizes", [[], [(0, 5)], [5], [(1, 2), (1, 2)], [(1.5, 2)], [(i, 1) for i in range(1, 300)]])
def test_wrong_sizes_are_refused(sizes: list[object]) -> None:
    with pytest.raises(ValueError, match="Buckets"):
        Buckets(sizes)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.sampled_from([0, 1, 2, 255]), min_size=0, max_size=120),
    seed=st.none() | st.integers(0, 9),
    batch=st.integers(1, 7),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stop=st.integers(0, 30),
)
def test_each_sample_once_in_steps_of_one_bucket_with_a_resume(
    groups: list[int], seed: int | None, batch: int, worlds: tuple[int, int], stop: int
) -> None:
    cells = np.array(groups, np.uint8)
    known = cells[cells != 255]
    effective = np.where(cells == 255, np.bincount(known).argmax() if len(known) else 0, cells)
    before, after = worlds
    order: Order = bucketed(cells, batch * before, seed)
    done = steps(order, 0, batch, before)[:stop]
    position = done[-1][1] if done else 0
    state = {"epoch": 0, "position": position, **order.describe()}
    order = bucketed(cells, batch * after, seed).resume(state)
    rest = steps(order, position, batch, after)
    seen: list[int] = []
    for ranks, _ in done + rest:
        flat = [index for rank in ranks for index in rank]
        assert len({int(effective[index]) for index in flat}) == 1
        assert all(1 <= len(rank) <= batch for rank in ranks)
        assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
        distinct = set(flat)
        if len(flat) > len(distinct):  # fewer samples than ranks: some repeat one
            assert len(distinct) < len(ranks)
        seen += list(distinct)
    assert sorted(seen) == list(range(len(groups)))
    short = [ranks for ranks, _ in rest if sum(map(len, ranks)) < batch * after]
    assert len(short) <= 3  # only the last one of each bucket
    if before == after:
        assert done + rest == steps(bucketed(cells, batch * before, seed), 0, batch, before)


def test_only_the_last_step_of_a_bucket_is_short() -> None:
    groups = np.random.default_rng(0).integers(0, 3, 500).astype(np.uint8)
    order = bucketed(groups, 16)
    lengths = [sum(map(len, ranks)) for ranks, _ in steps(order, 0, 8, 2)]
    assert sorted(lengths)[3:] == [16] * (len(lengths) - 3)
    full = steps(order, 0, 8, 2, drop_last=True)
    assert {len(rank) for ranks, _ in full for rank in ranks} == {8}
    assert len(full) == len(lengths) - 3


def test_runs_of_buckets_are_mixed_and_differ_by_epoch() -> None:
    groups = np.repeat(np.arange(3, dtype=np.uint8), 200)
    order = bucketed(groups, 10)
    cells = [[int(groups[part[0]]) for part, _ in order.steps(epoch, 0, 10, Shard())] for epoch in (0, 1)]
    assert cells[0] != cells[1]
    assert sum(a != b for a, b in zip(cells[0], cells[0][1:], strict=False)) > 20


def test_without_a_shuffle_runs_come_by_their_first_samples() -> None:
    order = bucketed(np.array([0, 1, 0, 1, 0, 2], np.uint8), 2, seed=None)
    assert [part.tolist() for part, _ in order.steps(0, 0, 2, Shard())] == [[0, 2], [1, 3], [4], [5]]


def test_images_over_the_limit_have_no_bucket_whether_their_headers_are_known_or_not() -> None:
    shapes = [(30, 60), (20, 40), (60, 30), (30, 60), (8, 8), (80, 80)]
    source = MemorySource([encode(np.zeros((*shape, 3), np.uint8)) for shape in shapes])
    limited = order_of(source, Shuffle(1), SIZES, 2, 1000)
    fresh = limited.indices(np.arange(6), 0).tolist()
    assert source.headers(np.arange(6))["codec"].astype(bool).tolist() == [False, True, False, False, True, False]
    assert len(list(read_headers(source))) == 1  # with the default limit: now all are known
    assert source.headers(np.arange(6))["codec"].all()
    assert order_of(source, Shuffle(1), SIZES, 2, 1000).indices(np.arange(6), 0).tolist() == fresh
    headers = next(read_headers(source, 1000)).headers
    assert headers["codec"].astype(bool).tolist() == [False, True, False, False, True, False]


def test_stand_ins_are_of_the_same_bucket_first() -> None:
    groups = np.array([0, 1, 2] * 20, np.uint8)
    order = bucketed(groups, 4)
    for indices, end in order.steps(0, 0, 4, Shard()):
        first = next(order.stand_ins(0, end, 5))
        assert {int(groups[i]) for i in first} == {int(groups[indices[0]])}


def test_a_resumed_epoch_is_cut_anew_and_the_next_one_from_its_beginning() -> None:
    groups = np.array([0] * 70 + [1] * 30, np.uint8)
    old = bucketed(groups, 7)
    before = list(old.steps(3, 0, 7, Shard()))[:5]
    state = {"epoch": 3, "position": before[-1][1], **old.describe(3)}
    order = bucketed(groups, 10).resume(state)
    described = order.describe(3)["buckets"]
    assert described["run"] == 10
    assert sum(described["done"]) == state["position"]
    lengths = [len(part) for part, _ in order.steps(3, state["position"], 10, Shard())]
    assert sum(lengths) == 100 - state["position"]
    assert sorted(lengths)[2:] == [10] * (len(lengths) - 2)
    assert order.describe(4)["buckets"] == {"sizes": described["sizes"], "run": 10, "done": []}
    again = bucketed(groups, 10).resume({"epoch": 3, "position": state["position"] + lengths[0], **order.describe(3)})
    assert [part.tolist() for part, _ in again.steps(3, state["position"] + lengths[0], 10, Shard())] == [
        part.tolist() for part, _ in order.steps(3, state["position"], 10, Shard())
    ][1:]
    whole = order.indices(np.arange(100), 3)
    assert sorted(whole.tolist()) == list(range(100))
    assert {int(i) for part, _ in before for i in part} == set(whole[: state["position"]].tolist())


def test_a_state_with_impossible_counts_is_refused() -> None:
    state = {"epoch": 0, "position": 4, "buckets": {"run": 7, "done": [9, 0, 0]}}
    with pytest.raises(ValueError, match=r"have seen \[9, 0, 0\] samples"):
        bucketed(np.zeros(5, np.uint8), 3).resume(state)


class Unsteady(MemorySource):
    """A source whose third image cannot be read while `away` is true, as on a disk that is not mounted."""

    away = True

    def read(self, indices: np.ndarray, *, members: bool = False) -> EncodedBatch:
        batch = super().read(indices, members=members)
        for row in np.flatnonzero(np.asarray(indices) == 2).tolist() if self.away else []:
            batch.errors[row] = "Input/output error"
            batch.unread.add(row)
            batch.images[row] = np.empty(0, np.uint8)
        return batch


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])  # of a TIFF only Pillow tells the size, in a second read
def test_a_failed_read_puts_no_image_into_a_bucket(photos: dict[str, np.ndarray], kind: str) -> None:
    """Else ranks, and runs, would have other orders of one epoch."""
    source = Unsteady([encode(photos["chelsea"][:16, : 16 * n], kind) for n in (1, 2, 1, 2)])
    order = order_of(source, None, SIZES, 1, 1_000_000)
    with pytest.raises(SourceError, match=r"sample '2' .* cannot be read now: Input/output error.*says nothing"):
        order.prepare(0)
    source.away = False
    order.prepare(0)
    assert order.num_samples == 4

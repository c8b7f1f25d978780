"""The streamed order: that of an indexed source, while shards are still counted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali.sampling import (
    RangeSteps,
    Shard,
    Shuffle,
    ShuffledOrder,
    StreamedOrder,
    StreamedRanges,
    join_places,
    range_steps,
    split_place,
)


class Counts:
    """Shards that are counted when they are asked for; `asked` are their numbers in order."""

    def __init__(self, sizes: list[int], known: bool = False) -> None:
        self._sizes = np.array(sizes, np.int64)
        self.asked: list[int] = list(range(len(sizes))) if known else []

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def is_complete(self) -> bool:
        return len(set(self.asked)) == len(self._sizes)

    @property
    def sizes(self) -> NDArray[np.int64]:
        self.asked += [number for number in range(len(self._sizes)) if number not in self.asked]
        return self._sizes

    def is_known(self, number: int) -> bool:
        return number in self.asked

    def count(self, number: int) -> int:
        if number not in self.asked:
            self.asked.append(number)
        return int(self._sizes[number])

    def to_indices(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        shards, samples = split_place(found)
        return (np.cumsum(self._sizes) - self._sizes)[shards] + samples


shuffles = st.one_of(st.none(), st.builds(Shuffle, st.integers(0, 9), st.integers(1, 40)))
sizes_of_shards = st.lists(st.integers(0, 25), max_size=12)


@settings(deadline=None)
@given(
    sizes=sizes_of_shards,
    shuffle=shuffles,
    epoch=st.integers(0, 2),
    start=st.integers(0, 300),
    batch=st.integers(1, 30),
    world=st.integers(1, 4),
    drop_last=st.booleans(),
    known=st.booleans(),
)
def test_steps_are_those_of_the_indexed_order(
    sizes: list[int],
    shuffle: Shuffle | None,
    epoch: int,
    start: int,
    batch: int,
    world: int,
    drop_last: bool,
    known: bool,
) -> None:
    """For every rank, from every position on, whether or not the shards are known before."""
    total = sum(sizes)
    start = min(start, total)
    indexed = ShuffledOrder(shuffle, np.array(sizes, np.int64))
    for rank in range(world):
        counts = Counts(sizes, known)
        streamed = StreamedOrder(shuffle, counts)
        arguments = (epoch, start, batch, Shard(rank, world), drop_last)
        found = [
            (counts.to_indices(step).tolist() if shuffle else step.tolist(), end)
            for step, end in streamed.steps(*arguments)
        ]
        assert found == [(step.tolist(), end) for step, end in indexed.steps(*arguments)]
        assert streamed.count(*arguments) == len(found)
        assert streamed.describe(epoch) == indexed.describe(epoch)
        assert counts.is_complete
        positions = np.arange(total, dtype=np.int64)
        places = streamed.indices(positions, epoch)
        assert (counts.to_indices(places) if shuffle else places).tolist() == indexed.indices(positions, epoch).tolist()


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 25), min_size=1, max_size=12), shuffle=shuffles, batch=st.integers(1, 20))
def test_a_step_waits_for_no_more_than_its_window(sizes: list[int], shuffle: Shuffle | None, batch: int) -> None:
    counts = Counts(sizes)
    steps = StreamedOrder(shuffle, counts).steps(0, 0, batch, Shard())
    window = shuffle.window if shuffle and shuffle.window else 1
    numbers = steps.shards
    assert sorted(numbers) == list(range(len(sizes)))
    for end in range(batch, sum(sizes) + 1, batch):
        missing, asked = steps.find_missing(), len(counts.asked)
        next(steps)
        assert counts.asked[asked : asked + 1] == ([] if missing is None else [missing])
        needed = -(-end // window) * window
        held = np.cumsum([sizes[number] for number in numbers])
        assert counts.asked == numbers[: int(np.searchsorted(held, needed)) + 1]


@settings(deadline=None)
@given(sizes=sizes_of_shards, shuffle=shuffles, batch=st.integers(1, 20), world=st.integers(1, 3))
def test_a_shard_is_used_up_once_no_later_step_has_a_sample_of_it(
    sizes: list[int], shuffle: Shuffle | None, batch: int, world: int
) -> None:
    counts = Counts(sizes)
    steps = StreamedOrder(shuffle, counts).steps(0, 0, batch, Shard(world - 1, world))
    used: set[int] = set()
    for step, end in steps:
        is_last = end == sum(sizes)  # where ranks wrap around to the first samples
        places = step if shuffle else join_places(np.searchsorted(np.cumsum(sizes), step, "right"), step)
        assert is_last or used.isdisjoint(split_place(places)[0].tolist())
        new = steps.find_used(end)
        assert used.isdisjoint(new)
        used.update(new)
    window = shuffle.window if shuffle and shuffle.window else 1
    if sum(sizes) % window == 0:
        assert used >= {number for number, size in enumerate(sizes) if size}


def test_a_global_shuffle_cannot_be_streamed() -> None:
    with pytest.raises(ValueError, match="number of all samples"):
        StreamedOrder(Shuffle(1), Counts([1]))


def test_reach_counts_no_more_than_it_needs() -> None:
    counts = Counts([3, 3, 3])
    order = StreamedOrder(None, counts)
    assert order.reach(4, 0) == 4
    assert counts.asked == [0, 1]
    stand_ins = order.stand_ins(0, 0, 2)
    assert [next(stand_ins).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    assert counts.asked == [0, 1]
    assert [step.tolist() for step in stand_ins] == [[4, 5], [6, 7], [8]]
    assert order.reach(40, 0) == 9
    assert StreamedOrder(None, Counts([])).reach(4, 0) == 0


@settings(deadline=None)
@given(
    sizes=sizes_of_shards,
    size=st.integers(1, 40),
    done=st.lists(st.tuples(st.integers(0, 250), st.integers(1, 60)), max_size=4),
    batch=st.integers(1, 20),
)
def test_ranges_are_the_gaps_cut_at_the_multiples_of_a_size(
    sizes: list[int], size: int, done: list[tuple[int, int]], batch: int
) -> None:
    total = sum(sizes)
    finished = sorted((start, min(start + length, total)) for start, length in done if start < total)
    is_done = np.zeros(total + 1, bool)
    for start, stop in finished:
        is_done[start:stop] = True
    # a range ends at a multiple of the size, where a finished one begins, and at the end
    expected = [
        run.tolist()
        for block in range(0, total, size)
        for run in np.split(np.arange(block, min(block + size, total)), np.arange(1, min(size, total - block)))
        if not is_done[run].any()
    ]
    counts = Counts(sizes)
    ranges = StreamedRanges(counts, size, finished)
    found = list(ranges)
    assert found == list(ranges.begun)
    assert [n for start, stop in found for n in range(start, stop)] == [n for run in expected for n in run]
    assert all(start // size == (stop - 1) // size for start, stop in found)
    joined = [(a, b) for (_, a), (b, _) in pairwise(found) if a == b and a % size]
    assert joined == []  # none is cut where it need not be
    steps = list(RangeSteps(StreamedRanges(Counts(sizes), size, finished), batch))
    assert [(step.tolist(), end) for step, end in steps] == [
        (step.tolist(), end) for step, end in range_steps(found, batch)
    ]
    assert sorted(ranges.find_used(total)) == list(range(len(sizes)))
    assert ranges.find_used(total) == []


def test_a_range_waits_for_its_own_shards() -> None:
    counts = Counts([3, 3, 3, 3])
    ranges = StreamedRanges(counts, 4, [(4, 8)])
    assert ranges.find_missing() == 0
    assert next(ranges) == (0, 4)
    assert counts.asked == [0, 1]
    assert ranges.find_missing() == 2
    assert next(ranges) == (8, 12)
    assert list(ranges) == []
    assert ranges.find_missing() is None

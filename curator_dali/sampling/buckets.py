"""`Buckets`: sizes that images are brought to; `BucketedOrder`: an order with one bucket a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Limits, checked
from curator_dali.sampling.order import Order, Shard, permute

__all__ = ["BucketedOrder", "Buckets"]

_UNKNOWN = 255  # the bucket of an image whose size is not known: a sample's bucket is one byte
_POSITIONS_AT_ONCE = 1 << 20


@checked
@dataclass(frozen=True)
class Buckets:
    """Sizes that images are brought to, each to the one nearest in shape.

    An image goes to the bucket whose log(width / height) is nearest to its own (the first of equals), is scaled to
    cover it and cut to it around its centre.

    Args:
        sizes: (height, width) in pixels of each bucket.
    """

    sizes: Sequence[tuple[int, int]]
    _logs: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for size in self.sizes:
            pair = isinstance(size, (tuple, list)) and len(size) == 2
            if not (pair and all(isinstance(n, (int, np.integer)) and n > 0 and n is not True for n in size)):
                raise ValueError(f"Buckets: {size!r} is no size; give (height, width) in pixels, as (512, 768)")
        sizes = tuple((int(height), int(width)) for height, width in self.sizes)
        if not 0 < len(set(sizes)) == len(sizes) <= _UNKNOWN:
            raise ValueError(f"Buckets needs 1 to {_UNKNOWN} different sizes, not {list(sizes)}")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "_logs", tuple(float(np.log(width / height)) for height, width in sizes))

    @classmethod
    @checked
    def from_ratios(
        cls,
        ratios: Sequence[float],
        *,
        pixels: Annotated[float, Limits("a number of at least 1", 1)],
        multiple: Count = 1,
    ) -> Buckets:
        """Buckets of about the same number of pixels.

        Args:
            ratios: Width over height of each.
            pixels: Height times width that each comes near to.
            multiple: Both are rounded to a multiple of this, in pixels; 64 is usual for latent diffusion.
        """
        given: list[Any] = list(ratios)
        wrong = [ratio for ratio in given if not (isinstance(ratio, Real) and 0 < float(ratio) < float("inf"))]
        if wrong:
            raise ValueError(f"ratios has {wrong[0]!r}; give positive numbers, width over height, as 4 / 3")

        def rounded(length: float) -> int:
            return max(1, round(length / multiple)) * multiple

        sizes = [(rounded((pixels / ratio) ** 0.5), rounded((pixels * ratio) ** 0.5)) for ratio in ratios]
        return cls(tuple(dict.fromkeys(sizes)))

    def assign(self, sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The bucket of each image.

        Args:
            sizes: (N, 2) (height, width) of upright images in pixels; a height of 0 means unknown.

        Returns:
            (N,) uint8 numbers of buckets; 255 where the size is unknown.
        """
        known = (sizes > 0).all(axis=1)
        found = np.full(len(sizes), _UNKNOWN, np.uint8)
        logs = np.log(sizes[known, 1] / sizes[known, 0])
        found[known] = np.abs(logs[:, None] - np.array(self._logs)).argmin(axis=1)
        return found


class BucketedOrder(Order):
    """An order whose steps never cross from one bucket to another: all ranks are in the same bucket at every step.

    Each bucket's samples, in the order of `base`, are cut into *runs* of one step of all ranks; which bucket's next
    run comes when is shuffled (without a shuffle they come by their first samples). So steps are full but for the
    last of each bucket, of which the ranks get numbers that differ by at most one; a rank for which none is left
    repeats one of the step's.

    An epoch that is resumed with another batch size or number of ranks is cut anew: what was seen is a number of
    samples of each bucket, which the state holds, and the rest becomes runs of the new length.

    Memory: 1 byte a sample of the source, and 4 (over 4 billion samples: 8) a position of the current epoch.

    Args:
        base: The order before grouping.
        buckets: The sizes, for the state.
        groups: Gives the bucket of each sample of the source, (N,) uint8; 255 where it is not known: these go to
            the bucket with most samples. Called once, when the order is first needed.
        run: Samples a run: batch size times world size.
        begun: An epoch begun elsewhere.
    """

    def __init__(
        self,
        base: Order,
        buckets: Buckets,
        groups: Callable[[], NDArray[np.uint8]],
        run: int,
        *,
        begun: Begun | None = None,
    ) -> None:
        self._base, self._buckets, self._run, self._begun = base, buckets, run, begun
        self._find = groups
        self._groups: NDArray[np.uint8] | None = None
        self._plan: _Plan | None = None
        self._lock = threading.Lock()

    @property
    def num_samples(self) -> int:
        """Positions of an epoch."""
        return self._base.num_samples

    def prepare(self, epoch: int) -> None:
        """Read the headers, and cut the epoch."""
        self._planned(epoch)

    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Sample indices; this makes the epoch's plan first, which goes once over all of its positions."""
        return self._base.indices(self._planned(epoch).base_positions(positions), epoch)

    def steps(
        self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """See `Order.steps`. `drop_last` drops the steps at the end of a bucket that are not full."""
        for first, taken in self._spans(epoch, start, batch_size * shard.world_size, drop_last):
            offsets = np.arange(shard.rank, taken, shard.world_size, dtype=np.int64)
            if not len(offsets):
                offsets = np.array([shard.rank % taken], np.int64)
            yield self.indices(first + offsets, epoch), first + taken

    def count(self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False) -> int:
        """How many steps `steps` yields."""
        return sum(1 for _ in self._spans(epoch, start, batch_size * shard.world_size, drop_last))

    def stand_ins(self, epoch: int, position: int, count: int) -> Iterator[NDArray[np.int64]]:
        """Those of the same bucket first, then all."""
        members = self._planned(epoch).members_of_same(position)
        for first in range(0, len(members), count):
            yield self._base.indices(members[first : first + count].astype(np.int64), epoch)
        yield from self._base.stand_ins(epoch, position, count)

    def describe(self, epoch: int = 0) -> dict[str, Any]:
        """The base's, the sizes of the buckets, and how the epoch is cut."""
        run, done = self._cut(epoch)
        sizes = [list(size) for size in self._buckets.sizes]
        return {**self._base.describe(epoch), "buckets": {"sizes": sizes, "run": run, "done": list(done)}}

    def resume(self, state: dict[str, Any]) -> Order:
        """The same order, but of the state's epoch only the rest is cut into runs of this order's length."""
        epoch, saved = int(state["epoch"]), state["buckets"]
        order = self._begin(Begun(epoch, saved["run"], tuple(saved["done"])))
        if saved["run"] == self._run:
            return order
        done = order._planned(epoch).done(state["position"])
        return order._begin(Begun(epoch, self._run, tuple(done.tolist())))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_plan")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._plan = None
        self._lock = threading.Lock()

    def _begin(self, begun: Begun) -> BucketedOrder:
        order = BucketedOrder(self._base, self._buckets, self._find, self._run, begun=begun)
        order._groups = self._groups
        return order

    def _cut(self, epoch: int) -> tuple[int, tuple[int, ...]]:
        """Samples a run, and of each bucket those that were seen before."""
        if self._begun and self._begun.epoch == epoch:
            return self._begun.run, self._begun.done
        return self._run, ()

    def _planned(self, epoch: int) -> _Plan:
        with self._lock:
            if self._groups is None:
                groups = self._find()
                known = groups[groups != _UNKNOWN]
                commonest = int(np.bincount(known).argmax()) if len(known) else 0
                self._groups = np.where(groups == _UNKNOWN, np.uint8(commonest), groups)
            if self._plan is None or self._plan.epoch != epoch:
                self._plan = None  # its memory first
                self._plan = _Plan(self._base, self._groups, len(self._buckets.sizes), epoch, *self._cut(epoch))
            return self._plan

    def _spans(self, epoch: int, start: int, most: int, drop_last: bool) -> Iterator[tuple[int, int]]:
        """(first position, samples) of the steps of all ranks."""
        plan = self._planned(epoch)
        position = start
        for end in plan.ends[np.searchsorted(plan.ends, start, side="right") :].tolist():
            while position < end:
                taken = min(end - position, most)
                if taken == most or not drop_last:
                    yield position, taken
                position += taken


@dataclass(frozen=True)
class Begun:
    """How an epoch was cut when it was begun: samples a run, and of each bucket those seen before (none at all: ())."""

    epoch: int
    run: int
    done: tuple[int, ...]


class _Plan:
    """The runs of one epoch; first, uncut, what of each bucket was seen before."""

    def __init__(
        self, base: Order, groups: NDArray[np.uint8], buckets: int, epoch: int, run: int, done: tuple[int, ...]
    ) -> None:
        self.epoch = epoch
        n = base.num_samples
        found = np.empty(n, np.uint8)
        for first in range(0, n, _POSITIONS_AT_ONCE):
            positions = np.arange(first, min(first + _POSITIONS_AT_ONCE, n), dtype=np.int64)
            found[first : first + len(positions)] = groups[base.indices(positions, epoch) % max(1, len(groups))]
        # base positions, by bucket; a stable sort of bytes is a counting sort
        self._members = np.argsort(found, kind="stable").astype(np.uint32 if n < 2**32 else np.int64)
        self._ends = np.cumsum(np.bincount(found, minlength=buckets))
        self._begins = np.concatenate([[0], self._ends[:-1]])
        seen = np.array(done or [0] * buckets, np.int64)
        if len(seen) != buckets or (seen < 0).any() or (self._begins + seen > self._ends).any():
            raise ValueError(f"the state's buckets have seen {list(done)} samples, and there are not as many")
        starts = np.concatenate(
            [np.arange(begin, end, run) for begin, end in zip(self._begins + seen, self._ends, strict=True)]
        ).astype(np.int64)
        cells = np.searchsorted(self._ends, starts, side="right")
        seed = base.describe()["seed"]
        if seed is None:
            order = np.argsort(self._members[starts], kind="stable")
        else:
            order = permute(np.arange(len(starts)), len(starts), seed, epoch, -2, int(seen.sum()))
        # Which bucket comes when is shuffled; each goes through its samples in order, so what was seen is a count.
        turns = cells[order]
        begins = np.empty_like(starts)
        begins[np.argsort(turns, kind="stable")] = starts
        self._starts = np.concatenate([self._begins, begins])
        self._lengths = np.concatenate([seen, np.minimum(run, self._ends[turns] - begins)])
        self._cells = np.concatenate([np.arange(buckets), turns])
        self.ends = np.cumsum(self._lengths)
        """(R,) int64: the position at which each run ends."""

    def base_positions(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the base order calls these positions."""
        runs = np.searchsorted(self.ends, positions, side="right")
        found = self._starts[runs] + positions - (self.ends[runs] - self._lengths[runs])
        members: NDArray[np.int64] = self._members[found].astype(np.int64)
        return members

    def members_of_same(self, position: int) -> NDArray[Any]:
        """Base positions of the bucket that the positions before `position` belong to."""
        cell = int(self._cells[np.searchsorted(self.ends, position - 1, side="right")])
        return self._members[self._begins[cell] : self._ends[cell]]

    def done(self, position: int) -> NDArray[np.int64]:
        """How many samples of each bucket come before a position."""
        taken = np.clip(position - (self.ends - self._lengths), 0, self._lengths)
        counts = np.zeros(len(self._ends), np.int64)
        np.add.at(counts, self._cells, taken)
        return counts

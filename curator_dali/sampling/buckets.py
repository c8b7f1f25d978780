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

    Each bucket's samples, in the order of `base`, are cut into *blocks* of one step of all ranks. Which bucket's next
    block comes when is shuffled; without a shuffle blocks come by their first samples. All steps are full except each
    bucket's last one, which is divided over the ranks as evenly as possible. A rank for which no sample is left
    repeats one of the step's.

    An epoch that is resumed with another batch size or number of ranks is cut anew: what was seen is a number of
    samples of each bucket, which the state holds, and the rest becomes blocks of the new length.

    Memory: 1 byte a sample of the source, and 4 (over 4 billion samples: 8) a position of the current epoch.

    Args:
        base: The order before grouping.
        buckets: The sizes, for the state.
        groups: Gives the bucket of each sample of the source, (N,) uint8; 255 where it is not known: these go to
            the bucket with most samples. Called once, when the order is first needed.
        block: Samples a block: batch size times world size.
        resumed: An epoch begun elsewhere.
    """

    def __init__(
        self,
        base: Order,
        buckets: Buckets,
        groups: Callable[[], NDArray[np.uint8]],
        block: int,
        *,
        resumed: ResumedEpoch | None = None,
    ) -> None:
        self._base, self._buckets, self._find = base, buckets, groups
        # names in pickles of earlier versions: samples a block, and the epoch that is resumed
        self._run, self._begun = block, resumed
        self._groups: NDArray[np.uint8] | None = None
        self._plan: _EpochBlocks | None = None
        self._lock = threading.Lock()

    @property
    def num_samples(self) -> int:
        """Positions of an epoch."""
        return self._base.num_samples

    def prepare(self, epoch: int) -> None:
        """Read the headers, and cut the epoch."""
        self._planned(epoch)

    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Sample indices; this cuts the epoch first, which goes once over all of its positions."""
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
        block, seen = self._split(epoch)
        sizes = [list(size) for size in self._buckets.sizes]
        return {**self._base.describe(epoch), "buckets": {"sizes": sizes, "run": block, "done": list(seen)}}

    def resume(self, state: dict[str, Any]) -> Order:
        """The same order, but of the state's epoch only the rest is cut into blocks of this order's length."""
        epoch, saved = int(state["epoch"]), state["buckets"]
        order = self._resumed(ResumedEpoch(epoch, saved["run"], tuple(saved["done"])))
        if saved["run"] == self._run:
            return order
        seen = order._planned(epoch).seen(state["position"])
        return order._resumed(ResumedEpoch(epoch, self._run, tuple(seen.tolist())))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_plan")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._plan = None
        self._lock = threading.Lock()

    def _resumed(self, epoch: ResumedEpoch) -> BucketedOrder:
        order = BucketedOrder(self._base, self._buckets, self._find, self._run, resumed=epoch)
        order._groups = self._groups
        return order

    def _split(self, epoch: int) -> tuple[int, tuple[int, ...]]:
        """Samples a block, and of each bucket those that were seen before."""
        if self._begun and self._begun.epoch == epoch:
            return self._begun.run, self._begun.done
        return self._run, ()

    def _planned(self, epoch: int) -> _EpochBlocks:
        with self._lock:
            if self._groups is None:
                groups = self._find()
                known = groups[groups != _UNKNOWN]
                commonest = int(np.bincount(known).argmax()) if len(known) else 0
                self._groups = np.where(groups == _UNKNOWN, np.uint8(commonest), groups)
            if self._plan is None or self._plan.epoch != epoch:
                self._plan = None  # its memory first
                self._plan = _EpochBlocks(
                    self._base, self._groups, len(self._buckets.sizes), epoch, *self._split(epoch)
                )
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
class ResumedEpoch:
    """How an epoch was cut when it was begun: samples a block, and of each bucket those seen before (none at all: ()).

    The fields have the names of the state.
    """

    epoch: int
    run: int
    done: tuple[int, ...]


Begun = ResumedEpoch  # the name in pickles of earlier versions


class _EpochBlocks:
    """The blocks of one epoch, B of them over K buckets; first, uncut, what of each bucket was seen before.

    Attributes:
        epoch: Which one.
        ends: (B,) int64: the position at which each block ends.
    """

    def __init__(
        self, base: Order, groups: NDArray[np.uint8], buckets: int, epoch: int, block: int, seen: Sequence[int]
    ) -> None:
        self.epoch = epoch
        self._members, self._bucket_ends = _sort_by_bucket(base, groups, epoch, buckets)
        self._bucket_starts = np.concatenate([[0], self._bucket_ends[:-1]])  # (K,) in members
        before = np.array(seen or [0] * buckets, np.int64)
        if len(before) != buckets or (before < 0).any() or (self._bucket_starts + before > self._bucket_ends).any():
            raise ValueError(f"the state's buckets have seen {list(seen)} samples, and there are not as many")
        # (B - K,) where in members the blocks of what is left begin, bucket by bucket
        spans = zip(self._bucket_starts + before, self._bucket_ends, strict=True)
        starts = np.concatenate([np.arange(start, end, block) for start, end in spans]).astype(np.int64)
        bucket_order = self._shuffle_buckets(base, starts, int(before.sum()))
        # Which bucket comes when is shuffled; each goes through its samples in order, so what was seen is a count.
        taken = np.empty_like(starts)
        taken[np.argsort(bucket_order, kind="stable")] = starts
        # (B,) where in members each block begins, its samples, its bucket
        self._starts = np.concatenate([self._bucket_starts, taken])
        self._lengths = np.concatenate([before, np.minimum(block, self._bucket_ends[bucket_order] - taken)])
        self._bucket_ids = np.concatenate([np.arange(buckets), bucket_order])
        self.ends = np.cumsum(self._lengths)

    def _shuffle_buckets(self, base: Order, starts: NDArray[np.int64], seen: int) -> NDArray[np.int64]:
        """(B - K,) the bucket of each block, in the order in which blocks come."""
        bucket_ids = np.searchsorted(self._bucket_ends, starts, side="right")
        seed = base.describe()["seed"]
        if seed is None:
            return bucket_ids[np.argsort(self._members[starts], kind="stable")]
        return bucket_ids[permute(np.arange(len(starts)), len(starts), seed, self.epoch, -2, seen)]

    def base_positions(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in the base order of these positions."""
        blocks = np.searchsorted(self.ends, positions, side="right")
        found = self._starts[blocks] + positions - (self.ends[blocks] - self._lengths[blocks])
        members: NDArray[np.int64] = self._members[found].astype(np.int64)
        return members

    def members_of_same(self, position: int) -> NDArray[Any]:
        """Base positions of the bucket that the positions before `position` belong to."""
        bucket = int(self._bucket_ids[np.searchsorted(self.ends, position - 1, side="right")])
        return self._members[self._bucket_starts[bucket] : self._bucket_ends[bucket]]

    def seen(self, position: int) -> NDArray[np.int64]:
        """(K,) how many samples of each bucket come before a position."""
        taken = np.clip(position - (self.ends - self._lengths), 0, self._lengths)
        counts = np.zeros(len(self._bucket_ends), np.int64)
        np.add.at(counts, self._bucket_ids, taken)
        return counts


def _sort_by_bucket(
    base: Order, groups: NDArray[np.uint8], epoch: int, buckets: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(N,) base positions of an epoch, by bucket and ascending in each; (buckets,) where each bucket ends."""
    count = base.num_samples
    bucket_ids = np.empty(count, np.uint8)
    for first in range(0, count, _POSITIONS_AT_ONCE):
        positions = np.arange(first, min(first + _POSITIONS_AT_ONCE, count), dtype=np.int64)
        indices = base.indices(positions, epoch) % max(1, len(groups))  # i and i + len(source) are the same sample
        bucket_ids[first : first + len(positions)] = groups[indices]
    # a stable sort of bytes is a counting sort
    members = np.argsort(bucket_ids, kind="stable").astype(np.uint32 if count < 2**32 else np.int64)
    return members, np.cumsum(np.bincount(bucket_ids, minlength=buckets))

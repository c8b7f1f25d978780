"""The order of an epoch as pure functions of (seed, epoch, position): shuffle, shard, mix, group, resume.

A *position* counts the samples of an epoch over all ranks, 0 to N-1. An `Order` maps positions to sample indices and
cuts them into steps; `Shard` says which positions of a step are a rank's. Nothing here keeps state, and nothing but
`BucketedOrder` memory that grows with the data set, so a resume is three integers (`Position`), whatever the world
size was before.
"""

from __future__ import annotations

from curator_dali.sampling.buckets import BucketedOrder, Buckets
from curator_dali.sampling.mixture import MixedOrder, quantise
from curator_dali.sampling.order import (
    Order,
    Position,
    Range,
    Shard,
    Shuffle,
    ShuffledOrder,
    mix,
    range_steps,
    uniforms,
)
from curator_dali.sampling.streamed import (
    RangeSteps,
    ShardCounts,
    StreamedOrder,
    StreamedRanges,
    StreamedSteps,
    join_places,
    split_place,
)

__all__ = [
    "BucketedOrder",
    "Buckets",
    "MixedOrder",
    "Order",
    "Position",
    "Range",
    "RangeSteps",
    "Shard",
    "ShardCounts",
    "Shuffle",
    "ShuffledOrder",
    "StreamedOrder",
    "StreamedRanges",
    "StreamedSteps",
    "join_places",
    "mix",
    "quantise",
    "range_steps",
    "split_place",
    "uniforms",
]

"""The order that a loader's arguments make of its source, and a loader's state as plain JSON."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.decoding import Codec, pillow, read_headers, upright_sizes
from curator_dali.sampling import (
    BucketedOrder,
    Buckets,
    MixedOrder,
    Order,
    Shuffle,
    ShuffledOrder,
    StreamedOrder,
    quantise,
)
from curator_dali.sources import Mixture, Source

logger = logging.getLogger(__name__)

_SAME_DATA = "resume with the data set that the state was saved with"
_SAME_SHUFFLE = "give the loader the same shuffle"
_FIXES = {
    "version": "this release reads version 2 (version 1 had other fingerprints of data sets): begin the epoch anew",
    "mixture": "give the loader a Mixture of the same sources, weights and samples",
    "buckets": "give the loader the same Buckets",
    "num_samples": _SAME_DATA,
    "fingerprint": _SAME_DATA,
    "seed": _SAME_SHUFFLE,
    "window": _SAME_SHUFFLE,
}


def order_of(source: Source, shuffle: Shuffle | None, buckets: Buckets | None, run: int, max_pixels: int) -> Order:
    """The order of a source's samples; of a `Mixture` by its weights.

    With `buckets` headers are read when the order is first needed, and larger images than `max_pixels` count as
    unreadable; `run` is the number of samples of one step of all ranks.
    """
    order: Order
    if isinstance(source, Mixture) and source.weights is not None:
        sizes = [part.shard_sizes for part in source.sources.values()]
        order = MixedOrder(
            shuffle, sizes, list(source.sources), list(quantise(source.weights).values()), source.samples
        )
    else:
        counts = source.streamed
        if counts is not None and buckets is None and (shuffle is None or shuffle.window is not None):
            return StreamedOrder(shuffle, counts)
        if counts is not None and not counts.is_complete:
            logger.warning(
                "all %d tars of %s are indexed before the first batch. `curator-dali prepare` makes an index once for "
                "all; and with Shuffle(window=...) and without buckets the first batch comes after the first tars",
                len(counts),
                source.name,
            )
        order = ShuffledOrder(shuffle, source.shard_sizes)
    if buckets is None:
        return order
    return BucketedOrder(order, buckets, partial(_groups, source, buckets, max_pixels), run)


def _groups(source: Source, buckets: Buckets, max_pixels: int) -> NDArray[np.uint8]:
    """The bucket of every sample, (N,) uint8."""
    logger.info("reading the headers of %d images of %s, to group them by shape", len(source), source.name)
    groups = np.empty(len(source), np.uint8)
    for indices, headers, *_ in read_headers(source, max_pixels):
        sizes = upright_sizes(headers)
        sizes[headers["codec"] == Codec.UNKNOWN] = 0
        turned = np.flatnonzero((headers["codec"] != Codec.UNKNOWN) & (headers["orientation"] == 0))
        if len(turned):  # Pillow's formats: what it will make of them, it must say itself
            encoded = source.read(indices[turned])
            encoded.check_read()
            sizes[turned] = [_upright_size(image) for image in encoded.images]
        groups[indices] = buckets.assign(sizes)
    return groups


def _upright_size(image: NDArray[np.uint8]) -> tuple[int, int]:
    """(height, width) as Pillow will decode it; zeros where it cannot."""
    try:
        return pillow.upright_size(image.data)
    except Exception:  # Pillow's plugins raise almost anything on damaged files; the loader will say what is wrong
        logger.debug("no size of an image that only Pillow reads", exc_info=True)
        return 0, 0


def is_counted(order: Order) -> bool:
    """Whether the number of samples is known, so that asking for it does not wait."""
    return not isinstance(order, StreamedOrder) or order.is_counted


def make_state(source: Source, order: Order, epoch: int, position: int, listed: bool = False) -> dict[str, Any]:
    """The state of a loader whose ranks together have consumed `position` samples of an epoch.

    With `listed` it is that of a source that is not indexed: its files are known, and their samples are not counted.
    """
    counts = source.streamed if listed else None
    return {
        "version": 2,
        "epoch": epoch,
        "position": position,
        "num_samples": order.num_samples if counts is None else None,
        "fingerprint": source.fingerprint if counts is None else counts.fingerprint,
        **order.describe(epoch),
    }


def is_listed(state: Mapping[str, Any]) -> bool:
    """Whether a state was taken before all tars were indexed; see `make_state`."""
    return isinstance(state, Mapping) and state.get("num_samples", 0) is None


def check_state(state: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse a state that is not of the same data set in the same order as what the loader would save now.

    Raises:
        ValueError: Says what differs, and what to do.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"this is no loader's state, but a {type(state).__name__}: give what state_dict() returned")
    missing = mine.keys() - state.keys() - {"mixture", "buckets"}
    if missing:
        raise ValueError(f"this is no loader's state: it lacks {', '.join(sorted(missing))}")
    for name, fix in _FIXES.items():
        saved, here = state.get(name), mine.get(name)
        if _comparable(saved) != _comparable(here):
            raise ValueError(f"the state's {name} is {saved!r}, the loader's {here!r}; {fix}")
    if not (_is_count(state["epoch"]) and _is_count(state["position"]) and _is_within(state, mine)):
        raise ValueError(f"the state's epoch {state['epoch']} or position {state['position']} is out of range")


def _comparable(value: Any) -> Any:
    """A state's value without how its buckets were cut, which a resume takes over."""
    cut = ("run", "done")
    return {name: part for name, part in value.items() if name not in cut} if isinstance(value, Mapping) else value


def _is_within(state: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    return mine["num_samples"] is None or bool(state["position"] <= mine["num_samples"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0

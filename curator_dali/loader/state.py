"""A loader's state: where it stands, as plain JSON, and whether another's fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dali.sampling.order import Order
from curator_dali.sources.base import Source

__all__ = ["check_state", "make_state"]

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


def make_state(source: Source, order: Order, epoch: int, position: int) -> dict[str, Any]:
    """The state of a loader.

    Args:
        source: What it reads.
        order: In which order.
        epoch: Of the pass.
        position: Samples of the epoch that all ranks together have consumed.
    """
    return {
        "version": 2,
        "epoch": epoch,
        "position": position,
        "num_samples": order.num_samples,
        "fingerprint": source.fingerprint,
        **order.describe(epoch),
    }


def check_state(state: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse a state that is not of the same data set in the same order.

    Args:
        state: What was saved.
        mine: What the loader would save now.

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
    if not (_is_count(state["epoch"]) and _is_count(state["position"]) and state["position"] <= mine["num_samples"]):
        raise ValueError(f"the state's epoch {state['epoch']} or position {state['position']} is out of range")


def _comparable(value: Any) -> Any:
    """A state's value without how its buckets were cut, which a resume takes over."""
    cut = ("run", "done")
    return {name: part for name, part in value.items() if name not in cut} if isinstance(value, Mapping) else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0

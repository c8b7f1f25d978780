"""Work on some samples of a batch only: DALI's conditional execution, as its `if` statements write it into a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["either", "lower_some", "only_where", "some"]

Branch = Callable[[Any, Mapping[str, Any]], Any]


def some(uniforms: NDArray[np.float64], p: float) -> dict[str, NDArray[Any]]:
    """The parameter of a transform that changes a sample with probability `p`, for `lower_some`; none where p is 1."""
    return {} if p == 1 else {"apply": uniforms < p}


def lower_some(images: Any, branch: Branch, parameters: Mapping[str, Any]) -> Any:
    """`branch` for the samples that `some` has chosen; it gets the other parameters."""
    rest = {name: node for name, node in parameters.items() if name != "apply"}
    return only_where(images, parameters["apply"], branch, rest) if "apply" in parameters else branch(images, rest)


def only_where(images: Any, predicate: Any, branch: Branch, parameters: Mapping[str, Any]) -> Any:
    """`branch(images, parameters)` for the samples where `predicate` holds; the others stay as they are.

    The two operators are what `@pipeline_def(enable_conditionals=True)` makes of `if predicate: images = ...`; used
    directly, because that way would rewrite the source of every function that the graph's own function calls.

    Args:
        images: The node.
        predicate: A node of bool scalars on the host.
        branch: Writes the graph of the chosen samples.
        parameters: Name -> node; the branch gets the chosen samples' rows.
    """
    from nvidia.dali import fn

    conditional: Any = fn._conditional  # type: ignore[attr-defined]
    yes, no = conditional.split(images, predicate=predicate)
    chosen = {name: conditional.split(node, predicate=predicate)[0] for name, node in parameters.items()}
    return conditional.merge(branch(yes, chosen), no, predicate=predicate)


def either(images: Any, predicate: Any, yes: Branch, no: Branch, parameters: Mapping[str, Any]) -> Any:
    """`yes(images, parameters)` for the samples where `predicate` holds, `no` for the others; see `only_where`."""
    from nvidia.dali import fn

    conditional: Any = fn._conditional  # type: ignore[attr-defined]
    chosen, others = conditional.split(images, predicate=predicate)
    parts = {name: conditional.split(node, predicate=predicate) for name, node in parameters.items()}
    done = yes(chosen, {name: part[0] for name, part in parts.items()})
    return conditional.merge(done, no(others, {name: part[1] for name, part in parts.items()}), predicate=predicate)

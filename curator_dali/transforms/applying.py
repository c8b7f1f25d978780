"""Transforms on images that are already decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays, dali
from curator_dali.transforms.base import Transform
from curator_dali.transforms.graph import Plan

__all__ = ["apply", "pixel_graph"]

_AT_ONCE = 256


def apply(
    images: Any,
    sequence: Transform | Sequence[Transform],
    device: str | None = None,
    *,
    key: tuple[int, int] = (0, 0),
    indices: NDArray[np.int64] | None = None,
    num_threads: int = 1,
) -> Any:
    """Run transforms on decoded images, as a loader runs them on the images it decodes.

    Args:
        images: (N, H, W, 3) uint8, or a list of N (H_i, W_i, 3): numpy, or CuPy on a GPU.
        sequence: The transforms.
        device: Where to run: "cpu" or "cuda:N"; None is where the images are.
        key: (seed, epoch) for random transforms.
        indices: (N,) the samples' indices, for random transforms; None is 0..N-1.
        num_threads: DALI's threads.

    Returns:
        One array if all results have one shape, else a list; on `device`. An empty list for no images.

    Raises:
        ValueError: An image is not (H, W, 3) uint8, or there are not as many indices as images.
    """
    rows = list(images)
    for i, image in enumerate(rows):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"images[{i}] is {image.dtype} of shape {tuple(image.shape)}; give (H, W, 3) uint8, not empty"
            )
    numbers = np.arange(len(rows)) if indices is None else np.asarray(indices, np.int64)
    if numbers.shape != (len(rows),):
        raise ValueError(f"there are {len(rows)} images and indices of shape {numbers.shape}; give one index an image")
    plan = Plan([(sequence,) if isinstance(sequence, Transform) else sequence])
    if not rows:
        return []
    at = arrays.device_of(rows)
    device = arrays.resolve_device(at if device is None else device)
    if at not in ("cpu", device):
        rows, at = arrays.to_host(rows), "cpu"
    pipeline = dali.new_pipeline(device, min(len(rows), _AT_ONCE), num_threads)
    _, is_long = plan.measure(np.array([image.shape[:2] for image in rows], np.int64))
    with pipeline:
        pipeline.set_outputs(*pixel_graph(plan, at, device, long=bool(is_long.any())))
    pipeline.build()
    parts = []
    for first in range(0, len(rows), _AT_ONCE):
        # DALI takes no strides: views such as crops are copied
        part = [image if image.flags.c_contiguous else image.copy() for image in rows[first : first + _AT_ONCE]]
        sizes = np.array([image.shape[:2] for image in part], np.int64)
        dali.feed(pipeline, part, plan.arguments(key, numbers[first : first + _AT_ONCE], sizes))
        (result,) = dali.collect(pipeline, device)
        parts.append((range(first, first + len(part)), result))
    return arrays.merge(parts, len(rows))


def pixel_graph(plan: Plan, source: str, device: str, *, long: bool = False) -> list[Any]:
    """The graph of a plan over decoded images, inside `with pipeline`; the images' input is named "images".

    Args:
        plan: What to do.
        source: Where the images that are fed lie: "cpu", or the device.
        device: Where to run.
        long: Whether some images are those that `Plan.measure` finds long.
    """
    from nvidia.dali import fn, types

    node = fn.external_source(
        name="images", device="cpu" if source == "cpu" else "gpu", no_copy=True, dtype=types.UINT8, ndim=3, layout="HWC"
    )
    if device != source:
        node = node.gpu()
    return plan.lower(node, dali.declare(plan.inputs), long=long)

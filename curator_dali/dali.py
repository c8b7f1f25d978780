"""DALI pipelines as this package runs them: dynamic executor, fed by hand, one batch a `schedule_run`.

Only arrays of ours go in, and only views of DALI's memory come out. Pipelines do not survive a fork.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from curator_dali import lending
from curator_dali.quieting import quiet_decoders, quiet_import
from curator_dali.threads import uninterrupted

__all__ = ["check_process", "close", "collect", "declare", "default_threads", "feed", "new_pipeline"]

_MOST_GPU_THREADS = 16  # nvJPEG reserves 16 MiB of device and of pinned memory for each

_started_in: int | None = None
"""The process that built the first pipeline. DALI's threads do not survive a fork: a child would wait for ever."""
_live: weakref.WeakSet[Any] = weakref.WeakSet()
"""Pipelines that exist."""


def _abandon_inherited() -> None:
    """Take a parent's pipelines out of DALI's hands in a forked child, whose exit would wait for their threads."""
    for pipeline in _live:
        if (backend := getattr(pipeline, "_pipe", None)) is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(backend))  # for good: an exiting interpreter empties any list
            pipeline._pipe = None


os.register_at_fork(after_in_child=_abandon_inherited)


def check_process() -> None:
    """Refuse to use DALI in a fork of a process in which DALI was started.

    Raises:
        RuntimeError: This process is such a fork.
    """
    if _started_in not in (None, os.getpid()):
        raise RuntimeError(
            f"DALI was started in process {_started_in}, and this process ({os.getpid()}) is a fork of it, in which "
            'DALI would hang: start workers with multiprocessing.get_context("spawn") (a DataLoader: '
            'multiprocessing_context="spawn"), or use no loader and no transforms before the fork'
        )


def new_pipeline(device: str, batch_size: int, num_threads: int, depth: int = 1) -> Any:
    """An empty pipeline, for a graph to be written into.

    Args:
        device: "cpu" or "cuda:N".
        batch_size: Largest batch.
        num_threads: DALI's threads.
        depth: Batches under way at once.

    Raises:
        RuntimeError: This process is a fork of one in which DALI was started.
    """
    global _started_in
    check_process()
    _started_in = os.getpid()
    quiet_decoders()
    with quiet_import():
        from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=None if device == "cpu" else int(device.removeprefix("cuda:")),
        exec_dynamic=True,
        # each schedule_run starts one batch, the first one too, instead of filling the queue with `depth` of them
        exec_pipelined=False,
        prefetch_queue_depth=depth,
    )
    _live.add(pipeline)
    return pipeline


def default_threads(device: str) -> int:
    """DALI's threads where nothing was asked for: the CPUs that this process may use; for a GPU at most 16."""
    cpus = len(os.sched_getaffinity(0))
    return cpus if device == "cpu" else min(cpus, _MOST_GPU_THREADS)


def declare(inputs: Mapping[str, tuple[np.dtype[Any], int]]) -> dict[str, Any]:
    """Input nodes on the host, inside `with pipeline`: (dtype, dimensions of one sample) each; feeding copies."""
    from nvidia.dali import fn
    from nvidia.dali.types import to_dali_type

    return {
        name: fn.external_source(name=name, dtype=to_dali_type(dtype.name), ndim=ndim, batch=True)
        for name, (dtype, ndim) in inputs.items()
    }


def feed(pipeline: Any, images: Any, arguments: Mapping[str, Any]) -> None:
    """Start a batch: `images` for the input of that name, and the others' values, (N, ...) arrays.

    Raises:
        RuntimeError: This process is a fork of the one that built the pipeline.
    """
    check_process()
    pipeline.feed_input("images", images)
    for name, values in arguments.items():
        pipeline.feed_input(name, values)
    pipeline.schedule_run()


def collect(pipeline: Any, device: str) -> list[Any]:
    """Wait for the oldest batch: arrays of each output.

    Raises:
        RuntimeError: An operator failed; the batch is lost, and only this one.
    """
    with lending.output_stream(device) as stream:
        outputs = pipeline.share_outputs(cuda_stream=stream)
        pipeline.release_outputs()
        return [lending.from_dali(output) for output in outputs]


def close(pipelines: dict[str, Any]) -> None:
    """Shut pipelines down and forget them; what they decoded stays valid.

    DALI does it in `Pipeline.__del__`, where Python would lose a Ctrl-C: an exception there is printed and dropped.
    """
    with uninterrupted():
        pipelines.clear()

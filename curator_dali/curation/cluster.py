"""Being connected to a Ray cluster, and what to say of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import ray
from ray.exceptions import RayError, RayTaskError

__all__ = ["PATIENCE", "breaks_context", "connected", "first_line", "free", "raised"]

PATIENCE = 30.0  # seconds without anything finished, before it is said who is waited for


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; what was not connected before is let go afterwards."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def free() -> str:
    """What nobody has reserved."""
    left: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{left.get('CPU', 0):g} CPUs, {left.get('GPU', 0):g} GPUs"


def raised(error: RayError) -> TypeGuard[RayTaskError]:
    """Whether what ran there raised; any other error is a death, as of its machine or by Ray's memory monitor."""
    return isinstance(error, RayTaskError)


def breaks_context(error: BaseException) -> bool:
    """Whether an error's text is one of CUDA's, after most of which every later call in that process fails too."""
    return re.search("CUDA error|cudaError|CUDA_ERROR|illegal memory access", str(error)) is not None


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return str(error).strip().partition("\n")[0]

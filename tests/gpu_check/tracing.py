"""What the device does while something runs, from torch's profiler."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.gpu_check.settings import Settings

Events = list[dict[str, Any]]


@contextmanager
def traced(settings: Settings) -> Iterator[Events]:
    """The profiler's events of what runs inside; they are there once it is left."""
    from torch.profiler import ProfilerActivity, profile

    events: Events = []
    with profile(activities=[ProfilerActivity.CUDA if settings.gpu else ProfilerActivity.CPU]) as profiler:
        yield events
    trace = settings.work / f"trace-{time.time_ns()}.json"
    profiler.export_chrome_trace(str(trace))
    events += json.loads(trace.read_text())["traceEvents"]
    trace.unlink()


def copied(events: Events, images: int) -> dict[str, int]:
    """Bytes an image of each kind of copy: "HtoD", "DtoH", "DtoD"."""
    copies: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "gpu_memcpy":
            kind = next((k for k in ("HtoD", "DtoH", "DtoD") if k in event["name"]), event["name"])
            copies[kind] += event["args"].get("bytes", 0)
    return {kind: round(count / images) for kind, count in copies.items()}


def in_kernels(events: Events, images: int) -> float:
    """Microseconds an image that kernels ran; those that ran at once count each. The JPEG engine is none of them."""
    return round(sum(event.get("dur", 0.0) for event in events if event.get("cat") == "kernel") / images, 1)

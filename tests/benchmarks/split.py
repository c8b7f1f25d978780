"""Where the loader's CPU time and memory go. Each function runs in a child process of its own."""

from __future__ import annotations

import gc
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Job, status
from tests.benchmarks.rows import BATCH, consume


def memory(job: Job) -> dict[str, Any]:
    """Resident memory at twenty points of `job.limit` batches of two images, over as many passes as it takes."""
    from curator_dali import ImageLoader

    points: list[tuple[int, float, float]] = []
    step, count = max(1, job.limit // 20), 0
    with ImageLoader(job.shards, batch_size=2, num_threads=job.threads, device="cpu") as loader:
        while count < job.limit:
            for batch in loader:
                consume(batch.images)
                count += 1
                if count % step == 0:
                    gc.collect()
                    points.append((count, status("VmRSS"), status("RssAnon")))
                if count == job.limit:
                    break
    return {"at": points}


def cpu_by_thread() -> dict[int, float]:
    """Thread id -> seconds on a CPU, of every thread of this process, DALI's among them."""
    spent = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            spent[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except FileNotFoundError:
            continue  # ended meanwhile
    return spent


def threads(job: Job) -> dict[str, dict[str, float]]:
    """Microseconds of CPU an image: by thread in a first and a third pass, and by what a reader does."""
    import numpy as np

    from curator_dali import ImageLoader
    from curator_dali.decoding.decoder import gate
    from curator_dali.sources import open_source

    answer: dict[str, dict[str, float]] = {}
    with ImageLoader(job.shards, batch_size=BATCH, num_threads=job.threads, device="cpu") as loader:
        for number in range(3):
            names: dict[int, str] = {}
            before, last = cpu_by_thread(), {}
            process, count = time.process_time(), 0
            for i, batch in enumerate(loader):
                count += consume(batch.images)
                if i % 4 == 0:  # threads that end with the pass are read before it ends
                    names |= {one.native_id: one.name for one in threading.enumerate() if one.native_id}
                    last.update(cpu_by_thread())
            process = time.process_time() - process
            if number == 1:
                continue
            groups: dict[str, float] = defaultdict(float)
            for task, seconds in last.items():
                name = names.get(task, "DALI's own threads").rpartition("_")[0] or names.get(task, "DALI's own threads")
                groups[name] += 1e6 * (seconds - before.get(task, 0.0)) / count
            python = sum(value for name, value in groups.items() if name != "DALI's own threads")
            answer[("first pass, imports too", "", "third pass")[number]] = {
                **dict(sorted(groups.items())),
                "Python's threads together": python,
                "the process": 1e6 * process / count,
            }
    source = open_source(job.shards)
    spent: dict[str, float] = defaultdict(float)
    for start in range(0, len(source), BATCH):
        at = time.thread_time()
        encoded = source.read(np.arange(start, min(start + BATCH, len(source))))
        spent["read"] += time.thread_time() - at
        known = encoded.headers.copy()
        for name, headers in (("gate, headers known", known), ("gate, headers unknown", np.zeros_like(known))):
            encoded.headers = headers
            at = time.thread_time()
            gate(encoded)
            spent[name] += time.thread_time() - at
        at = time.thread_time()
        _ = [item.metadata for item in encoded.objects]
        spent["metadata, when read"] += time.thread_time() - at
    answer["one by one, one thread"] = {name: 1e6 * seconds / len(source) for name, seconds in spent.items()}
    source.close()
    return answer

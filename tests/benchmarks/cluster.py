"""What Ray costs: the same curation in this process and on one actor, and on more of them.

    python -m tests.benchmarks.cluster [--shards .bench/full] [--rounds 3] [--workers 1 2 4]

Each with one decoding thread and one of torch's a worker, in turn, after a round that is not counted.

A last stage notes when each batch of each worker is through. The rate is that of the window in which all are at work:
from when the last of them is through its first part, so that processes, DALI and torch have started, to when the first
one is through its last part. Batches are counted by when they are through, whatever part they are of; where a worker is
in the middle of a batch at an end of the window, the count is off by less than that batch, either way. What the window
leaves out is in `whole`: seconds of the run, the start of the actors and the wait for the last one included, that of
Ray's own processes not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch

import curator_dali as cd
from curator_dali.curation.ray_executor import RayExecutor
from curator_dali.curation.worker import Executor, LocalExecutor
from tests.benchmarks.harness import spread

PART, BATCH = 125, 25


class Clock(cd.Stage):
    """Notes how many images of this process are through, and when, in FOLDER/PID."""

    reads = frozenset()
    writes: ClassVar[dict[str, str]] = {}
    settings: ClassVar[dict[str, str]] = {"type": "Clock"}

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, batch: cd.ImageBatch) -> cd.ImageBatch:
        with open(f"{self.folder}/{os.getpid()}", "a") as file:
            file.write(f"{time.time()} {len(batch)}\n")
        return batch


def steady(marks: dict[str, list[tuple[float, int]]]) -> float:
    """Images a second while all workers are at work; `marks` are the notes of each."""
    begins, ends = [], []
    for notes in marks.values():
        through = 0
        for moment, count in notes:
            through += count
            if through >= PART:
                begins.append(moment)
                break
        ends.append(notes[-1][0])
    begin, end = max(begins), min(ends)
    if end <= begin:
        raise SystemExit("no moment in which all workers had work: give more images, or fewer --workers")
    return sum(count for notes in marks.values() for moment, count in notes if begin < moment <= end) / (end - begin)


def once(shards: list[str], executor: Executor, workers: int) -> tuple[float, float]:
    """Images a second in the window, and the seconds of the whole run."""
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as clocks:
        stages = [cd.Quality(), Clock(clocks)]
        options: dict[str, Any] = {"batch_size": BATCH, "part_size": PART, "num_threads": 1, "html": False}
        with cd.Curation(shards, out, stages=stages, device="cpu", executor=executor, **options) as curation:
            began = time.perf_counter()
            curation.run()
            whole = time.perf_counter() - began
        marks: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for path in Path(clocks).iterdir():
            for moment, count in map(str.split, path.read_text().splitlines()):
                marks[path.name].append((float(moment), int(count)))
    if len(marks) != workers:
        raise SystemExit(f"{len(marks)} of {workers} workers got work: give more images, or fewer --workers")
    return steady(marks), whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path(".bench/full"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = [str(path) for path in sorted(arguments.shards.glob("*.tar"))]
    ray.init("local", num_cpus=max(arguments.workers), object_store_memory=100 << 20, log_to_driver=False)
    rows: dict[str, tuple[Executor, int]] = {"this process": (LocalExecutor(), 1)}
    rows |= {f"actors: {count}": (RayExecutor(num_workers=count), count) for count in arguments.workers}
    rates: dict[str, list[float]] = {name: [] for name in rows}
    wholes: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(arguments.rounds + 1):
        for name, (executor, workers) in rows.items():
            rate, whole = once(shards, executor, workers)
            if number:
                rates[name].append(rate)
                wholes[name].append(whole)
                print(f"round {number}  {name}: {rate:.1f} images/s, whole {whole:.1f} s", flush=True)
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["this process"], strict=True)]
        print(f"{name}: {spread(found, 1)} images/s, x {spread(ratios, 2)}, whole {spread(wholes[name], 1)} s")
    ray.shutdown()


if __name__ == "__main__":
    main()

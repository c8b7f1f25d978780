"""What Ray costs: the same curation in this process and on one actor, and on more of them.

    python -m tests.benchmarks.cluster [--shards .bench/full] [--rounds 3] [--workers 1 2]

Each with one decoding thread a worker, in turn, after a round that is not counted, in which Ray, the actors' processes
and DALI start. Prints images/s and the ratio to this process within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch

import curator_dali as cd
from curator_dali.curation.executors import Executor, LocalExecutor
from curator_dali.ray import RayExecutor


def once(shards: list[str], executor: Executor) -> float:
    """Images a second, from the first part handed out to the last one recorded."""
    with tempfile.TemporaryDirectory() as out:
        with cd.Curation(
            shards, out, stages=[cd.Quality()], device="cpu", part_size=250, num_threads=1, executor=executor
        ) as curation:
            marks: list[tuple[float, int]] = []
            curation.run(lambda count: marks.append((time.perf_counter(), count)))
        # from the end of the first part on: what starts is over then
        return (sum(count for _, count in marks) - marks[0][1]) / (marks[-1][0] - marks[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path(".bench/full"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = [str(path) for path in sorted(arguments.shards.glob("*.tar"))]
    ray.init("local", num_cpus=max(arguments.workers), object_store_memory=100 << 20, log_to_driver=False)
    rows: dict[str, Executor] = {"this process": LocalExecutor()}
    rows |= {f"{count} actors": RayExecutor(num_workers=count) for count in arguments.workers}
    found: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(arguments.rounds + 1):
        for name, executor in rows.items():
            rate = once(shards, executor)
            if number:
                found[name].append(rate)
                print(f"round {number}  {name}: {rate:.0f} images/s", flush=True)
    for name, rates in found.items():
        ratios = [a / b for a, b in zip(rates, found["this process"], strict=True)]
        print(f"{name}: {statistics.median(rates):.0f} images/s, x {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    ray.shutdown()


if __name__ == "__main__":
    main()

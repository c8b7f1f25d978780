"""What is decided of all samples, in one process and on Ray's workers: a program, not a test.

    python -m tests.benchmarks.deciding [--rows 200000] [--dim 512] [--workers 1 2] [--rounds 2]

Embeddings of tests/similarity/planted.py, as the Parquet files of an output; `Deduplicate(similarity=0.95).decide`
of them, each time in a process of its own, whose peak of resident memory is the driver's. The cluster's processes are
started before. Each worker has one thread; so has the process that is compared with them, once, and then as many as
there are CPUs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import ROOT, status
from tests.benchmarks.loading import table


def decide(folder: Path, workers: int, threads: int) -> dict[str, Any]:
    """Once, in this process: seconds, peak memory, and a digest of what was decided."""
    import torch

    from curator_dali.curation.worker import Executor, LocalExecutor
    from curator_dali.outputs import RowFiles, RowSubset
    from curator_dali.stages import Deduplicate

    torch.set_num_threads(threads)
    executor: Executor = LocalExecutor()
    if workers:
        import ray

        from curator_dali.curation.ray_executor import RayExecutor

        ray.init("local", num_cpus=workers, object_store_memory=200 << 20, log_to_driver=False, include_dashboard=False)
        executor = RayExecutor()
    files = RowFiles(str(folder / "out"))
    with executor.workers(str(folder / "work")) as shared:
        if shared is not None:
            list(shared.map(warm, range(4 * workers)))
        before = status("VmHWM")
        began = time.perf_counter()
        seen = RowSubset(files, np.arange(len(files)), {}, shared)
        reasons, _ = Deduplicate(False, similarity=0.95, keep="first").decide(seen)
        seconds = time.perf_counter() - began
    return {
        "s": seconds,
        "before_mb": before,
        "peak_mb": status("VmHWM"),
        "dropped": sum(reason is not None for reason in reasons),
        "digest": hashlib.sha256(repr(reasons.tolist()).encode()).hexdigest()[:12],
    }


def warm(number: int) -> None:
    import torch

    from curator_dali.similarity import similar_pairs

    similar_pairs(torch.randn(3000, 64), 0.95, exact=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, workers, threads = arguments.child
        print(json.dumps(decide(Path(folder), workers, threads)))
        return
    from tests.curation.helpers import write_embedded
    from tests.similarity.planted import planted

    ways = {"this process, 1 thread": (0, 1), f"this process, {max(arguments.workers)} threads": (0, 2)}
    ways |= {f"{count} worker{'s' * (count > 1)}": (count, 1) for count in arguments.workers}
    with tempfile.TemporaryDirectory() as place:
        write_embedded(Path(place, "out"), planted(arguments.rows, arguments.dim, 0.95))
        lines = []
        for number in range(arguments.rounds):
            for name, (workers, threads) in ways.items():
                child = json.dumps([place, workers, threads])
                done = subprocess.run(
                    [sys.executable, "-m", "tests.benchmarks.deciding", "--child", child],
                    cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                one = json.loads(done.stdout.splitlines()[-1])
                peak = f"{one['peak_mb']:.0f} ({one['before_mb']:.0f})"
                lines.append([str(number + 1), name, f"{one['s']:.1f}", peak, f"{one['dropped']:,}", one["digest"]])
                print(*lines[-1], flush=True)
    print(table(["round", "", "s", "peak MB (before)", "dropped", "digest"], lines))


if __name__ == "__main__":
    main()

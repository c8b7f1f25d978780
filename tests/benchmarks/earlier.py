"""What an incremental run costs: new rows against an output, by reading it and by its index: `similarity --earlier`.

Outputs are those of tests/index/outputs.py, written as a curation writes them, and lie in the page cache. All four
comparisons are made at once: bytes, pixels, pHash within 6 bits, cosines of `threshold` and more. Each time is of the
first call in a process of its own, and the best of one to five later ones. Peaks of memory are without mapped files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import ROOT, peak_anonymous

SHARDS = (1_000, 10_000)


def child(step: str, folder: Path, *rest: object) -> Any:
    """A step in a process of its own; what it prints as JSON."""
    command = [sys.executable, "-m", "tests.benchmarks.earlier", step, str(folder), *map(str, rest)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def earlier(folder: Path, rows: int, dim: int, threshold: float, threads: int) -> dict[str, Any]:
    """One size: an output, new shards against it, its index, the same shards again."""
    shutil.rmtree(folder, ignore_errors=True)
    answer: dict[str, Any] = {"rows": rows, "dim": dim}
    answer["output"] = child("output", folder, rows, dim, threshold, threads)
    answer["scan"] = {count: child("match", folder, count, threshold, threads) for count in SHARDS}
    answer["build"] = child("index", folder, threshold, threads)
    answer["index"] = {count: child("match", folder, count, threshold, threads) for count in SHARDS}
    shutil.rmtree(folder)
    return answer


def output(folder: Path, rows: str, dim: str, threshold: str) -> dict[str, Any]:
    from tests.index.outputs import made_up, write_output

    old, new = made_up(int(rows), max(SHARDS), int(dim), float(threshold))
    write_output(folder / "out", old)
    np.savez(folder / "new.npz", **new)
    return {"mb": sum(path.stat().st_size for path in (folder / "out").rglob("*")) / 1e6}


def match(folder: Path, count: str, threshold: str) -> dict[str, Any]:
    import pyarrow.parquet  # noqa: F401 - not part of what is measured
    import torch  # noqa: F401

    from curator_dali.index.earlier import match_earlier
    from curator_dali.stages import Deduplicate

    with np.load(folder / "new.npz", allow_pickle=True) as file:
        new = {name: file[name][: int(count)] for name in file.files}
    ways = Deduplicate(near=6, similarity=float(threshold)).ways
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 6 and sum(seconds) < 5):
        began = time.perf_counter()
        matches = match_earlier([str(folder / "out")], ways, int(count), new, np.arange(int(count)))
        seconds.append(time.perf_counter() - began)
    kept = folder / f"matches-{count}.npy"
    found = np.array([str(key) for key in matches.key])
    answer: dict[str, Any] = {"seconds": seconds, "by": np.bincount(matches.comparison + 1, minlength=5).tolist()}
    if kept.exists():
        answer["same"] = float((np.load(kept) == found).mean())
    else:
        np.save(kept, found)
    return answer


def index(folder: Path, threshold: str) -> dict[str, Any]:
    from curator_dali import write_index

    began = time.perf_counter()
    with peak_anonymous() as peak:
        made = write_index(folder / "out", similarity=float(threshold))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "mb": made.nbytes / 1e6, "peak_mb": peak[0]}


def lines(results: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: seconds of a first call (the best of later ones)."""
    header = ["rows", "output MB", "index MB", "built in s (peak MB)"]
    header += [f"{count:,} new: {way}, s" for count in SHARDS for way in ("scan", "index")] + ["the same found"]
    found = []
    for one in results:
        line = [f"{one['rows']:,}", f"{one['output']['mb']:.0f}", f"{one['build']['mb']:.0f}"]
        line.append(f"{one['build']['seconds']:.1f} ({one['build']['peak_mb']:.0f})")
        for count in SHARDS:
            for way in ("scan", "index"):
                first, *later = one[way][count]["seconds"]
                line.append(f"{first:.2f} ({min(later):.2f})")
        line.append(", ".join(f"{one['index'][count]['same']:.2%}" for count in SHARDS))
        found.append(line)
    return header, found


if __name__ == "__main__":
    import torch

    *arguments, limit = sys.argv[1:]
    torch.set_num_threads(int(limit))
    step, where, *rest = arguments
    print(json.dumps({"output": output, "match": match, "index": index}[step](Path(where), *rest)))

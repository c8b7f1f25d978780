"""A random sample of a data set with an index: what it costs with 10^5, 10^6 and 10^7 samples, side by side.

One tar of 10,000 tiny photographs is linked under as many names as it takes. Each round reads the same number of random
batches of every data set, one after the other. Run it as `python -m tests.benchmarks.indexed`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.helpers import crops, encode, load_photos, write_tar

PER_TAR = 10_000


def make_data(folder: Path, counts: list[int]) -> dict[int, Path]:
    """Make data sets of some numbers of samples, and their indexes; number -> folder."""
    import curator_dali as cd

    folder.mkdir(parents=True, exist_ok=True)
    tar = folder / "tiny.tar"
    if not tar.exists():
        images = [encode(pixels) for _, pixels in crops(load_photos(), 500, shortest=16, longest=32)]
        write_tar(tar, ((f"{n:06d}.jpg", images[n % len(images)]) for n in range(PER_TAR)))
    found = {}
    for count in counts:
        found[count] = folder / f"{count}"
        found[count].mkdir(exist_ok=True)
        for number in range(count // PER_TAR):
            link = found[count] / f"{number:05d}.tar"
            if not link.exists():
                link.symlink_to(tar)
        began = time.perf_counter()
        made = cd.prepare(str(found[count]), processes=os.cpu_count() or 1)
        print(f"{made} in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return found


def measure(folder: str, batches: int, size: int) -> dict[str, float]:
    """Read random batches in this process: seconds to open, microseconds of CPU a sample, and MB of memory."""
    import curator_dali as cd

    began = time.perf_counter()
    source = cd.open_source(folder)
    opened, before = time.perf_counter() - began, _resident()
    rng = np.random.default_rng(0)
    source.read(rng.integers(0, len(source), size))
    began = time.process_time()
    for _ in range(batches):
        source.read(rng.integers(0, len(source), size))
    spent = (time.process_time() - began) / batches / size * 1e6
    began = time.process_time()
    for _ in range(batches):
        source.headers(rng.integers(0, len(source), size))
    headers = (time.process_time() - began) / batches / size * 1e6
    return {"open_s": opened, "us": spent, "headers_us": headers, "opened_mb": before, "mb": _resident()}


def _resident() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measure, and print medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "curator-dali-indexed")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.batches, arguments.size)))
        return
    folders = make_data(arguments.data, arguments.samples)
    rounds: dict[int, list[dict[str, float]]] = {count: [] for count in folders}
    for number in range(arguments.rounds):
        for count, folder in list(folders.items())[:: 1 if number % 2 else -1]:
            command = [sys.executable, "-m", "tests.benchmarks.indexed", "--measure", str(folder)]
            command += ["--batches", str(arguments.batches), "--size", str(arguments.size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rounds[count].append(json.loads(done.stdout.splitlines()[-1]))
    first = next(iter(folders))
    for count, found in rounds.items():
        medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
        ratio = statistics.median(a["us"] / b["us"] for a, b in zip(found, rounds[first], strict=True))
        print(count, {name: round(value, 2) for name, value in medians.items()}, f"x {ratio:.2f}")


if __name__ == "__main__":
    main()

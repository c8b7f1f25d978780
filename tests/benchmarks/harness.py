"""Time rows fairly: each in a process of its own, all of them in turn, round after round.

    python -m tests.benchmarks.harness '{"row": "...", "shards": [...], "threads": 2, "cache": "..."}'

is the child process; it prints one line of JSON. A machine's speed drifts by 15% and more within minutes, so only
ratios within a round mean anything, and `others`, the CPUs that other processes took meanwhile, says which rounds do
not.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Pass = Callable[[], int]


@dataclass(frozen=True)
class Job:
    """What a child does: `row` over `shards`, with `threads` decoding threads; indexes are kept in `cache`."""

    row: str
    shards: list[str]
    threads: int
    cache: str
    limit: int = 0  # of batches, where a row knows them


def status(field: str) -> float:
    """A field of /proc/self/status in MB: VmHWM is the peak of resident memory, RssAnon what is no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


@contextmanager
def sampling(look: Callable[[], object], every: float) -> Iterator[None]:
    """Call `look` every so many seconds, on a thread."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(every):
            look()

    thread = threading.Thread(target=sample, name="sampler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def peak_anonymous(every: float = 0.05) -> Iterator[list[float]]:
    """Sample RssAnon; the list's one value is the peak so far. Mapped files count in VmHWM but not here."""
    peak = [0.0]

    def look() -> None:
        peak[0] = max(peak[0], status("RssAnon"))

    with sampling(look, every):
        yield peak


def tree_cpu(seen: dict[int, float]) -> None:
    """Note the CPU seconds, so far, of this process and of all that came from it, by their ids."""
    stats: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            stats[int(path.parent.name)] = (
                int(fields[1]),
                (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            )
    ours = {os.getpid()}
    while found := {pid for pid, (parent, _) in stats.items() if parent in ours} - ours:
        ours |= found
    seen.update({pid: stats[pid][1] for pid in ours if pid in stats})


@contextmanager
def tree_usage(every: float = 0.2) -> Iterator[dict[str, float]]:
    """`{"cpu": seconds}` at the end: of this process and all that came from it, each as of the last look at it.

    Usage counts only children that somebody waited for; Ray's workers end without.
    """
    before: dict[int, float] = {}
    tree_cpu(before)
    seen, used = dict(before), {"cpu": 0.0}
    try:
        with sampling(lambda: tree_cpu(seen), every):
            yield used
    finally:
        tree_cpu(seen)
        used["cpu"] = sum(seen.values()) - sum(before.values())


@dataclass(frozen=True)
class Usage:
    wall: float
    cpu: float
    faults: int
    machine: float

    @classmethod
    def now(cls) -> Usage:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        ticks = [int(n) / os.sysconf("SC_CLK_TCK") for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        busy = sum(ticks[:3]) + sum(ticks[5:8])  # all but idle and iowait; stolen time counts as somebody's
        cpu = sum(one.ru_utime + one.ru_stime for one in used)
        return cls(time.perf_counter(), cpu, sum(one.ru_minflt for one in used), busy)


def timed(run: Pass) -> dict[str, float]:
    """Run one pass and say what it took."""
    gc.collect()
    before = Usage.now()
    count = run()
    after = Usage.now()
    wall, cpu = after.wall - before.wall, after.cpu - before.cpu
    return {
        "images": count,
        "seconds": wall,
        "rate": count / wall,
        "cpu_ms": 1e3 * cpu / count,
        "faults": (after.faults - before.faults) / count,
        "others": max(0.0, after.machine - before.machine - cpu) / wall,
    }


def measure(job: Job) -> dict[str, Any]:
    """Measure one row in this process: a whole pass from construction to the last image, and a later pass."""
    from tests.benchmarks import rows, training

    row = {**rows.ROWS, **training.ROWS}[job.row]
    with row.open(job) as run:  # imports, page cache, indexes that are kept
        run()
    result: dict[str, Any] = {"row": job.row}
    with peak_anonymous() as anonymous:
        if row.own_construction:
            opened = []

            def whole() -> int:
                opened.append(row.open(job))
                return int(opened[0].__enter__()())

            result["whole"] = timed(whole)
            opened[0].__exit__(None, None, None)
        if row.steady:
            with row.open(job) as run:
                run()
                run()
                result["steady"] = timed(run)
    result["peak_mb"] = status("VmHWM")
    result["anonymous_mb"] = anonymous[0]
    result["children_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return result


def in_child(function: str, job: Job, python: str = sys.executable, timeout: float = 900) -> dict[str, Any]:
    """Run `module:function(job)` in a fresh process; `{"failed": why}` where that did not work out."""
    command = [python, "-m", "tests.benchmarks.harness", function, json.dumps(asdict(job))]
    env = {**os.environ, "CURATOR_DALI_CACHE": job.cache, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {timeout:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        if "ModuleNotFoundError" in reason:
            reason = f"not installed ({reason.partition(': ')[2]})"
        return {"failed": reason if done.returncode >= 0 else f"killed by signal {-done.returncode}: {reason}"}
    answer = json.loads(lines[-1])
    assert isinstance(answer, dict)
    return answer


def rounds(jobs: dict[str, Job], count: int, pythons: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Measure every job `count` times, in turn, each round beginning with another one."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    names = list(jobs)
    for i in range(count):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if results[name] and "failed" in results[name][-1]:
                continue
            answer = in_child("tests.benchmarks.harness:measure", jobs[name], pythons.get(name, sys.executable))
            results[name].append(answer)
            shown = answer.get("failed") or ", ".join(
                f"{part} {answer[part]['rate']:.0f} img/s" for part in ("whole", "steady") if part in answer
            )
            print(f"round {i + 1}/{count}  {name}: {shown}", file=sys.stderr, flush=True)
    return results


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (lowest to highest)`."""
    if not values:
        return ""
    low, middle, high = (f"{x:,.{digits}f}" for x in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def ratios(results: dict[str, list[dict[str, Any]]], name: str, to: str, part: str) -> list[float]:
    """Rate of `name` over that of `to`, round by round."""
    pairs = zip(results[name], results.get(to, []), strict=False)
    return [a[part]["rate"] / b[part]["rate"] for a, b in pairs if part in a and part in b]


if __name__ == "__main__":
    import importlib

    module, _, function = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), function)(Job(**json.loads(sys.argv[2])))))

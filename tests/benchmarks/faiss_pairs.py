"""All pairs that are alike, by `similar_pairs` and `near_pairs` and by faiss: a program, not a test.

    pip install faiss-cpu
    python -m tests.benchmarks.faiss_pairs                                  # embeddings, 100,000 rows
    python -m tests.benchmarks.faiss_pairs --rows 1000000 --rounds 1        # half an hour, and 8 GB
    python -m tests.benchmarks.faiss_pairs --hashes --rows 100000 1000000   # perceptual hashes

Embeddings are those of tests/similarity/planted.py. faiss's `IndexIVFFlat` is trained with as many iterations and rows
a cluster as ours. Its probes are the fewest, of 1, 2, 3, 4, 6, ..., with which 99% of a sample's pairs are found; the
search for them is not timed. Each measurement has a process of its own; the two sides alternate, round by round.
`peak` is what the process took beyond its rows. `others` is the CPUs that other processes took meanwhile: where it is
not near 0, compare CPU seconds, with --threads 1, as threads that wait for each other spend them too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.harness import ROOT, spread, status
from tests.benchmarks.loading import table
from tests.benchmarks.similarity import exact_cosines, truth, used
from tests.similarity.pairs import expand
from tests.similarity.planted import planted

OURS, RECALL = "curator_dali", 0.99
IVF = {f"IVFFlat, {n} sqrt(N) lists": n for n in (1, 2, 4, 8)}
BINARY = ("BinaryFlat", "BinaryMultiHash 4 x 16", "BinaryHash 24")
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
QUERIES_AT_ONCE = 50_000
FLAT_ROWS = 300_000  # above these all with all take too long

Codes = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]


def planted_hashes(count: int) -> NDArray[np.uint64]:
    """Random hashes; a tenth of them are up to 8 bits away from another."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, np.uint64)
    tenth = count // 10
    hashes[:tenth] = hashes[tenth : 2 * tenth]
    for n in range(8):
        moved = hashes[n * tenth // 8 : tenth]
        moved ^= np.uint64(1) << rng.integers(0, 64, len(moved)).astype(np.uint64)
    return hashes


def searched(index: Any, rows: NDArray[Any], radius: float, kept: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> Codes:
    """Each pair within the radius once: rows, rows, values."""
    found: list[Codes] = []
    for start in range(0, len(rows), QUERIES_AT_ONCE):
        limits, values, others = index.range_search(rows[start : start + QUERIES_AT_ONCE], radius)
        queries = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
        good = (queries != others) & kept(values)
        found.append((queries[good], others[good], values[good]))
    first, second, value = (np.concatenate(part) for part in zip(*found, strict=True))
    first, second = np.minimum(first, second), np.maximum(first, second)
    _, once = np.unique(first * len(rows) + second, return_index=True)
    return first[once], second[once], value[once]


def trained(rows: NDArray[np.float32], lists: int) -> Any:
    import faiss

    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = 8, 64
    index.train(rows)
    return index


def fewest_probes(index: Any, rows: NDArray[np.float32], sample: NDArray[np.int64], threshold: float) -> int:
    """How many lists of each query are needed for 99% of the pairs; a pair is found from either of its rows."""
    true = np.array(sorted(truth(rows, sample, threshold)))
    looked = index.quantizer.search(rows[true.ravel()], min(max(PROBES), index.nlist))[1].reshape(len(true), 2, -1)
    home = looked[:, :, 0]
    for probes in PROBES:
        meet = (looked[:, 0, :probes] == home[:, 1:]).any(1) | (looked[:, 1, :probes] == home[:, :1]).any(1)
        if meet.mean() >= RECALL:
            return probes
    return PROBES[-1]


def embeddings(name: str, path: str, threshold: float, threads: int, probes: int) -> dict[str, Any]:
    """One side, in this process."""
    rows = np.load(path)
    rng = np.random.default_rng(9)
    count = len(rows)
    sample = np.unique(np.concatenate([rng.integers(0, count, 1000), rng.integers(int(0.9 * count), count, 1000)]))
    answer: dict[str, Any] = {}
    if name == OURS:
        import torch

        from curator_dali.similarity import similar_pairs

        torch.set_num_threads(threads)
        similar_pairs(rows[:3000], threshold, exact=False)  # imports, kernels
        before = status("VmHWM")
        pairs, answer["cost"] = used(lambda: similar_pairs(rows, threshold, exact=False))
        first, second = pairs.first, pairs.second
    else:
        import faiss

        faiss.omp_set_num_threads(threads)
        lists = round(IVF[name] * len(rows) ** 0.5)
        if not probes:
            probes = fewest_probes(trained(rows, lists), rows, sample, threshold)
            return {"probes": probes}
        before = status("VmHWM")

        def run() -> Codes:
            index = trained(rows, lists)
            index.add(rows)
            index.nprobe = probes
            return searched(index, rows, threshold - 1e-6, lambda values: values >= threshold)

        (first, second, _), answer["cost"] = used(run)
    answer |= {"peak_mb": status("VmHWM") - before, "pairs": len(first), "probes": probes}
    answer["precision"] = float((exact_cosines(rows, first, second) >= threshold).mean())
    true = truth(rows, sample, threshold)
    answer["recall"] = len(true & set(zip(first.tolist(), second.tolist(), strict=True))) / len(true)
    return answer


def hashes(name: str, path: str, distance: int, threads: int) -> dict[str, Any]:
    """The same of hashes. Recall and precision are against `near_pairs`, which tests compare with brute force."""
    from curator_dali.similarity import near_pairs

    values = np.load(path)
    near_pairs(values[:1000], distance)
    before = status("VmHWM")
    if name == OURS:
        pairs, cost = used(lambda: near_pairs(values, distance))
        return {"cost": cost, "peak_mb": status("VmHWM") - before, "pairs": len(pairs), "recall": 1.0, "precision": 1.0}
    import faiss

    faiss.omp_set_num_threads(threads)
    codes = values.view(np.uint8).reshape(-1, 8)

    def run() -> Codes:
        if name == "BinaryFlat":
            index: Any = faiss.IndexBinaryFlat(64)
        elif name.startswith("BinaryMultiHash"):  # four lanes: some lane differs in distance // 4 bits at most
            index = faiss.IndexBinaryMultiHash(64, 4, 16)
            index.nflip = distance // 4
        else:
            index = faiss.IndexBinaryHash(64, 24)
            index.nflip = min(distance, 3)
        index.add(codes)
        return searched(index, codes, distance + 1, lambda apart: apart <= distance)

    (first, second, _), cost = used(run)
    peak = status("VmHWM") - before
    pairs = expand(near_pairs(values, distance), equal=0)  # faiss lists equal hashes, too
    true = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    good = len(true & found)
    return {
        "cost": cost, "peak_mb": peak, "pairs": len(found), "recall": good / len(true), "precision": good / len(found),
    }  # fmt: skip


def child(arguments: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.faiss_pairs", "--child", json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout)
    print(arguments, answer, file=sys.stderr, flush=True)
    assert isinstance(answer, dict)
    return answer


def alternate(names: list[str], rounds: int, run: Callable[[str], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            found[name].append(run(name))
    return found


def lines(title: str, found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    ours = found[OURS]
    return [
        [
            title,
            name + (f", {runs[0]['probes']} probes" if runs[0].get("probes") else ""),
            spread([run["cost"]["s"] for run in runs], 2),
            spread([run["cost"]["cpu_s"] for run in runs], 2),
            *(
                spread([run["cost"][what] / own["cost"][what] for run, own in zip(runs, ours, strict=True)], 2)
                for what in ("s", "cpu_s")
            ),
            spread([run["peak_mb"] for run in runs], 0),
            f"{runs[0]['recall']:.4f}",
            f"{runs[0]['precision']:.6f}",
            f"{runs[0]['pairs']:,}",
            f"{statistics.mean(run['cost']['others'] for run in runs):.2f}",
        ]
        for name, runs in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hashes", action="store_true", help="perceptual hashes instead")
    parser.add_argument("--distances", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--probes", type=int, default=0, help="instead of searching for the fewest")
    parser.add_argument("--only", nargs="+", help="faiss's rows to measure; all without")
    parser.add_argument("--json", type=Path, help="where to write all of it")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps((hashes if "distance" in args.child else embeddings)(**args.child)))
        return
    cells: list[list[str]] = []
    results: dict[str, Any] = {}
    for count in args.rows:
        with tempfile.TemporaryDirectory(prefix="curator-dali-") as folder:
            path = str(Path(folder) / "rows.npy")
            np.save(path, planted_hashes(count) if args.hashes else planted(count, args.dim, args.threshold))
            common = {"path": path, "threads": args.threads}
            peers = args.only or [
                n for n in (BINARY if args.hashes else IVF) if n != "BinaryFlat" or count <= FLAT_ROWS
            ]
            if args.hashes:
                for distance in args.distances:
                    title = f"{count:,} hashes, {distance} bits"
                    run = lambda name: child({"name": name, "distance": distance, **common})  # noqa: B023, E731
                    results[title] = alternate([OURS, *peers], args.rounds, run)
                    cells += lines(title, results[title])
            else:
                asked = {"threshold": args.threshold, **common}
                probes = {n: args.probes or child({"name": n, "probes": 0, **asked})["probes"] for n in peers}
                probes[OURS] = 0
                run = lambda name: child({"name": name, "probes": probes[name], **asked})  # noqa: B023, E731
                title = f"{count:,} x {args.dim}"
                results[title] = alternate([OURS, *peers], args.rounds, run)
                cells += lines(title, results[title])
    heads = ["", "", "s", "CPU s", "x ours", "x ours, CPU", "peak MB", "recall", "precision", "pairs", "others"]
    print(table(heads, cells))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"arguments": sys.argv[1:], "results": results}, indent=1))


if __name__ == "__main__":
    main()

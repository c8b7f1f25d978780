"""What similarity costs, and how much of what is alike it finds: a program, not a test.

    python -m tests.benchmarks.similarity                          # 10,000 and 100,000 embeddings
    python -m tests.benchmarks.similarity --rows 1000000           # minutes, and 6 GB
    python -m tests.benchmarks.similarity --earlier --rows 10000 100000 1000000 --threshold 0.9    # incremental runs
    python -m tests.benchmarks.similarity --hashes                 # against imagehash, and near pairs of hashes
    python -m tests.benchmarks.similarity --hashes --photos DIR    # with further photographs; --threads 1 for a core

Embeddings are those of tests/similarity/planted.py. Each size runs in a process of its own, whose peak of resident
memory includes the embeddings. Recall is measured against brute force for a sample of rows; precision by computing the
cosine of every pair that was found in float64. `others` is the CPUs that other processes took meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.earlier import earlier
from tests.benchmarks.earlier import lines as lines_of
from tests.benchmarks.harness import ROOT, Usage, spread, status
from tests.benchmarks.loading import table

SAMPLE = 1000


def used(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Run once; the answer, wall and CPU seconds, and the CPUs that others took."""
    before = Usage.now()
    answer = run()
    after = Usage.now()
    wall, cpu = after.wall - before.wall, after.cpu - before.cpu
    return answer, {"s": wall, "cpu_s": cpu, "others": max(0.0, after.machine - before.machine - cpu) / wall}


def truth(rows: NDArray[np.float32], sample: NDArray[np.int64], threshold: float) -> set[tuple[int, int]]:
    """All pairs that a row of the sample is in, by brute force; near the threshold decided in float64."""
    found = set()
    for start in range(0, len(rows), 50_000):
        near = np.argwhere(rows[sample] @ rows[start : start + 50_000].T >= threshold - 1e-4)
        i, j = sample[near[:, 0]], near[:, 1] + start
        exact = exact_cosines(rows, i, j)
        keep = (exact >= threshold) & (i != j)
        found |= set(zip(np.minimum(i, j)[keep].tolist(), np.maximum(i, j)[keep].tolist(), strict=True))
    return found


def exact_cosines(rows: NDArray[np.float32], i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.empty(len(i))
    for start in range(0, len(i), 10_000):
        a, b = (rows[x[start : start + 10_000]].astype(np.float64) for x in (i, j))
        found[start : start + 10_000] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def embeddings(count: int, dim: int, threshold: float, threads: int) -> dict[str, Any]:
    """One size, in this process."""
    import torch

    from curator_dali.similarity import divide, group, keep_order, pairs_between, similar_pairs
    from tests.similarity.planted import planted

    torch.set_num_threads(threads)
    rows = planted(count, dim, threshold)
    answer: dict[str, Any] = {"rows": count, "before_mb": status("VmHWM")}
    similar_pairs(rows[:3000], threshold, exact=False)  # imports, kernels
    pairs, answer["clusters"] = used(lambda: similar_pairs(rows, threshold, exact=False))
    groups, answer["grouping"] = used(lambda: group(pairs, keep_order(count, "first")))
    answer |= {"peak_mb": status("VmHWM"), "pairs": len(pairs), "dropped": int((~groups.kept).sum())}
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    answer["precision"] = float((exact_cosines(rows, pairs.first, pairs.second) >= threshold).mean())
    rng = np.random.default_rng(9)
    sample = np.unique(np.concatenate([rng.integers(0, count, SAMPLE), rng.integers(int(0.9 * count), count, SAMPLE)]))
    true = truth(rows, sample, threshold)
    answer |= {"recall": len(true & found) / len(true), "true_pairs": len(true)}
    if count <= 100_000:
        _, answer["exact"] = used(lambda: similar_pairs(rows, threshold, exact=True))
    # one new shard of a hundred
    new, old = rows[-count // 100 :], rows[: -count // 100]
    clusters = divide(old, threshold)
    exact, answer["new, exact"] = used(lambda: pairs_between(new, old, threshold))
    near, answer["new, clusters"] = used(lambda: pairs_between(new, old, threshold, clusters=clusters))
    answer["new_recall"] = len(near) / max(1, len(exact))
    answer["clusters_are"] = {"count": len(clusters.centroids), "looked_at": clusters.looked_at}
    return answer


def hashes(photos: Path | None, threads: int, rounds: int) -> dict[str, Any]:
    """Perceptual hashes against imagehash, in alternation; and near pairs of a million hashes."""
    import imagehash
    import torch
    from PIL import Image

    from curator_dali.similarity import dhash, near_pairs, phash
    from curator_dali.similarity.hashes import from_hex
    from tests import helpers

    torch.set_num_threads(threads)
    whole = helpers.load_photos()
    for path in sorted(photos.rglob("*")) if photos else []:
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            image = Image.open(path)
            if min(image.size) >= 200 and image.size[0] * image.size[1] <= 12_000_000:
                whole[str(path)] = np.asarray(image.convert("RGB"))
    crops = [np.ascontiguousarray(crop) for _, crop in helpers.crops(whole, 1000, shortest=128, longest=512)]
    corpus = {"photographs": list(whole.values()), "crops of 128 to 512": crops}
    answer: dict[str, Any] = {}
    for name, ours, theirs, size in (
        ("phash", phash, imagehash.phash, (32, 32)),
        ("dhash", dhash, imagehash.dhash, (9, 8)),
    ):
        small = [Image.fromarray(crop).convert("L").resize(size, Image.Resampling.LANCZOS) for crop in crops]
        batch = np.stack([np.asarray(image) for image in small])
        answer[f"{name} from the small image"] = alternate(partial(ours, batch), theirs, small, threads, rounds)
        for title, pictures in corpus.items():
            whole_images = [Image.fromarray(picture) for picture in pictures]
            decoded = Decoded(pictures, threads)
            with_view = partial(decoded.hashes, ours)
            apart = np.bitwise_count(with_view() ^ from_hex(str(theirs(image)) for image in whole_images))
            answer[f"{name} of whole {title}"] = {
                "images": len(pictures),
                "within_2": float((apart <= 2).mean()),
                "equal": float((apart == 0).mean()),
                "most": int(apart.max()),
                **alternate(with_view, theirs, whole_images, threads, rounds, decoded.feed),
            }
    rng = np.random.default_rng(0)
    many = rng.integers(0, 2**64, 1_000_000, np.uint64)
    many[:100_000] = many[100_000:200_000]
    for n in range(8):  # up to 8 bits away
        many[n * 12_500 : 100_000] ^= np.uint64(1) << rng.integers(0, 64, 100_000 - n * 12_500).astype(np.uint64)
    for distance in (2, 4, 6):
        pairs, cost = used(partial(near_pairs, many, distance))
        answer[f"near_pairs of 1,000,000 within {distance}"] = {**cost, "pairs": len(pairs)}
    return answer


class Decoded:
    """Images in DALI's memory, as behind its decoder: 64 a batch, which turn grey and are hashed."""

    def __init__(self, pictures: list[NDArray[np.uint8]], threads: int) -> None:
        from curator_dali import dali
        from curator_dali.stages.deduplicate import HASH_VIEW

        self.batches = [pictures[start : start + 64] for start in range(0, len(pictures), 64)]
        self.pipeline = dali.new_pipeline("cpu", 64, threads, depth=len(self.batches))
        with self.pipeline:
            images = dali.declare({"images": (np.dtype(np.uint8), 3)})["images"]
            for transform in HASH_VIEW:
                images = transform.lower(images)
            self.pipeline.set_outputs(images)
        self.feed()

    def feed(self) -> None:
        for batch in self.batches:
            self.pipeline.feed_input("images", batch)

    def hashes(self, function: Callable[[Any], NDArray[np.uint64]]) -> NDArray[np.uint64]:
        from curator_dali import dali

        found = []
        self.pipeline.schedule_run()
        for left in reversed(range(len(self.batches))):
            if left:
                self.pipeline.schedule_run()  # grey while the batch before is hashed, as a loader does
            found.append(function(dali.collect(self.pipeline, "cpu")[0]))
        return np.concatenate(found)


def alternate(
    ours: Callable[[], Any],
    theirs: Callable[[Any], Any],
    images: list[Any],
    threads: int,
    rounds: int,
    before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Images a second, round by round: ours, and theirs in a loop and on as many threads."""

    def seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    with ThreadPoolExecutor(threads) as pool:
        spent = []
        for _ in range(rounds + 1):
            before()
            loop, threaded = (lambda: list(map(theirs, images))), (lambda: list(pool.map(theirs, images)))
            spent.append([seconds(run) for run in (ours, loop, threaded)])
    del spent[0]  # makes kernels and pipelines
    return {
        "per_s": [len(images) / a for a, _, _ in spent],
        "imagehash_per_s": [len(images) / b for _, b, _ in spent],
        "x": [b / a for a, b, _ in spent],
        "x_threads": [c / a for a, _, c in spent],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hashes", action="store_true", help="perceptual hashes instead")
    parser.add_argument("--earlier", action="store_true", help="new rows against an output, read or indexed, instead")
    parser.add_argument("--photos", type=Path, help="a folder of further photographs, with --hashes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write all of it")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(embeddings(args.child, args.dim, args.threshold, args.threads)))
        return
    results: Any
    if args.hashes:
        results = hashes(args.photos, args.threads, args.rounds)
        lines = [
            [
                name,
                spread(one["per_s"], 0) if "x" in one else f"{one['cpu_s']:.1f} s of CPU, {one['pairs']:,} pairs",
                spread(one.get("imagehash_per_s", []), 0),
                spread(one.get("x", []), 1),
                spread(one.get("x_threads", []), 1),
                f"{one['within_2']:.2%} ({one['equal']:.1%}, {one['most']})" if "most" in one else "",
            ]
            for name, one in results.items()
        ]
        heads = ["", "images/s", "imagehash", "x imagehash", f"x it in {args.threads} threads"]
        print(table([*heads, "within 2 bits (equal, most)"], lines))
    elif args.earlier:
        with tempfile.TemporaryDirectory(prefix="curator-dali-") as work:
            results = [earlier(Path(work) / "one", n, args.dim, args.threshold, args.threads) for n in args.rows]
        print(table(*lines_of(results)))
    else:
        results = []
        for count in args.rows:
            command = [sys.executable, "-m", "tests.benchmarks.similarity", "--child", str(count)]
            command += ["--dim", str(args.dim), "--threshold", str(args.threshold), "--threads", str(args.threads)]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout))
        ways = ["clusters", "exact", "grouping", "new, exact", "new, clusters"]
        header = ["rows", *(f"{way}: s (CPU s)" for way in ways), "peak MB (before)", "pairs", "recall", "precision"]
        lines = [
            [f"{one['rows']:,}"]
            + [f"{one[way]['s']:.2f} ({one[way]['cpu_s']:.2f})" if way in one else "" for way in ways]
            + [f"{one['peak_mb']:.0f} ({one['before_mb']:.0f})", f"{one['pairs']:,}"]
            + [f"{one['recall']:.4f} of {one['true_pairs']:,}; new {one['new_recall']:.4f}", f"{one['precision']:.6f}"]
            + [f"{statistics.mean(one[way]['others'] for way in ways if way in one):.2f}"]
            for one in results
        ]
        print(table([*header, "others"], lines))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"arguments": sys.argv[1:], "results": results}, indent=1))


if __name__ == "__main__":
    main()

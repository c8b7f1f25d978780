"""Views and joins: what opening a million rows costs, and whether loading through them is as fast as without.

    python -m tests.benchmarks.views [--rows 1000000] [--images 20000] [--rounds 7] [--work DIR]

Opening is measured in a process of its own, without the time and memory of the source's own opening and of importing
Arrow. Loading is 64 x 64 images in random order through `ImageLoader`, in turn in one process: seconds, and seconds of
CPU on all threads, which other processes of the machine change less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.outputs import Manifest, PartWriter, RowSchema
from curator_dali.sources import EncodedBatch, Source
from curator_dali.sources.base import make_batch
from tests.benchmarks import corpus
from tests.benchmarks.harness import ROOT, spread, status

_PART_ROWS = 8192
_SCORES = ("aesthetic_score", "nsfw_score", "sharpness", "brightness", "contrast", "entropy")


class Named(Source):
    """N samples with ids and without images."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        return f"named-{self.count}"

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        batch = make_batch(indices, self.headers(indices))
        batch.objects[:] = [cd.ImageObject(f"memory/{n:09d}", f"{n:09d}") for n in indices.tolist()]
        return batch

    def read_ids(self, indices: NDArray[np.int64]) -> Any:
        import pyarrow as pa

        return pa.array([f"{n:09d}" for n in indices.tolist()], pa.large_string())


def write_output(out: Path, source: Source, kept: float = 1.0) -> None:
    """Write rows of a source as a curation does, with six scores each, and no tars."""
    rng = np.random.default_rng(0)
    about: dict[str, Any] = {"settings": {"stages": []}, "origin": source.origin}
    with Manifest.open(str(out), source=source.fingerprint, samples=len(source), **about) as manifest:
        schema = RowSchema(dict.fromkeys(_SCORES, "float64"))
        for start in range(0, len(source), _PART_ROWS):
            index = np.arange(start, min(start + _PART_ROWS, len(source)))
            ids = source.read_ids(index).to_pylist()
            rows: dict[str, Any] = {"index": index, "image_id": ids, "image_path": [f"tar://{id}.jpg" for id in ids]}
            rows |= {"width": np.full(len(index), 64), "height": np.full(len(index), 64)}
            rows["status"] = np.where(rng.random(len(index)) < kept, "kept", "dropped")
            rows |= {name: rng.random(len(index)) * 10 for name in _SCORES}
            with PartWriter(manifest, start, start + len(index), schema, tars=False) as writer:
                writer.write(rows)


def write_table(path: Path, count: int) -> None:
    """Write a table of captions and weights in another order than the samples'."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.random.default_rng(1).permutation(count)
    ids = [f"{n:09d}" for n in order.tolist()]
    captions = [f"a photograph of number {n}, with some words about it" for n in order.tolist()]
    table = pa.table({"image_id": ids, "caption": captions, "weight": order / count, "split": ["train"] * count})
    pq.write_table(table, path, row_group_size=65_536)


def measure_opening(kind: str, work: str, count: int) -> dict[str, float]:
    """Open a view or a join in this process; seconds, and MB of memory that is no mapped file's."""
    import pyarrow.compute
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401

    source = Named(count)
    cd.View  # noqa: B018 - imported on first use
    before, began = status("RssAnon"), time.perf_counter()
    whole = status("VmRSS")
    found: Source
    if kind == "view":
        found = cd.View(f"{work}/out", data=source)
    elif kind == "thresholds":
        found = cd.View(f"{work}/out", data=source, min={"aesthetic_score": 5.5}, max={"nsfw_score": 5})
    else:
        found = source.join(f"{work}/table.parquet", on="image_id")
    seconds = time.perf_counter() - began
    grown, resident = status("RssAnon") - before, status("VmRSS") - whole
    began = time.perf_counter()
    assert found.read(np.array([len(found) // 2])).objects[0].metadata
    looked = time.perf_counter() - began
    rng = np.random.default_rng(2)
    items = [item for _ in range(100) for item in found.read(rng.integers(0, len(found), 64)).objects]
    began = time.perf_counter()
    for item in items:
        assert item.metadata
    each = (time.perf_counter() - began) / len(items)
    return {"seconds": seconds, "anonymous": grown, "resident": resident, "look": looked, "each": each, "n": len(found)}


def measure_reading(shards: list[str], work: Path, rounds: int) -> Iterator[tuple[str, float, float]]:
    """Yield what is read, the least microseconds a sample of reading it, and of reading it with its metadata."""
    plain = cd.open_source(shards)
    sources = {"plain": plain, "view": cd.View(work / "loaded"), "join": plain.join(str(work / "loaded.parquet"))}
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, len(plain), 64) for _ in range(150)]
    least: dict[str, tuple[float, float]] = dict.fromkeys(sources, (np.inf, np.inf))
    for _ in range(2 * rounds):
        for name, source in sources.items():
            began = time.perf_counter()
            for block in blocks:
                source.read(block)
            read = time.perf_counter()
            for block in blocks:
                for item in source.read(block).objects:
                    assert item.metadata
            reading, whole = read - began, time.perf_counter() - read
            least[name] = min(least[name][0], reading), min(least[name][1], whole)
    for name, (reading, whole) in least.items():
        yield name, 1e6 * reading / (64 * len(blocks)), 1e6 * whole / (64 * len(blocks))


def measure_loading(shards: list[str], work: Path, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Yield what is compared, and its speed over that of the plain source in every round."""
    plain = cd.open_source(shards)
    if not (work / "loaded").exists():
        write_output(work / "loaded", plain)
        write_table(work / "loaded.parquet", len(plain))
    sources = {
        "plain": plain,
        "view": cd.View(work / "loaded"),
        "join": plain.join(str(work / "loaded.parquet")),
        "plain, metadata read": plain,
        "view, metadata read": cd.View(work / "loaded"),
        "join, metadata read": plain.join(str(work / "loaded.parquet")),
        "plain again": plain,
    }
    loaders = {name: cd.ImageLoader(some, batch_size=64, shuffle=1, device="cpu") for name, some in sources.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for turn in range(-1, rounds):
        names = list(sources)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            loader = loaders[name]
            loader.set_epoch(turn + 1)
            began, used = time.perf_counter(), time.process_time()
            for batch in loader:
                if "metadata" in name:
                    for item in batch.data:
                        assert item.metadata
            if turn >= 0:
                spent[name].append((time.perf_counter() - began, time.process_time() - used))
    for name in spent:
        base = "plain, metadata read" if "metadata" in name else "plain"
        for place, unit in enumerate(("by the clock", "by CPU")):
            yield f"{name}, {unit}", [b[place] / a[place] for a, b in zip(spent[name], spent[base], strict=True)]
    for place, unit in enumerate(("of time", "of CPU")):
        yield f"us {unit} an image of the plain source", [1e6 * some[place] / len(plain) for some in spent["plain"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--opening", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.opening:
        print(json.dumps(measure_opening(given.opening, str(given.work), given.rows)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(exist_ok=True)
        if not (work / "out").exists():
            write_output(work / "out", Named(given.rows), kept=0.7)
            write_table(work / "table.parquet", given.rows)
        for kind in ("view", "view", "thresholds", "join", "join"):
            command = [sys.executable, "-m", "tests.benchmarks.views", "--opening", kind, "--work", str(work)]
            done = subprocess.run([*command, "--rows", str(given.rows)], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr)
                continue
            told = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{kind} of {told['n']:,.0f} samples: {told['seconds']:.2f} s, {told['anonymous']:.0f} MB more "
                f"({told['resident']:.0f} MB with mapped files); first metadata {told['look']:.2f} s later, then "
                f"{1e6 * told['each']:.1f} us a sample"
            )
        if not (work / "tiny").exists():
            corpus.build("tiny", work / "tiny", images=given.images)
        shards = [str(path) for path in sorted((work / "tiny").glob("*.tar"))]
        for name, values in measure_loading(shards, work, given.rounds):
            print(f"{name}: {spread(values, 3)}")
        for name, reading, whole in measure_reading(shards, work, given.rounds):
            print(f"read() of the {name} source: {reading:.2f} us a sample, with the metadata {whole:.2f} us")


if __name__ == "__main__":
    main()

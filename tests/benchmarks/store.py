"""Time what a store costs: 30 ms a request, 100 MB/s a connection, 16 connections, simulated on this machine.

    python -m tests.benchmarks.store [--sizes 4 60 160 1000 5000] [--rounds 3] [--folder DIR]

For images of each size (kB, real photographs) in 100 tars: seconds and bytes of indexing by hopping from header to
header, by streaming, and as the code chooses; of the first epoch without an index; of opening with kept indexes; of a
second epoch from a warm cache beside local tars; and the bytes that two ranks with one cache read. Each row is a
process of its own. Rows of a round run one after the other, so that their ratios are of the same minute.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.benchmarks.harness import ROOT, spread
from tests.helpers import encode, photo_paths, write_tar
from tests.sources.store_server import SimulatedStore

SHARDS = 100
EPOCH_SHARDS = 16  # whose images are decoded, too
IMAGES = {4: 1000, 60: 200, 160: 100, 1000: 20, 5000: 4}  # kB of an image -> images in a tar


def make_images(kilobytes: int, count: int) -> list[bytes]:
    """Photographs, scaled until their JPEGs have about so many bytes."""
    found = []
    for path in list(photo_paths().values())[:count]:
        photo = Image.open(path).convert("RGB")
        scale = 1.0
        for _ in range(6):
            size = (max(int(photo.width * scale), 16), max(int(photo.height * scale), 16))
            data = encode(photo.resize(size, Image.Resampling.BILINEAR), quality=95)
            scale *= (kilobytes * 1000 / len(data)) ** 0.5
        found.append(data)
    return found


def make_shards(folder: Path, kilobytes: int) -> None:
    """Write 100 tars of images with a `.json` each."""
    images = make_images(kilobytes, 8)
    for shard in range(SHARDS):
        members = []
        for n in range(IMAGES[kilobytes]):
            key = f"{shard:03d}{n:06d}"
            members += [(f"{key}.jpg", images[n % len(images)]), (f"{key}.json", json.dumps({"n": n}).encode() * 9)]
        write_tar(folder / f"{shard:05d}.tar", members)


def child(job: dict[str, Any]) -> dict[str, float]:
    """Do one row in this process, and return its seconds."""
    import curator_dali as cd
    from curator_dali.io import links

    if job["indexing"] != "chosen":
        far = 0 if job["indexing"] == "hop" else 1 << 40
        links.Link.break_even = property(lambda _: far)  # type: ignore[method-assign, assignment]
        links.Link.is_sample_due = lambda *_: False  # type: ignore[method-assign]
        links.link_to(job["spec"]).distance = 1.0
    cache = {"cache": cd.Cache(job["cache"], limit="50GB")} if job["cache"] else {}
    begun = time.perf_counter()
    source = cd.open_source(job["spec"], **cache)
    if not job["epochs"]:
        len(source)  # waits for the indexes
    opened = time.perf_counter() - begun
    result = {"open": opened}
    if job["epochs"]:
        shuffle = cd.Shuffle(seed=1, window=4) if job["order"] == "window" else cd.Shuffle(seed=1)
        options: dict[str, Any] = {"batch_size": 64, "shuffle": shuffle, "shard": cd.Shard(*job["shard"])}
        options |= {"device": "cpu", "num_threads": 2}
        with cd.ImageLoader(source, transforms=[cd.transforms.Resize(32)], **options) as loader:
            for epoch in range(job["epochs"]):
                loader.set_epoch(epoch)
                begun, cpu = time.perf_counter(), time.process_time()
                count = sum(len(batch) for batch in loader)
                result[f"epoch{epoch}"] = time.perf_counter() - begun
                result[f"cpu{epoch}"] = time.process_time() - cpu
                result["images"] = count
    if job["reads"]:
        import numpy as np

        for number in range(job["reads"]):
            begun = time.perf_counter()
            for start in range(0, len(source), 256):
                source.read(np.arange(start, min(start + 256, len(source))))
            result[f"read{number}"] = time.perf_counter() - begun
        result["read"] = statistics.median(result[f"read{number}"] for number in range(job["reads"] > 1, job["reads"]))
    source.close()
    return result


def begin(spec: str, home: Path, **job: Any) -> subprocess.Popen[str]:
    defaults = {"indexing": "chosen", "cache": "", "epochs": 0, "reads": 0, "order": "window", "shard": (0, 1)}
    text = json.dumps({**defaults, "spec": spec, **job})
    environment = {**os.environ, "CURATOR_DALI_CACHE": str(home)}
    command = [sys.executable, "-m", "tests.benchmarks.store", "--child", text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    answer, _ = process.communicate(timeout=900)
    if process.returncode:
        raise RuntimeError(f"a row ended with {process.returncode}")
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def measure(kilobytes: int, rounds: int, folder: Path, rows: list[str]) -> None:
    shards = folder / "shards"
    make_shards(shards, kilobytes)
    total = sum(path.stat().st_size for path in shards.iterdir())
    taken: dict[str, list[float]] = {}
    sent: dict[str, list[float]] = {}

    def note(name: str, seconds: float, count: int = 0, part: float = 1.0) -> None:
        taken.setdefault(name, []).append(seconds)
        sent.setdefault(name, []).append(count / total / part)
        print(f"  {name}: {seconds:.2f} s, {count / total / part:.1%}", file=sys.stderr, flush=True)

    with SimulatedStore(shards) as store:
        spec = f"{store.url}/{{00000..{SHARDS - 1:05d}}}.tar"
        some = f"{store.url}/{{00000..{EPOCH_SHARDS - 1:05d}}}.tar"
        local = f"{shards}/{{00000..{EPOCH_SHARDS - 1:05d}}}.tar"
        share = EPOCH_SHARDS / SHARDS

        def fresh(name: str) -> Path:
            shutil.rmtree(folder / name, ignore_errors=True)
            return folder / name

        for _ in range(rounds):
            for name in [name for name in ("hop", "stream", "chosen") if "index" in rows]:
                store.reset()
                note(f"index {name}", finish(begin(spec, fresh(name), indexing=name))["open"], store.total().bytes)
            if "epoch" in rows:
                store.reset()
                found = finish(begin(some, fresh("home"), epochs=1))
                note("first epoch, with opening", found["open"] + found["epoch0"], store.total().bytes, share)
                store.reset()
                note("opening again", finish(begin(some, folder / "home"))["open"], store.total().bytes, share)
            if "cache" in rows:
                finish(begin(local, folder / "local", reads=1))
                finish(begin(some, folder / "home", cache=str(fresh("cache")), reads=1))
                store.reset()
                for order in ("window", "global"):
                    found = finish(begin(some, folder / "home", cache=str(folder / "cache"), epochs=2, order=order))
                    beside = finish(begin(local, folder / "local", epochs=2, order=order))
                    note(f"{order}: epoch of a warm cache", found["epoch1"], store.total().bytes, share)
                    note(f"{order}: epoch of local tars", beside["epoch1"])
                    # of the process, which others on the machine change less
                    note(f"{order}: CPU seconds of a warm cache", found["cpu1"])
                    note(f"{order}: CPU seconds of local tars", beside["cpu1"])
                found = finish(begin(some, folder / "home", cache=str(folder / "cache"), reads=9))
                beside = finish(begin(local, folder / "local", reads=9))
                note("reading a warm cache", found["read"], store.total().bytes, share)
                note("reading local tars", beside["read"])
                store.reset()
                cache = str(fresh("cache"))
                begun = time.perf_counter()
                ranks = [begin(some, folder / "home", cache=cache, epochs=1, shard=(rank, 2)) for rank in range(2)]
                for rank in ranks:
                    finish(rank)
                note("two ranks, one cache", time.perf_counter() - begun, store.total().bytes, share)
                fresh("cache")
    for name, seconds in taken.items():
        print(f"| {kilobytes} | {name} | {spread(seconds, 2)} | {statistics.median(sent[name]):.2%} |", flush=True)
    pairs: list[tuple[str, tuple[str, ...]]] = [("index chosen", ("index hop", "index stream"))]
    pairs.append(("reading a warm cache", ("reading local tars",)))
    orders = ("window: epoch", "window: CPU seconds", "global: epoch", "global: CPU seconds")
    pairs += [(f"{row} of a warm cache", (f"{row} of local tars",)) for row in orders]
    for name, others in pairs:
        if name in taken:
            best = min(statistics.median(taken[other]) for other in others)
            print(f"| {kilobytes} | {name} / the better of {', '.join(others)} | "
                  f"{spread([seconds / best for seconds in taken[name]], 2)} | |", flush=True)  # fmt: skip
    shutil.rmtree(shards)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*IMAGES], choices=[*IMAGES], metavar="KB")
    parser.add_argument("--rows", nargs="+", default=["index", "epoch", "cache"], choices=["index", "epoch", "cache"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where up to 5 GB are written (default: a temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(json.loads(given.child))))
    else:
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="store-") as made:
            for kb in given.sizes:
                measure(kb, given.rounds, Path(made), given.rows)

"""Time the first batch, and count the bytes of the first epoch, of tars without an index in a simulated store.

    python -m tests.benchmarks.first_batch [--kilobytes 60] [--shards 1000] [--images 200] [--epoch-shards 20]

The store takes 30 ms a request and gives 100 MB/s a connection, to 16 connections. All tars are links to one. Each row
is a loader in this process, with no kept index; "indexed" waits for all tars first, as a global shuffle does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import curator_dali as cd
from curator_dali.sources import open_source
from tests.benchmarks.store import make_images
from tests.helpers import write_tar
from tests.sources.store_server import SimulatedStore

BATCH = 64


def make_tars(folder: Path, kilobytes: int, shards: int, images: int) -> int:
    """Write a tar, and links to it; returns its bytes."""
    data = make_images(kilobytes, 8)
    members = []
    for n in range(images):
        members += [(f"{n:06d}.jpg", data[n % len(data)]), (f"{n:06d}.json", json.dumps({"n": n}).encode())]
    first = write_tar(folder / "00000.tar", members)
    for shard in range(1, shards):
        os.link(first, folder / f"{shard:05d}.tar")
    return first.stat().st_size


def measure(store: SimulatedStore, shards: int, shuffle: Any, whole: bool, indexed: bool = False) -> dict[str, float]:
    """Seconds and megabytes of the opening, of the first batch, and of all batches."""
    store.reset()
    begun = time.perf_counter()
    source = open_source(f"{store.url}/{{00000..{shards - 1:05d}}}.tar", index="none")
    opened = time.perf_counter() - begun
    if indexed:
        len(source)
    options = {"batch_size": BATCH, "device": "cpu", "transforms": [cd.transforms.Resize((64, 64))]}
    with cd.ImageLoader(source, shuffle=shuffle, **options) as loader:
        running = iter(loader)
        next(running)
        first, read = time.perf_counter() - begun, store.total().bytes
        if whole:
            for _ in running:
                pass
    row = {"open_s": opened, "first_batch_s": first, "first_batch_MB": read / 1e6}
    if whole:
        row |= {"epoch_s": time.perf_counter() - begun, "epoch_MB": store.total().bytes / 1e6}
    source.close()
    return {name: round(value, 2) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("kilobytes", 60), ("shards", 1000), ("images", 200), ("epoch-shards", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = make_tars(Path(folder), arguments.kilobytes, arguments.shards, arguments.images)
        print(f"{arguments.shards} tars of {size / 1e6:.1f} MB")
        window = cd.Shuffle(1, window=arguments.images)
        with SimulatedStore(folder) as store:
            for shuffle in (None, window):
                print(arguments.shards, "tars,", shuffle, measure(store, arguments.shards, shuffle, whole=False))
            few = arguments.epoch_shards
            for name, indexed in (("streamed", False), ("indexed", True)):
                row = measure(store, few, window, whole=True, indexed=indexed)
                print(few, "tars,", name, row, "x the data:", round(row["epoch_MB"] * 1e6 / (few * size), 3))


if __name__ == "__main__":
    main()

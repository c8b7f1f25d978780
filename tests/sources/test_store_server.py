"""The simulated store of benchmarks does what it says."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np

from curator_dali.io import Storage
from curator_dali.sources import open_source
from tests.helpers import write_tar
from tests.sources.store_server import Count, SimulatedStore


def test_requests_and_bytes_are_counted_and_paced(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB
    (tmp_path / "a b").write_bytes(data)
    with SimulatedStore(tmp_path, delay=0.05, rate=10e6, connections=2) as store:
        fs, url = fsspec.filesystem("http"), f"{store.url}/a%20b"
        begun = time.perf_counter()
        assert fs.cat_file(url, start=5, end=500_005) == data[5:500_005]
        assert time.perf_counter() - begun >= 0.05 + 0.05
        assert store.total() == Count(1, 500_000, 1)
        store.reset()
        with ThreadPoolExecutor(6) as pool:
            begun = time.perf_counter()
            found = list(pool.map(lambda n: fs.cat_file(url, start=n, end=n + 1), range(6)))
            assert time.perf_counter() - begun >= 3 * 0.05
        assert found == [data[n : n + 1] for n in range(6)]
        assert store.total() == Count(6, 6, 2)
        assert store.counts() == {"/a%20b": Count(6, 6)}


def test_sources_are_read_from_it(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}-{n}.jpg", bytes([n]) * 700) for n in range(3)])
    with SimulatedStore(tmp_path, delay=0, rate=0) as store:
        for spec in (f"{store.url}/{{0..1}}.tar", f"{store.url}/*.tar", f"{store.url}/"):
            source = open_source(spec, index="none")
            assert [bytes(image) for image in source.read(np.arange(6)).images] == [
                bytes([n]) * 700 for _ in range(2) for n in range(3)
            ]
        storage = Storage()
        assert storage.cat([(f"{store.url}/0.tar", 1 << 20, 2 << 20)]) == [b""]
        assert isinstance(storage.cat([(f"{store.url}/2.tar", 0, 5)])[0], FileNotFoundError)

"""Sources behind a cache: what is read is the same, and the store sends every byte once, to all processes together."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.errors import SourceError
from tests.helpers import crops, encode, write_tar
from tests.sources.store_server import SimulatedStore

SHARDS, EACH = 4, 12


@pytest.fixture(scope="module")
def images(photos: dict[str, NDArray[np.uint8]]) -> list[bytes]:
    return [encode(pixels) for _, pixels in crops(photos, SHARDS * EACH, shortest=64, longest=200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Path:
    root = tmp_path_factory.mktemp("store")
    for shard in range(SHARDS):
        members = []
        for n in range(shard * EACH, (shard + 1) * EACH):
            members += [(f"{n:03d}.jpg", images[n]), (f"{n:03d}.json", json.dumps({"n": n}).encode())]
        write_tar(root / f"{shard}.tar", members)
        table = pa.table({"jpg": images[shard * EACH : (shard + 1) * EACH], "n": list(range(EACH))})
        pq.write_table(table, root / f"{shard}.parquet", row_group_size=5)
    return root


@pytest.fixture
def store(folder: Path) -> Iterator[SimulatedStore]:
    with SimulatedStore(folder, delay=0, rate=0) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> cd.Cache:
    return cd.Cache(tmp_path / "cache", limit="1GB")


def total(folder: Path, ending: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"*.{ending}"))


def load(spec: Any, **options: Any) -> list[tuple[str, Any, int]]:
    """Ids, metadata and a sum of the pixels of all images, in their order."""
    with cd.ImageLoader(spec, batch_size=5, device="cpu", num_threads=1, **options) as loader:
        found = [
            (item.image_id, dict(item.metadata), int(np.asarray(image).sum()))
            for batch in loader
            for item, image in zip(batch.data, batch.images, strict=True)
        ]
        assert list(loader.errors) == []
    return found


ORDERS = [None, cd.Shuffle(3), cd.Shuffle(3, window=2)]


@pytest.mark.parametrize("shuffle", ORDERS, ids=["in order", "global", "window"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_second_epoch_asks_for_nothing(
    store: SimulatedStore, cache: cd.Cache, folder: Path, kind: str, shuffle: Any
) -> None:
    expected = load(f"{folder}/*.{kind}", shuffle=shuffle)
    spec = f"{store.url}/{{0..{SHARDS - 1}}}.{kind}"
    with cd.ImageLoader(
        spec, batch_size=5, device="cpu", num_threads=1, shuffle=shuffle, cache=cache
    ) as loader:  # a pass that is begun, so that reading ahead is part of it
        assert sum(len(batch) for batch in loader) == SHARDS * EACH
    assert store.total().bytes <= 1.05 * total(folder, kind)
    store.reset()
    assert [item[2] for item in load(spec, shuffle=shuffle, cache=cache)] == [item[2] for item in expected]
    assert store.total().bytes == 0


def test_a_source_is_pickled_with_its_cache(store: SimulatedStore, cache: cd.Cache, images: list[bytes]) -> None:
    source = cd.open_source(f"{store.url}/{{0..{SHARDS - 1}}}.tar", cache=cache)
    order = np.arange(SHARDS * EACH)[::-1].copy()
    source.read(order)
    store.reset()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_all, (pickle.dumps(source), order)) == [images[n] for n in order]
    assert store.total().bytes == 0


def read_all(pickled: bytes, order: NDArray[np.int64]) -> list[bytes]:
    return [bytes(image) for image in pickle.loads(pickled).read(order).images]


def test_workers_that_are_forked_read_from_it(store: SimulatedStore, cache: cd.Cache, images: list[bytes]) -> None:
    import torch

    source = cd.open_source(f"{store.url}/{{0..{SHARDS - 1}}}.tar", cache=cache)
    source.read(np.arange(len(source)))

    class Sizes(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> int:
            return len(source.read(np.array([index])).images[0])

    store.reset()
    workers = torch.utils.data.DataLoader(Sizes(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert [int(size) for batch in workers for size in batch] == list(map(len, images))
    assert store.total().bytes == 0


def run_rank(spec: str, cache: cd.Cache, rank: int, gate: Any, counts: Any) -> None:
    gate.wait()
    loader = cd.ImageLoader(
        spec, batch_size=4, device="cpu", num_threads=1, shuffle=cd.Shuffle(1), shard=cd.Shard(rank, 2), cache=cache
    )
    with loader:
        for epoch in range(2):
            loader.set_epoch(epoch)
            counts[rank] += sum(len(batch) for batch in loader)


def test_two_ranks_download_each_shard_once(store: SimulatedStore, cache: cd.Cache, folder: Path) -> None:
    store.change(delay=0.03)
    context = multiprocessing.get_context("spawn")
    gate, counts = context.Barrier(2), context.Array("i", 2)
    spec = f"{store.url}/{{0..{SHARDS - 1}}}.tar"
    ranks = [context.Process(target=run_rank, args=(spec, cache, rank, gate, counts)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(100)
        assert rank.exitcode == 0
    assert sum(counts) == 2 * SHARDS * EACH
    assert store.total().bytes <= 1.05 * total(folder, "tar")


def test_a_resumed_loader_reads_on_from_the_cache(store: SimulatedStore, cache: cd.Cache, folder: Path) -> None:
    spec = f"{store.url}/{{0..{SHARDS - 1}}}.tar"
    options: dict[str, Any] = {"batch_size": 5, "device": "cpu", "num_threads": 1, "shuffle": cd.Shuffle(2, window=2)}
    whole = [item.image_id for batch in cd.ImageLoader(f"{folder}/*.tar", **options) for item in batch.data]
    with cd.ImageLoader(spec, cache=cache, **options) as loader:
        seen = []
        for batch in loader:
            seen += [item.image_id for item in batch.data]
            state = loader.state_dict()
            if len(seen) >= 20:
                break
    with cd.ImageLoader(spec, cache=cache, **options) as loader:
        loader.load_state_dict(state)
        seen += [item.image_id for batch in loader for item in batch.data]
    assert seen == whole
    assert store.total().bytes <= 1.05 * total(folder, "tar")


def test_curate_reads_once(store: SimulatedStore, cache: cd.Cache, folder: Path, tmp_path: Path) -> None:
    spec = f"{store.url}/{{0..{SHARDS - 1}}}.tar"
    for out in ("one", "two"):
        report = cd.curate(
            spec, tmp_path / out, stages=[cd.Quality()], device="cpu", num_threads=1, html=False, cache=cache
        )
        assert report.kept == SHARDS * EACH
    assert store.total().bytes <= 1.1 * total(folder, "tar")


def test_a_source_that_is_open_takes_no_cache(cache: cd.Cache, folder: Path) -> None:
    source = cd.open_source(f"{folder}/*.tar")
    with pytest.raises(SourceError, match=r"cache= is for paths and URLs: give it to open_source\(\)"):
        cd.ImageLoader(source, device="cpu", cache=cache)


def test_local_files_are_read_as_they_are(cache: cd.Cache, folder: Path) -> None:
    assert load(f"{folder}/*.tar", cache=cache) == load(f"{folder}/*.tar")
    assert not list(Path(cache.folder).rglob("*.blocks"))


@pytest.mark.parametrize("limit", ["much", 5])
def test_a_wrong_limit_is_refused_before_anything_is_opened(limit: Any) -> None:
    with pytest.raises(ValueError, match="allowed: bytes of at least"):
        cd.ImageLoader("nowhere/*.tar", device="cpu", cache=cd.Cache("x", limit))


def test_the_command_line(
    store: SimulatedStore, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, where = f"{store.url}/{{0..{SHARDS - 1}}}.tar", str(tmp_path / "cache")
    for _ in range(2):
        assert main(["verify", spec, "--device", "cpu", "--cache", where, "--cache-limit", "1GB"]) == 0
    assert store.total().bytes <= 1.05 * total(folder, "tar")
    capsys.readouterr()
    assert main(["cache", "info", where, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["files"], about["limit"]) == (SHARDS, 10**9)
    assert about["hits"] > 0
    assert main(["cache", "info", where]) == 0
    assert "of at most 1.0 GB" in capsys.readouterr().out
    assert main(["cache", "clear", where]) == 0
    assert f"{SHARDS} files" in capsys.readouterr().out
    assert not list(Path(where).rglob("*.blocks"))
    for arguments, message in [
        (["verify", spec, "--cache", where], "--cache DIR and --cache-limit SIZE belong together"),
        (["verify", spec, "--cache", where, "--cache-limit", "big"], "limit is 'big'; allowed"),
        (["cache", "clear", str(tmp_path)], "is no folder of a cache"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err

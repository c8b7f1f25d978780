"""Parquet files that are opened by the index of their data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator_dali as cd
from curator_dali.sources import ParquetSource, Source
from tests.helpers import load_photos, photo_samples
from tests.sources.web_server import Server

FOLDER = ".curator_dali_index"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    samples = photo_samples(load_photos(), 30)
    samples[4] = ("bad", {**samples[4][1], "jpg": b"hello"})
    for number in range(3):
        rows: list[Any] = samples[10 * number : 10 * number + 10]
        table = pa.table(
            {
                "key": [key for key, _ in rows],
                "jpg": [members["jpg"] for _, members in rows],
                "caption": [members["txt"].decode() for _, members in rows],
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=4)
    return folder


def is_indexed(source: Source) -> bool:
    return isinstance(source, ParquetSource) and source._indexed is not None


def check_same(found: Source, expected: Source) -> None:
    assert found.fingerprint == expected.fingerprint
    assert found.shard_records == expected.shard_records
    assert found.shard_sizes.tolist() == expected.shard_sizes.tolist()
    assert found.fields == expected.fields
    order = np.random.default_rng(1).permutation(len(expected))
    assert found.read_ids(order).to_pylist() == expected.read_ids(order).to_pylist()
    one, other = found.read(order), expected.read(order)
    assert one.errors == other.errors
    assert [bytes(image) for image in one.images] == [bytes(image) for image in other.images]
    assert [item.metadata for item in one.objects] == [item.metadata for item in other.objects]


def test_the_same_rows_and_their_headers(files: Path) -> None:
    expected = cd.open_source(str(files))
    made = cd.prepare(str(files))
    assert (made.files, made.samples, made.refused) == (3, 30, {"not an image": 1})
    assert cd.prepare(str(files)).indexed == 0
    source = cd.open_source(str(files))
    assert is_indexed(source)
    check_same(source, expected)
    order = np.arange(30)[::-1]
    headers = source.headers(order)
    assert np.flatnonzero(headers["codec"] == 0).tolist() == [25]
    images = source.read(order).images
    assert source.image_sizes(order).tolist() == list(map(len, images))
    rows = pa.ipc.open_file(min((files / FOLDER).glob("samples-*"))).read_all().to_pylist()
    assert {row["key"] for row in rows} <= {*(f"{n:06d}" for n in range(30)), "bad"}
    learnt = headers[:1].copy()
    learnt["width"] = 7
    source.learn(order[:1], learnt)
    assert source.headers(order)["width"].tolist() == [7, *headers["width"][1:].tolist()]


def test_remote_files_are_opened_by_one_request(files: Path, server: Server) -> None:
    cd.prepare(str(files))
    for file in files.rglob("*"):
        if file.is_file():
            server.files[f"/p/{file.relative_to(files)}"] = file.read_bytes()
    for spec in (f"{server.url}/p/", f"{server.url}/p/*.parquet", f"{server.url}/p/{{0..2}}.parquet"):
        server.requests.clear()
        source = cd.open_source(spec)
        assert [text for _, text in server.requests] == [f"/p/{FOLDER}/files.arrow None"]
        check_same(source, cd.open_source([f"{server.url}/p/{n}.parquet" for n in range(3)], index="none"))
    assert source.headers(np.array([1]))["codec"].tolist() == [1]


def test_a_file_that_changed_is_read(files: Path) -> None:
    cd.prepare(str(files))
    table = pq.read_table(files / "1.parquet").slice(0, 7)
    pq.write_table(table, files / "1.parquet", row_group_size=4)
    source = cd.open_source(str(files))
    check_same(source, cd.open_source(str(files), index="none"))
    assert source.headers(np.arange(27))["codec"].tolist() == [1] * 4 + [0] + [1] * 5 + [0] * 7 + [1] * 10
    assert cd.prepare(str(files)).indexed == 1
    assert cd.open_source(str(files)).headers(np.array([10]))["codec"].tolist() == [1]


def test_another_column_has_other_headers(files: Path) -> None:
    cd.prepare(str(files))
    source = ParquetSource(sorted(files.glob("*.parquet")), image_column="jpg")
    assert source.headers(np.arange(3))["codec"].tolist() == [1, 1, 1]
    two = files / "two"
    two.mkdir()
    table = pq.read_table(files / "0.parquet")
    pq.write_table(table.append_column("png", table.column("jpg")), two / "a.parquet")
    cd.prepare(ParquetSource(two / "a.parquet", image_column="png"))
    assert cd.open_source(str(two), image_column="png").headers(np.arange(2))["codec"].tolist() == [1, 1]
    assert cd.open_source(str(two), image_column="jpg").headers(np.arange(2))["codec"].tolist() == [0, 0]

"""Rows to Parquet and back, by everybody who reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali import __version__
from curator_dali.errors import OutputError
from curator_dali.outputs import RowFiles, RowSchema
from curator_dali.outputs.parquet import ParquetWriter
from curator_dali.outputs.row_files import read_embeddings

COLUMNS = {
    "aesthetic_score": "float32",
    "serial": "uint64",
    "content_hash": "string",
    "blurred": "bool",
    "group": "int64",
    "caption": "string",
}
SCHEMA = RowSchema(COLUMNS, embedding_dim=8, embedding_dtype="float16")


def rows(start: int, stop: int) -> tuple[dict[str, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows that depend on nothing but their index; every fourth failed, and has no scores and no embedding."""
    numbers = np.arange(start, stop)
    good = numbers % 4 != 3
    statuses = np.where(good, np.where(numbers % 3 == 0, "dropped", "kept"), "failed")
    columns: dict[str, Any] = {
        "image_id": [f"{n:06d}" for n in numbers],
        "image_path": [f"tar://{n:06d}.jpg::/d ä/0.tar" for n in numbers],
        "index": numbers,
        "width": np.where(good, 640, 0).astype(np.int32),
        "status": statuses,
        "stage": [None if status == "kept" else "quality" for status in statuses],
        "aesthetic_score": np.where(good, numbers / 7, math.nan),
        "serial": [2**64 - 1 - int(n) if ok else None for n, ok in zip(numbers, good, strict=True)],
        "content_hash": [f"{int(n):032x}" if ok else None for n, ok in zip(numbers, good, strict=True)],
        "blurred": numbers % 2 == 0,
        "caption": [("ünï", "lone \ud800", "bytes \udcff", None)[n % 4] for n in numbers],
    }
    embeddings = (numbers[:, None] % 100 + np.arange(8)).astype(np.float32)
    embeddings[~good] = math.nan
    return columns, embeddings, good


def write(path: Path | str, count: int, step: int, start: int = 0, **options: Any) -> None:
    with ParquetWriter(str(path), SCHEMA, lineage={"model": {"sha256": "ab"}}, **options) as writer:
        for at in range(start, start + count, step):
            writer.write(*rows(at, min(start + count, at + step)))


def test_a_file_is_what_its_schema_says(tmp_path: Path) -> None:
    path = tmp_path / "öut put.parquet"
    write(path, 1000, 64, row_group_rows=300)
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(SCHEMA.to_arrow())
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [300, 300, 300, 100]
    about = json.loads(file.schema_arrow.metadata[b"curator_dali"])
    assert about == {"format": 1, "version": __version__, "lineage": {"model": {"sha256": "ab"}}}
    column = file.metadata.row_group(1).column(2)
    assert (column.path_in_schema, column.compression) == ("index", "ZSTD")
    assert (column.statistics.min, column.statistics.max) == (300, 599)
    table = file.read()
    columns, embeddings, good = rows(0, 1000)
    assert table["index"].to_pylist() == list(range(1000))
    assert table["serial"].to_pylist() == columns["serial"]
    assert table["content_hash"].to_pylist() == columns["content_hash"]
    assert table["caption"].to_pylist()[:4] == ["ünï", "lone \\ud800", "bytes \\xff", None]
    assert table["height"].null_count == table["reason"].null_count == table["group"].null_count == 1000
    assert table["aesthetic_score"].is_valid().to_pylist() == good.tolist()
    assert table["embedding"].is_valid().to_pylist() == good.tolist()
    assert table["embedding"].to_pylist()[:3] == embeddings[:3].tolist()


@settings(deadline=None)  # files are written
@given(st.integers(1, 200), st.integers(1, 64))
def test_a_file_does_not_depend_on_how_its_rows_came(
    tmp_path_factory: pytest.TempPathFactory, step: int, more: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write(folder / "a.parquet", 200, step, row_group_rows=64)
    write(folder / "b.parquet", 200, more, row_group_rows=64)
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


def test_row_groups_are_bounded_in_bytes(tmp_path: Path) -> None:
    schema = RowSchema(embedding_dim=4096)
    with ParquetWriter(str(tmp_path / "x.parquet"), schema) as writer:
        for start in range(0, 2500, 500):
            names = [str(n) for n in range(start, start + 500)]
            columns = {"image_id": names, "image_path": names, "index": range(500), "status": ["kept"] * 500}
            writer.write(columns, np.zeros((500, 4096), np.float32))
    file = pq.ParquetFile(tmp_path / "x.parquet")
    column = file.metadata.row_group(0).column(file.metadata.num_columns - 1)
    assert "BYTE_STREAM_SPLIT" in column.encodings
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert max(sizes) * 4096 * 4 <= 33 << 20
    assert sum(sizes) == 2500


def test_hugging_face_pandas_and_pyarrow_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets  # only now, as it asks for the variable when it is imported

    pandas = pytest.importorskip("pandas")
    for part in range(2):
        write(tmp_path / f"{part}.parquet", 20, 20, start=20 * part)
    files = [str(tmp_path / f"{part}.parquet") for part in range(2)]
    _, embeddings, good = rows(0, 40)
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["index"][:] == list(range(40))
    assert loaded[1]["embedding"] == embeddings[1].tolist()
    assert loaded[3]["embedding"] is None
    assert loaded.features["embedding"].length == 8
    frame = pandas.concat([pandas.read_parquet(file) for file in files])
    assert frame["status"].value_counts()["failed"] == 10
    assert frame["embedding"].iloc[1].tolist() == embeddings[1].tolist()
    dataset = pyarrow.dataset.dataset(files)
    table = dataset.to_table(filter=pyarrow.dataset.field("aesthetic_score") > 5, columns=["index"])
    assert table["index"].to_pylist() == [n for n in range(40) if good[n] and n / 7 > 5]


def test_rows_of_a_folder(tmp_path: Path) -> None:
    for part in range(3):
        write(tmp_path / f"{part}.parquet", 50, 50, start=50 * part, row_group_rows=16)
    files = RowFiles(str(tmp_path))
    assert len(files) == 150
    assert files.lineage == {"model": {"sha256": "ab"}}
    assert files.embedding_dim == 8
    columns, embeddings, good = rows(0, 150)
    found = files.columns(["index", "serial", "aesthetic_score", "status", "blurred"])
    assert found["index"].tolist() == list(range(150))
    assert found["serial"].tolist() == columns["serial"]  # exact: a hash as a float would be another one
    assert np.array_equal(found["aesthetic_score"], columns["aesthetic_score"].astype(np.float32), equal_nan=True)
    assert found["status"].tolist() == columns["status"].tolist()
    pieces = list(files.embeddings(rows=7))
    assert max(len(piece) for _, piece in pieces) <= 7
    assert np.concatenate([numbers for numbers, _ in pieces]).tolist() == np.flatnonzero(good).tolist()
    assert np.array_equal(np.concatenate([piece for _, piece in pieces]), embeddings[good])
    assert {piece.dtype.name for _, piece in files.embeddings()} == {"float32"}
    assert sum(len(batch) for batch in files.batches(rows=10)) == 150


def test_embeddings_of_a_slice_that_is_all_null(tmp_path: Path) -> None:
    with ParquetWriter(str(tmp_path / "x.parquet"), SCHEMA, row_group_rows=4) as writer:
        columns, embeddings, _ = rows(0, 12)
        writer.write(columns, embeddings, np.arange(12) >= 8)
        columns, _, _ = rows(12, 13)
        writer.write(columns)
    pieces = list(RowFiles(str(tmp_path / "x.parquet")).embeddings(rows=4))
    assert [numbers.tolist() for numbers, _ in pieces] == [[], [], [8, 9, 10, 11], []]
    assert [piece.shape for _, piece in pieces] == [(0, 8), (0, 8), (4, 8), (0, 8)]


def test_embeddings_of_some_rows_of_a_file(tmp_path: Path) -> None:
    url = str(tmp_path / "x.parquet")
    write(url, 100, 13, row_group_rows=16)
    _, embeddings, good = rows(0, 100)
    for wanted in (np.flatnonzero(good), np.array([40, 41, 77, 98]), np.arange(16, 19), np.empty(0, np.int64)):
        found = read_embeddings(url, wanted)
        assert found.dtype == np.float32
        assert np.array_equal(found, embeddings[wanted])
    with pytest.raises(OutputError, match="1 of the rows that are wanted have no embedding"):
        read_embeddings(url, np.array([42, 43]))


def test_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", 0, 1)
    files = RowFiles(str(tmp_path))
    assert len(files) == 0
    assert files.columns(["index", "status"])["status"].tolist() == []
    assert sum(len(numbers) for numbers, _ in files.embeddings()) == 0
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(OutputError, match="has no rows"):
            RowFiles(str(nothing))


def test_remote() -> None:
    url = "memory://rows/öut put/x.parquet"
    write(url, 40, 7)
    for found in (RowFiles(url), RowFiles("memory://rows/öut put")):
        assert found.columns(["index"])["index"].tolist() == list(range(40))
        assert sum(len(numbers) for numbers, _ in found.embeddings()) == 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nope": [1]}, r"has no columns \['nope'\]"),
        ({"width": [1, 2]}, "column 'width' has 2 values for 1 rows"),
        ({"aesthetic_score": ["high"]}, "column 'aesthetic_score' is of type float"),
        ({"blurred": ["no"]}, "column 'blurred' is of type bool"),
        ({"serial": [-1]}, "column 'serial' is of type uint64"),
        ({"status": ["lost"]}, "must be one of kept, dropped, failed, not 'lost'"),
        ({"index": None}, r"rows need the columns \['index'\]"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    columns, embeddings, _ = rows(0, 1)
    with ParquetWriter(str(tmp_path / "x.parquet"), SCHEMA) as writer:
        with pytest.raises(ValueError, match=words):
            writer.write(
                {name: values for name, values in (columns | change).items() if values is not None}, embeddings
            )
        writer.write(columns, embeddings)
    assert len(RowFiles(str(tmp_path))) == 1


def test_embeddings_that_do_not_fit(tmp_path: Path) -> None:
    columns, embeddings, _ = rows(0, 2)
    writer = ParquetWriter(str(tmp_path / "x.parquet"), SCHEMA)
    with pytest.raises(ValueError, match=r"must be of shape \(2, 8\), not \(2, 4\)"):
        writer.write(columns, embeddings[:, :4])
    with ParquetWriter(str(tmp_path / "y.parquet"), RowSchema(COLUMNS)) as writer:
        with pytest.raises(ValueError, match="has no embeddings"):
            writer.write(columns, embeddings)
        writer.write(columns)
    with pytest.raises(OutputError, match="no embeddings: curate again"):
        next(RowFiles(str(tmp_path / "y.parquet")).embeddings())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": {"status": "string"}}, "cannot be named 'status'"),
        ({"columns": {"embedding": "float32"}}, "cannot be named 'embedding'"),
        ({"columns": {"x": "float8"}}, r"one of bool, .*string, not 'float8'"),
        ({"columns": {"x": "list<string>"}}, "not 'list<string>'"),
        ({"embedding_dim": -1}, "embeddings must be"),
        ({"embedding_dim": 8, "embedding_dtype": "int8"}, "embeddings must be float16 or float32"),
    ],
)
def test_schemas_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RowSchema(**options)


def test_outputs_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(OutputError, match=r"x\.parquet is no Parquet file, or damaged"):
        RowFiles(str(path))
    pq.write_table(pa.table({"index": [1]}), path)
    with pytest.raises(OutputError, match="was not written by a curation"):
        RowFiles(str(path))
    about = {b"curator_dali": b'{"format": 99, "version": "9.0", "lineage": {}}'}
    pq.write_table(pa.table({"index": [1]}).replace_schema_metadata(about), path)
    with pytest.raises(OutputError, match=r"format 99 by curator_dali 9\.0; this version reads format 1"):
        RowFiles(str(path))
    write(path, 10, 10)
    with pytest.raises(OutputError, match=r"has no columns \['nope'\]; it has image_id, .*embedding"):
        next(RowFiles(str(path)).batches(["index", "nope"]))
    with ParquetWriter(str(tmp_path / "y.parquet"), RowSchema()) as writer:
        writer.write(
            {name: [1] if name == "index" else ["kept"] for name in ("image_id", "image_path", "index", "status")}
        )
    with pytest.raises(OutputError, match=r"y\.parquet has other columns than"):
        list(RowFiles(str(tmp_path)).batches(["index"]))


def test_a_damaged_page_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, 1000, 1000)
    data = bytearray(path.read_bytes())
    data[1000:1400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"x\.parquet is damaged"):
        list(RowFiles(str(path)).batches())


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    columns, embeddings, _ = rows(0, 100)
    writer = ParquetWriter(str(tmp_path / "x.parquet"), SCHEMA, row_group_rows=10)
    writer.write(columns, embeddings)
    writer.discard()
    writer.discard()
    del writer
    assert list(tmp_path.iterdir()) == []

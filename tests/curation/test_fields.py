"""Fields of the metadata as columns of an output: what a column cannot hold exactly is in the column `metadata`."""

from __future__ import annotations

import datetime as dt
import json
import math
import pickle
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.curation import read_fields
from curator_dali.curation.config import Settings, read_config
from curator_dali.curation.fields import infer_types, make_fields
from curator_dali.errors import OutputError, StageError
from curator_dali.io import Written
from curator_dali.outputs import FieldColumns, Manifest, RowFiles, RowSchema
from curator_dali.outputs.parquet import ParquetWriter
from curator_dali.sources import MemorySource, ParquetSource, is_same, open_source
from tests import helpers
from tests.curation.helpers import FirstOfItsLabel, content, read_rows

OPTIONS: dict[str, Any] = {"device": "cpu", "html": False, "tars": False, "part_size": 100}


@pytest.fixture(scope="module")
def image(photos: dict[str, NDArray[np.uint8]]) -> bytes:
    return helpers.encode(photos["chelsea"][:16, :16])


def read_back(out: Path) -> list[dict[str, Any]]:
    return [fields for file in sorted(out.glob("*.parquet")) for fields in read_fields(pq.read_table(file))]


def metadata_of(source: Any) -> list[dict[str, Any]]:
    opened = open_source(source)
    return [dict(item.metadata) for item in opened.read(np.arange(len(opened))).objects]


def write(path: Path, image: bytes, values: list[dict[str, Any]]) -> str:
    members = []
    for number, fields in enumerate(values):
        members += [(f"{number:05d}.jpg", image), (f"{number:05d}.json", json.dumps(fields).encode())]
    return str(helpers.write_tar(path, members))


def test_columns_of_a_tar(image: bytes, tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"n": 1, "text": "a", "tags": ["x"], "mixed": 0.5},
        {"n": 2**70, "text": 5, "mixed": 1},
        {"n": None, "text": "", "tags": [], "late": [{"a": 1}]},
        {"width": "wide", "status": "new", "metadata": {"m": 1}, "": "no name"},
        {},
    ]
    path = write(tmp_path / "a.tar", image, values)
    cd.curate(path, tmp_path / "out", stages=[], metadata=True, **OPTIONS)
    schema = RowFiles(str(tmp_path / "out")).schema
    kinds = {name: str(schema.field(name).type) for name in ("n", "text", "mixed", "metadata")}
    assert kinds == {"n": "int64", "text": "string", "mixed": "double", "metadata": "string"}
    rows = read_rows(tmp_path / "out")
    assert [row["mixed"] for row in rows] == [0.5, 1.0, None, None, None]
    assert json.loads(rows[1]["metadata"]) == {"n": 2**70, "text": 5, "mixed": 1}
    assert json.loads(rows[3]["metadata"]) == values[3]
    assert rows[4]["metadata"] is None
    assert [row["status"] for row in rows] == ["kept"] * 5
    assert read_back(tmp_path / "out") == values


def test_columns_of_parquet_keep_their_types(image: bytes, tmp_path: Path) -> None:
    day = dt.datetime(2024, 5, 1, 12, 30, tzinfo=dt.timezone.utc)
    box = pa.struct([("x", pa.int8()), ("y", pa.string())])
    columns: dict[str, Any] = {
        "tags": pa.array([["a", None], None, []], pa.list_(pa.string())),
        "box": pa.array([{"x": 1, "y": None}, None, {"x": 2, "y": "b"}], box),
        "pairs": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        "taken": pa.array([day, None, day], pa.timestamp("us", "Europe/Berlin")),
        "cost": pa.array([Decimal("1.50"), None, Decimal("-0.01")], pa.decimal128(9, 2)),
        "small": pa.array([1, None, -1], pa.int8()),
        "big": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "ratio": pa.array([math.nan, None, math.inf], pa.float32()),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "phash": pa.array([1, None, 2], pa.uint64()),
        "nothing": pa.nulls(3),
    }  # fmt: skip
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"key": ["a", "b", "c"], "jpg": [image, b"broken", image], **columns}), path)
    cd.curate(str(path), tmp_path / "out", stages=[cd.Filter("image_id", equals="a")], metadata=True, **OPTIONS)
    table = pq.read_table(next((tmp_path / "out").glob("*.parquet")))
    for name, column in columns.items():
        if name != "nothing":
            wanted = pa.string() if name == "kind" else column.type
            assert table.schema.field(name).type == wanted
            assert is_same(table[name].to_pylist(), column.to_pylist())
    assert table["status"].to_pylist() == ["kept", "failed", "dropped"]
    assert is_same(read_back(tmp_path / "out"), metadata_of(str(path)))
    assert [RowFiles(str(tmp_path / "out")).columns(["phash"])["phash"].tolist()] == [[1, None, 2]]
    report = cd.Report.load(tmp_path / "out")
    assert report.kept().load().columns["tags"].tolist() == [["a", None]]
    assert report.kept().to_table()["box"].to_pylist() == [{"x": 1, "y": None}]
    assert Path(cd.write_report(tmp_path / "out")).stat().st_size > 0


def test_files_with_different_columns(image: bytes, tmp_path: Path) -> None:
    """What a file does not have is told from null."""
    pq.write_table(pa.table({"jpg": [image] * 2, "a": [1, None]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"jpg": [image] * 2, "a": [0.5, None], "b": ["x", None]}), tmp_path / "2.parquet")
    source = ParquetSource([str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")])
    assert source.arrow_fields == {"a": pa.float64(), "b": pa.string()}
    cd.curate(source, tmp_path / "out", stages=[], metadata=["a", "b"], **OPTIONS)
    assert (
        read_back(tmp_path / "out")
        == metadata_of(source)
        == [{"a": 1}, {"a": None}, {"a": 0.5, "b": "x"}, {"a": None, "b": None}]
    )
    assert type(read_back(tmp_path / "out")[0]["a"]) is int
    mixture = cd.Mixture({"x": source, "y": cd.Subset(source, [3])})
    cd.curate(mixture, tmp_path / "mixed", stages=[], metadata=True, **OPTIONS)
    assert read_back(tmp_path / "mixed") == metadata_of(mixture)


def test_what_was_named(image: bytes, tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [{"caption": "a", "label": 3, "likes": 5, "other": n} for n in range(3)]
    values[1] |= {"caption": 7, "likes": 2**53 + 1}
    values[2] |= {"caption": None, "likes": "many"}
    path = write(tmp_path / "a.tar", image, values)
    stages: list[Any] = [cd.Filter("likes", min=1)]
    cd.curate(path, tmp_path / "out", stages=stages, metadata=["likes", "caption"], **OPTIONS)
    rows = read_rows(tmp_path / "out")
    assert [(row["caption"], row["likes"]) for row in rows] == [("a", 5.0), (None, float(2**53)), (None, None)]
    assert {"label", "other"}.isdisjoint(rows[0])
    found = read_back(tmp_path / "out")
    assert found == [{name: fields[name] for name in ("likes", "caption")} for fields in values]
    for given in (["caption", "likes", "caption"], ("likes", "caption")):  # the same fields
        assert cd.curate(path, tmp_path / "out", stages=stages, metadata=given, **OPTIONS).earlier == 3
    with pytest.raises(OutputError, match=r"settings\.metadata"):
        cd.curate(path, tmp_path / "out", stages=stages, metadata=True, **OPTIONS)
    with pytest.raises(StageError, match=r"'captoin', which none of the samples looked at has; did you mean 'caption'"):
        cd.curate(path, tmp_path / "new", stages=stages, metadata=["captoin"], **OPTIONS)
    for wrong in ("caption", [1], 5):
        with pytest.raises(ValueError, match=r"metadata (is|names) .*; allowed: (fields to keep|names of fields)"):
            cd.curate(path, tmp_path / "new", stages=stages, metadata=wrong, **OPTIONS)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    cd.curate(MemorySource([]), tmp_path / "none", stages=[], metadata=["caption"], **OPTIONS)
    with pytest.raises(StageError, match="a stage has a column 'metadata'"):
        cd.curate(MemorySource([image], [{"metadata": 1}]), tmp_path / "new", stages=[cd.Filter("metadata", min=0)],
                  metadata=True, **OPTIONS)  # fmt: skip


def test_two_passes_and_other_thresholds(image: bytes, tmp_path: Path) -> None:
    values = [{"label": n % 3, "tags": ["x"] * (n % 2), "day": f"2024-01-{n % 28 + 1:02}", "n": n} for n in range(600)]
    path = write(tmp_path / "a.tar", image, values)  # type: ignore[arg-type]
    options = {**OPTIONS, "part_size": 500, "metadata": True}
    cd.curate(path, tmp_path / "out", stages=[FirstOfItsLabel()], **options)
    assert read_back(tmp_path / "out") == values
    assert sum(row["status"] == "kept" for row in read_rows(tmp_path / "out")) == 3
    new = tmp_path / "new"
    stages = [cd.Filter("n", max=99), cd.Filter("day", equals="2024-01-05"), cd.Filter("tags", equals="[]")]
    report = cd.rethreshold(tmp_path / "out", new, stages=stages, tars=False, html=True)
    assert [row["n"] for row in read_rows(new) if row["status"] == "kept"] == [4, 32, 60, 88]
    assert report.kept == 4
    assert read_back(new) == values
    assert RowFiles(str(new)).fields == RowFiles(str(tmp_path / "out")).fields
    cd.rethreshold(new, tmp_path / "last", stages=[FirstOfItsLabel("label")], tars=False, html=False)
    assert read_back(tmp_path / "last") == values


def test_a_run_goes_on_with_the_same_columns(image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"n": n, "x": [n] if n % 2 else "text"} for n in range(300)]
    path = write(tmp_path / "a.tar", image, values)  # type: ignore[arg-type]
    cd.curate(path, tmp_path / "whole", stages=[], metadata=True, **OPTIONS)

    def stop(done: int) -> None:
        if done and len(list((tmp_path / "out").glob("*.parquet"))):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cd.curate(path, tmp_path / "out", stages=[], metadata=True, batch_size=20, progress=stop, **OPTIONS)
    assert 0 < len(list((tmp_path / "out").glob("*.parquet"))) < 3
    cd.curate(path, tmp_path / "out", stages=[], metadata=True, batch_size=7, **OPTIONS)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert read_back(tmp_path / "out") == values


def test_row_groups_are_bounded_by_the_bytes_of_fields(tmp_path: Path) -> None:
    fields = FieldColumns({"caption": pa.string(), "tags": pa.list_(pa.string())}, rest=True)
    files = []
    for step in (1, 30):
        files.append(tmp_path / f"{step}.parquet")
        with ParquetWriter(str(files[-1]), RowSchema(fields=fields)) as writer:
            for start in range(0, 90, step):
                names = [str(n) for n in range(start, start + step)]
                columns = {
                    "image_id": names,
                    "image_path": names,
                    "index": range(start, start + step),
                    "status": ["kept"] * step,
                }
                metadata: list[dict[str, Any]] = [
                    {"caption": "x" * (1 << 20), "tags": ["y" * 1000], "n": n} for n in names
                ]
                writer.write(columns, fields=make_fields(metadata, {}, fields))
    assert files[0].read_bytes() == files[1].read_bytes()
    file = pq.ParquetFile(files[0])
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [32, 32, 26]


def test_types_that_are_inferred() -> None:
    first = {"a": 1, "b": None, "c": [], "d": {}, "e": 1 << 80, "f": object()}
    found = {name: str(kind) for name, kind in infer_types([first, {"a": 0.5, "c": ["x"]}]).items()}
    assert found == {"a": "double", "b": "null", "c": "list<item: string>", "d": "struct<>"}
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    assert infer_types([{"deep": deep, **{str(n): n for n in range(3000)}}] * 2).keys() < {str(n) for n in range(1001)}
    empty = make_fields([], {}, FieldColumns({"a": pa.int64()}, rest=True))
    assert (empty.num_rows, empty.schema.names) == (0, ["a", "metadata"])


def test_in_files_and_in_pickles(tmp_path: Path) -> None:
    for text, meant in {"true": True, '["a", "b"]': ["a", "b"], '{a = "int64"}': {"a": "int64"}}.items():
        (tmp_path / "a.toml").write_text(f"metadata = {text}\n")
        assert Settings(**read_config(tmp_path / "a.toml")).metadata == meant
    schema = RowSchema({"a": "int64"}, fields=FieldColumns({"b": pa.list_(pa.int8())}, frozenset("a"), True, True))
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert FieldColumns.from_arrow(schema.to_arrow()) == schema.fields
    with pytest.raises(ValueError, match="a field of the metadata cannot be the column 'width'"):
        RowSchema(fields=FieldColumns({"width": pa.int8()}))


def test_a_field_that_is_the_score_of_a_later_decision(image: bytes, tmp_path: Path) -> None:
    columns = {"rank": [1, 3, 2], "cost": pa.array([Decimal("2.5"), Decimal("0.5"), Decimal("9.5")])}
    pq.write_table(pa.table({"jpg": [image] * 3, **columns}), tmp_path / "a.parquet")
    out = tmp_path / "out"
    cd.curate(str(tmp_path / "a.parquet"), out, stages=[cd.Deduplicate("bytes")], metadata=["rank", "cost"], **OPTIONS)
    for score, kept in (("rank", 1), ("cost", 2)):
        stages = [cd.Deduplicate("bytes", keep="best", score=score)]
        cd.rethreshold(out, tmp_path / score, stages=stages, tars=False, html=False)
        assert [row["index"] for row in read_rows(tmp_path / score) if row["status"] == "kept"] == [kept]
        assert pq.read_schema(next((tmp_path / score).glob("*.parquet"))).field("cost").type == pa.decimal128(2, 1)


def test_an_earlier_version_gave_types_without_the_column_of_the_rest(image: bytes, tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.tar", image, [{"n": n, "x": "y"} for n in range(250)]), tmp_path / "out"
    options: dict[str, Any] = {"stages": [cd.Filter("n", min=3)], "metadata": {"n": "float64"}, **OPTIONS}

    def stop(done: int) -> None:
        if len(list(out.glob("*.parquet"))):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cd.curate(path, out, progress=stop, batch_size=20, **options)
    manifest = Manifest.load(str(out))
    for part in manifest.parts():
        file = out / part.files[0].name
        table = pq.read_table(file).drop_columns(["metadata"])
        pq.write_table(
            table.cast(pa.schema([field.remove_metadata() for field in table.schema], table.schema.metadata)), file
        )
        manifest.commit(replace(part, files=(Written(file.name, file.stat().st_size, ""),)))
    report = cd.curate(path, out, **options)
    assert (report.samples, report.kept) == (250, 247)
    assert "metadata" not in RowFiles(str(out)).schema.names
    assert [row["n"] for row in read_rows(out)] == list(range(250))


def test_a_stage_may_read_a_field_named_metadata_where_types_are_given(image: bytes, tmp_path: Path) -> None:
    source = MemorySource([image] * 2, [{"metadata": 1}, {"metadata": "text"}])
    cd.curate(
        source, tmp_path / "out", stages=[cd.Filter("metadata", min=0)], metadata={"metadata": "float64"}, **OPTIONS
    )
    assert [row["metadata"] for row in read_rows(tmp_path / "out")] == [1.0, None]

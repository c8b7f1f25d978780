"""Every field of every source arrives in every sink: values of all kinds that hypothesis makes come out equal."""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curator_dali as cd
from curator_dali.curation import read_fields
from curator_dali.outputs import FIXED_COLUMNS
from curator_dali.sources import MemorySource, ParquetSource, dump_fields, is_same, open_source
from curator_dali.sources.sidecars import make_sidecars
from tests import helpers
from tests.curation.helpers import FirstOfItsLabel, read_members

Fields = dict[str, Any]
RUNS = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=12)  # also halves of surrogate pairs
ZONES = st.none() | st.just(dt.timezone.utc) | st.timezones()
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | ANY_TEXT | st.binary(max_size=8)
    | st.dates() | st.times() | st.datetimes(timezones=ZONES) | st.timedeltas() | st.decimals(places=2) | st.uuids()
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["caption", "label", "width", "status", "metadata", "__types__", "a/b~c", "key"]) | ANY_TEXT
METADATA = st.lists(st.dictionaries(NAMES, VALUES, max_size=5), min_size=1, max_size=5)

HOSTILE: list[Fields] = [
    {},
    {"caption": "", "label": 0, "": None, "empty": [], "none": {}},
    {"caption": "x" * (1 << 20), "label": 2**62, "nested": [[[{"a": [None, {"b": (1, b"\0")}]}]]]},
    {"caption": "日本語 \U0001f600 \ud800 \0 \r\n", "label": -1, "ключ": "значение", "a.b": {"c.d": 1}},
    {"caption": None, "label": "cat", "n": math.nan, "inf": [math.inf, -math.inf], "big": 2**64, "true": True},
    {"caption": 5, "label": 1.5, "day": dt.date(1, 1, 1), "at": dt.datetime.max, "cost": Decimal("-0.10"), "n": 1},
    {"caption": [" a "], "label": True, "ns": pd.Timestamp(1, unit="ns"), "n": "text", "__types__": {"/n": "date"}},
]


@cache
def make_images() -> list[bytes]:
    return [helpers.encode(crop) for _, crop in helpers.crops(helpers.load_photos(), 8, shortest=16, longest=24)]


def metadata_of(source: Any) -> list[Fields]:
    opened = open_source(source)
    return [dict(item.metadata) for item in opened.read(np.arange(len(opened))).objects]


def check_arrives(source: Any, folder: Path, expected: Sequence[Fields], stages: Sequence[cd.Stage] = ()) -> None:
    """Check that fields are read from a source, and from the tars and the Parquet of its output."""
    expected = [{str(name): value for name, value in fields.items()} for fields in expected]
    assert is_same(metadata_of(source), list(expected))
    cd.curate(source, folder / "out", stages=stages, metadata=True, device="cpu", html=False)
    files = sorted((folder / "out").glob("*.parquet"))
    rows = [fields for file in files for fields in read_fields(pq.read_table(file))]
    assert is_same(rows, list(expected), exact=not stages)  # a stage reads integers of samples as floats
    if not stages:
        assert is_same(metadata_of(str(folder / "out" / "*.tar")), list(expected))


def write_images(folder: Path, count: int, root: str = "in") -> list[Path]:
    (folder / root).mkdir(parents=True, exist_ok=True)
    paths = [folder / root / f"{number}.jpg" for number in range(count)]
    for path, data in zip(paths, make_images(), strict=False):
        path.write_bytes(data)
    return paths


def write_sidecars(path: Path, fields: Mapping[str, Any]) -> None:
    for extension, data in make_sidecars(fields).items():
        path.with_suffix(f".{extension}").write_bytes(data)


def make_folder(folder: Path, given: Sequence[Fields]) -> Any:
    for path, fields in zip(write_images(folder, len(given)), given, strict=True):
        write_sidecars(path, fields)
    return str(folder / "in")


def make_json_lines(folder: Path, given: Sequence[Fields]) -> Any:
    paths = write_images(folder, len(given))
    lines = [
        dump_fields({**fields, "file_name": path.name}, ascii=True) for path, fields in zip(paths, given, strict=True)
    ]
    (folder / "in" / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder / "in")


def make_tar(folder: Path, given: Sequence[Fields]) -> Any:
    members = []
    for number, fields in enumerate(given):
        members.append((f"{number}.jpg", make_images()[number]))
        members += [(f"{number}.{extension}", data) for extension, data in make_sidecars(fields).items()]
    return str(helpers.write_tar(folder / "a.tar", members))


def make_memory(folder: Path, given: Sequence[Fields]) -> Any:
    return MemorySource(make_images()[: len(given)], given)


def make_subset(folder: Path, given: Sequence[Fields]) -> Any:
    images = make_images()[: len(given)]
    return cd.Subset(MemorySource([*images, images[0]], [*given, {"left": "out"}]), slice(len(given)))


def make_url(folder: Path, given: Sequence[Fields]) -> Any:
    import fsspec

    make_folder(folder, given)
    url = f"memory://every_field/{folder.name}"
    fsspec.filesystem("memory").put(str(folder / "in"), url, recursive=True)
    return url


MAKERS: dict[str, Callable[[Path, Sequence[Fields]], Any]] = {
    "folder": make_folder, "json_lines": make_json_lines, "tar": make_tar, "memory": make_memory,
    "subset": make_subset, "url": make_url,
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
@RUNS
@given(METADATA)
def test_any_fields(kind: str, tmp_path_factory: pytest.TempPathFactory, given: list[Fields]) -> None:
    folder = tmp_path_factory.mktemp("any")
    if kind == "json_lines":  # whose rows have a column of that name
        given = [{name: value for name, value in fields.items() if name != "file_name"} for fields in given]
    check_arrives(MAKERS[kind](folder, given), folder, given)


@pytest.mark.parametrize("kind", MAKERS)
def test_hostile_fields(kind: str, tmp_path: Path) -> None:
    check_arrives(MAKERS[kind](tmp_path, HOSTILE), tmp_path, HOSTILE)


def test_fields_that_stages_read(tmp_path: Path) -> None:
    """A field that a stage reads is a column of the stage's type, and its value is exact beside it."""
    given = [{"n": value, "t": value} for value in (1.5, 2**53 + 1, "text", None, math.nan, b"x", [1.0])] + [{}]
    stages = [cd.Filter("n", min=0, missing="keep"), cd.Filter("t", equals="text", missing="keep")]
    check_arrives(MemorySource(make_images(), given), tmp_path, given, stages)


def test_two_passes(tmp_path: Path) -> None:
    given = [{**fields, "label": 0} for fields in HOSTILE]
    check_arrives(make_tar(tmp_path, given), tmp_path, given, [FirstOfItsLabel()])


@RUNS
@given(
    st.lists(
        st.dictionaries(NAMES.filter(lambda name: name not in ("label", "label_name")), VALUES, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_class_folders(tmp_path_factory: pytest.TempPathFactory, given: list[Fields]) -> None:
    folder = tmp_path_factory.mktemp("classes")
    expected, names = [], ["cat", "größer"]
    for number, fields in sorted(enumerate(given), key=lambda pair: pair[0] % 2):
        name = names[number % 2]
        path = write_images(folder, len(given), f"in/{name}")[0].with_name(f"x{number}.jpg")
        path.write_bytes(make_images()[number])
        write_sidecars(path, fields)
        expected.append({**fields, "label": number % 2, "label_name": name})
    for name in names:
        for path in (folder / "in" / name).glob("[0-9].jpg") if (folder / "in" / name).exists() else ():
            path.unlink()
    check_arrives(str(folder / "in"), folder, expected)


def in_range(kind: pa.DataType, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[pa.DataType, list[Any]]]:
    return st.lists(st.none() | values, min_size=5, max_size=5).map(lambda some: (kind, some))


SHORT = st.text(max_size=8)  # Arrow's texts are UTF-8
DAYS = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))
COLUMNS = st.one_of(
    in_range(pa.int64(), st.integers(-(2**63), 2**63 - 1)), in_range(pa.uint64(), st.integers(0, 2**64 - 1)),
    in_range(pa.float64(), st.floats()), in_range(pa.float32(), st.floats(width=32)),
    in_range(pa.bool_(), st.booleans()),
    in_range(pa.string(), SHORT), in_range(pa.large_string(), SHORT), in_range(pa.binary(), st.binary(max_size=8)),
    in_range(pa.date32(), st.dates()), in_range(pa.time64("us"), st.times()),
    in_range(pa.timestamp("us"), st.datetimes()),
    in_range(pa.timestamp("us", "UTC"), DAYS.map(lambda at: at.replace(tzinfo=dt.timezone.utc))),
    in_range(pa.timestamp("ns"), st.integers(-(2**60), 2**60).map(lambda ns: pd.Timestamp(ns, unit="ns"))),
    in_range(pa.duration("us"), st.timedeltas(dt.timedelta(-10**6), dt.timedelta(10**6))),
    in_range(pa.decimal128(20, 2), st.decimals(-(10**15), 10**15, places=2)),
    in_range(pa.list_(pa.int8()), st.lists(st.none() | st.integers(-128, 127), max_size=3)),
    in_range(pa.list_(pa.float32(), 2), st.lists(st.floats(width=32), min_size=2, max_size=2)),
    in_range(pa.map_(pa.string(), pa.int32()), st.lists(st.tuples(SHORT, st.integers(0, 9)), max_size=3)),
    in_range(
        pa.struct([("a", pa.list_(pa.struct([("b", pa.binary())]))), ("c", pa.float64())]),
        st.fixed_dictionaries({
            "a": st.none() | st.lists(st.fixed_dictionaries({"b": st.none() | st.binary(max_size=4)}), max_size=2),
            "c": st.none() | st.floats(),
        }),
    ),
    in_range(pa.null(), st.none()),
)  # fmt: skip
COLUMN_NAMES = st.sampled_from(["caption", "label", "width", "status", "metadata", "a.b"]) | st.text(
    string.ascii_letters + "äß _", min_size=1, max_size=6
).filter(lambda name: name not in ("jpg", "file_name"))
TABLES = st.dictionaries(COLUMN_NAMES, COLUMNS, max_size=4)


def write_table(path: Path, columns: Mapping[str, tuple[pa.DataType, list[Any]]], **more: list[Any]) -> list[Fields]:
    """Write a Parquet file of five rows; returns the fields of each."""
    arrays = {name: pa.array(values, kind) for name, (kind, values) in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**more, **arrays}), path)
    return [{name: array[row].as_py() for name, array in arrays.items()} for row in range(5)]


@RUNS
@given(TABLES)
def test_parquet(tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    expected = write_table(folder / "a.parquet", columns, jpg=make_images()[:5])
    source = ParquetSource(str(folder / "a.parquet"), image_column="jpg")
    check_arrives(source, folder, expected)
    schema = pq.read_schema(next((folder / "out").glob("*.parquet")))
    for name, (kind, _) in columns.items():
        if name not in (*FIXED_COLUMNS, "metadata"):
            assert schema.field(name).type == kind


@RUNS
@given(TABLES)
def test_a_folder_with_metadata_parquet(tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("annotated")
    names = [path.name for path in write_images(folder, 5)]
    expected = write_table(folder / "in" / "metadata.parquet", columns, file_name=names)
    check_arrives(str(folder / "in"), folder, expected)


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@RUNS
@given(
    st.lists(st.lists(CELLS, min_size=5, max_size=5), max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5),
)
def test_a_folder_with_metadata_csv(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]], numbers: list[int]
) -> None:
    """Texts that are spelt as numbers are what the column's other values make of them, so each column has a text."""
    folder = tmp_path_factory.mktemp("csv")
    columns: dict[str, list[Any]] = {f"t{at}": [f"'{cell}" for cell in cells] for at, cells in enumerate(texts)}
    columns["n"] = numbers
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    with (write_images(folder, 5)[0].parent / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", *columns])
        writer.writeheader()
        writer.writerows({"file_name": f"{number}.jpg", **row} for number, row in enumerate(rows))
    check_arrives(str(folder / "in"), folder, rows)


@RUNS
@given(METADATA, TABLES)
def test_mixture(tmp_path_factory: pytest.TempPathFactory, given: list[Fields], columns: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("mixture")
    rows = write_table(folder / "a.parquet", columns, jpg=make_images()[:5])
    table = ParquetSource(str(folder / "a.parquet"), image_column="jpg")
    mixture = cd.Mixture({"memory": make_memory(folder, given), "table": table})
    expected = [{"source": "memory", **fields} for fields in given] + [{"source": "table", **fields} for fields in rows]
    check_arrives(mixture, folder, expected)
    again = folder / "tables"
    again.mkdir()
    pair = cd.Mixture(
        {"table": table, "other": ParquetSource(str(folder / "a.parquet"), image_column="jpg", columns=[])}
    )
    expected = [{"source": "table", **fields} for fields in rows] + [{"source": "other"}] * 5
    check_arrives(pair, again, expected)


def test_failed_and_dropped_samples_have_their_fields(tmp_path: Path) -> None:
    images = [make_images()[0], b"no image", b"", make_images()[1]]
    given = [{"n": n, "x": [n, b"y"]} for n in range(4)]
    cd.curate(
        MemorySource(images, given), tmp_path, stages=[cd.Filter("n", max=2)], metadata=True, device="cpu", html=False
    )
    table = pq.read_table(next(tmp_path.glob("*.parquet")))
    assert table["status"].to_pylist() == ["kept", "failed", "failed", "dropped"]
    assert read_fields(table) == given


def test_an_output_with_images_is_a_source_with_the_same_fields(tmp_path: Path) -> None:
    """The columns of an output and images beside them, as a Parquet file: `metadata` is unpacked."""
    given = [{**fields, "label": number} for number, fields in enumerate(HOSTILE)]
    cd.curate(
        MemorySource(make_images()[:7], given), tmp_path / "out", stages=[], metadata=True, device="cpu", html=False
    )
    table = pq.read_table(next((tmp_path / "out").glob("*.parquet")))
    kept = [name for name in table.column_names if table.schema.field(name).metadata or name == "image_id"]
    columns = table.select(kept).append_column("jpg", pa.array(make_images()[:7]))
    pq.write_table(columns, tmp_path / "a.parquet")
    table_source = ParquetSource(str(tmp_path / "a.parquet"), image_column="jpg")
    expected = [{"image_id": str(number), **fields} for number, fields in enumerate(given)]
    assert table_source.arrow_fields is not None
    assert "metadata" not in table_source.arrow_fields
    for members in (False, True):
        assert is_same(
            [dict(item.metadata) for item in table_source.read(np.arange(7), members=members).objects], expected
        )
    assert is_same(metadata_of(cd.Subset(table_source, [3])), expected[3:4])


def test_broken_sidecars_beside_labels_and_annotations(tmp_path: Path) -> None:
    """What a broken sidecar says is kept as its bytes; all that is known besides, and what is wrong, are fields."""
    for folder in ("classes/cat", "annotated"):
        paths = write_images(tmp_path, 3, folder)
        paths[0].with_suffix(".json").write_bytes(b'{"n": 1')
        paths[1].with_suffix(".cls").write_bytes(b"no number")
        paths[2].with_suffix(".txt").write_bytes(b"caf\xe9")
    names = [{"file_name": f"{number}.jpg", "likes": number} for number in range(3)]
    (tmp_path / "annotated" / "metadata.jsonl").write_text("\n".join(map(json.dumps, names)))
    for root in ("classes", "annotated"):
        expected = metadata_of(str(tmp_path / root))
        assert all("metadata_error" in fields for fields in expected)
        assert all(("label_name" if root == "classes" else "likes") in fields for fields in expected)
        (tmp_path / "of" / root).mkdir(parents=True)
        check_arrives(str(tmp_path / root), tmp_path / "of" / root, expected)
        written = [
            data for members in read_members(tmp_path / "of" / root / "out").values() for data in members.values()
        ]
        assert {b'{"n": 1', b"no number", b"caf\xe9"} <= set(written)

"""Parquet files with encoded images."""

from __future__ import annotations

import datetime as dt
import gc
import os
import pickle
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali.errors import SourceError
from curator_dali.sources import HEADER_DTYPE, ParquetSource, is_same, open_source, reopen
from curator_dali.sources.sidecars import parse_metadata


def write(path: Path, columns: dict[str, Any], rows_per_group: int = 4, schema: pa.Schema | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=rows_per_group)
    return str(path)


def jpeg(n: int) -> bytes:
    return b"\xff\xd8" + b"%d" % n * (n + 1)


@pytest.fixture
def img2dataset(tmp_path: Path) -> list[str]:
    """Two files of 10 and 3 rows, in row groups of 4."""
    paths = []
    for file, rows in enumerate((range(10), range(10, 13))):
        columns = {
            "jpg": [jpeg(n) for n in rows],
            "key": [f"{n:09d}" for n in rows],
            "caption": [f"photo {n}" for n in rows],
            "width": list(rows),
            "exif": [{"make": "x", "tags": [n]} for n in rows],
            "thumb": [b"other bytes" for n in rows],
        }
        paths.append(write(tmp_path / "set" / f"{file:05d}.parquet", columns))
    return paths


def test_img2dataset(img2dataset: list[str]) -> None:
    source = ParquetSource(img2dataset)
    assert len(source) == 13
    assert source.shard_sizes.tolist() == [4, 4, 2, 3]
    assert source.name == "set"
    indices = np.array([12, 0, 5, 5, 9, 11])
    batch = source.read(indices, members=True)
    assert batch.errors == {}
    for row, n in enumerate(indices.tolist()):
        assert bytes(batch.images[row]) == jpeg(n)
        assert batch.images[row].flags.writeable
        obj = batch.objects[row]
        assert obj.image_id == f"{n:09d}"
        file, in_file = divmod(n, 10)
        assert obj.image_path == f"{img2dataset[file]}#row={in_file}"
        assert batch.shards[row] == img2dataset[file]
        assert obj.metadata == {
            "key": f"{n:09d}",
            "caption": f"photo {n}",
            "width": n,
            "exif": {"make": "x", "tags": [n]},
            "thumb": b"other bytes",
        }
        assert batch.members is not None
        members = {ext: bytes(data) for ext, data in batch.members[row].items()}
        assert members.keys() == {"jpg", "json", "txt"}
        assert members["jpg"] == jpeg(n)
        assert members["txt"] == b"photo %d" % n


def test_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(b"\xff\xd8from a file")
    images = [
        {"bytes": b"\x89PNG1", "path": "cats/1.png"},
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"\xff\xd86", "path": None},
        {"bytes": b"", "path": None},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = write(
        tmp_path / "train-0.parquet",
        {"image": images, "label": list(range(7))},
        rows_per_group=7,
        schema=pa.schema([("image", kind), ("label", pa.int64())]),
    )
    batch = ParquetSource(path).read(np.arange(7), members=True)
    assert [bytes(image) for image in batch.images] == [
        b"\x89PNG1",
        b"\xff\xd8from a file",
        b"",
        b"",
        b"",
        b"\xff\xd86",
        b"",
    ]
    assert [obj.image_id for obj in batch.objects[:2]] == ["cats/1", "beside"]
    assert [obj.image_id for obj in batch.objects[3:]] == [f"train-0-{n}" for n in range(3, 7)]
    assert [obj.metadata for obj in batch.objects] == [{"label": n} for n in range(7)]
    assert sorted(batch.errors) == [2, 3, 4, 6]
    assert "gone.jpg" in batch.errors[2]
    assert "no image bytes" in batch.errors[3]
    assert "no image bytes" in batch.errors[4]
    assert "has no bytes" in batch.errors[6]
    assert batch.members is not None
    assert list(batch.members[0]) == ["png", "cls"]
    assert batch.members[4] == {}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())])
def test_binary_types_and_the_column_given(tmp_path: Path, kind: pa.DataType) -> None:
    schema = pa.schema([("a", pa.binary()), ("b", kind)])
    rows = ["x", "yy", "zzz"] if pa.types.is_dictionary(kind) else [b"x", b"yy", b"zzz"]
    path = write(tmp_path / "t.parquet", {"a": [b"1", None, b"3"], "b": rows}, 2, schema)
    if pa.types.is_dictionary(kind):
        assert [bytes(i) for i in ParquetSource(path).read(np.arange(3)).images] == [b"1", b"", b"3"]
        with pytest.raises(SourceError, match="no image column 'b'"):
            ParquetSource(path, image_column="b")
    else:
        with pytest.raises(SourceError, match=r"binary columns a, b.*image_column="):
            ParquetSource(path)
        assert [bytes(i) for i in ParquetSource(path, image_column="b").read(np.arange(3)).images] == [
            b"x",
            b"yy",
            b"zzz",
        ]


def test_what_cannot_be_opened_is_named(tmp_path: Path, img2dataset: list[str]) -> None:
    text = write(tmp_path / "text.parquet", {"url": ["a"], "caption": ["b"]})
    with pytest.raises(SourceError, match=r"no binary column, only url, caption"):
        ParquetSource(text)
    with pytest.raises(SourceError, match=r"text\.parquet has no image column 'jpg'"):
        ParquetSource([img2dataset[0], text])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(SourceError, match=r"2 of 3 .*bad\.parquet.*gone\.parquet"):
        ParquetSource([str(tmp_path / "bad.parquet"), img2dataset[0], str(tmp_path / "gone.parquet")])


def test_a_damaged_row_group_costs_its_rows_only(img2dataset: list[str]) -> None:
    place = pq.read_metadata(img2dataset[0]).row_group(1).column(0)
    begin = place.dictionary_page_offset or place.data_page_offset
    with open(img2dataset[0], "r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * place.total_compressed_size)
    batch = ParquetSource(img2dataset).read(np.arange(13))
    assert sorted(batch.errors) == [4, 5, 6, 7]
    assert batch.unread == set()  # the file is as it was at opening: this is what it holds
    assert "row group 1" in batch.errors[4]
    assert [bytes(batch.images[n]) for n in (3, 8, 12)] == [jpeg(3), jpeg(8), jpeg(12)]


def test_row_groups_are_read_lazily_and_once(img2dataset: list[str]) -> None:
    source = ParquetSource(img2dataset)
    loads: list[int] = []
    real = source._load
    source._load = lambda number: (loads.append(number), real(number))[1]  # type: ignore[method-assign]
    source.read(np.array([4, 6]))
    source.read(np.array([5, 12]))
    assert loads == [1, 3]
    source.close()
    source.read(np.array([5]))
    assert loads == [1, 3, 1]


def test_metadata_keeps_no_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": [bytes(1 << 20)] * 8, "n": list(range(8))}, 8)
    pool = pa.default_memory_pool()
    gc.collect()
    before = pool.bytes_allocated()  # what other tests still hold
    source = ParquetSource(path)
    obj = source.read(np.array([3])).objects[0]
    source.close()
    gc.collect()
    assert pool.bytes_allocated() - before < 1 << 20
    assert obj.metadata == {"n": 3}


def test_pickle_fingerprint_and_headers(img2dataset: list[str]) -> None:
    source = ParquetSource(img2dataset)
    source.read(np.arange(3))
    copy = pickle.loads(pickle.dumps(source))
    assert bytes(copy.read(np.array([7])).images[0]) == jpeg(7)
    assert copy.fingerprint == source.fingerprint != ParquetSource(img2dataset[:1]).fingerprint
    headers = np.zeros(3, HEADER_DTYPE)
    headers["codec"] = [1, 0, 3]
    source.learn(np.array([1, 2, 11]), headers)
    assert source.headers(np.array([11, 2, 1, 0]))["codec"].tolist() == [3, 0, 1, 0]


def partitioned(root: Path, folders: list[str], columns: dict[str, Any] | None = None) -> list[str]:
    return [
        write(root / folder / "part-0.parquet", {"jpg": [jpeg(n), jpeg(n)], **(columns or {})})
        for n, folder in enumerate(folders)
    ]


@pytest.mark.parametrize(
    ("folders", "fields"),
    [
        (["label=cat", "label=dog"], [{"label": "cat"}, {"label": "dog"}]),
        (["label=0", "label=12"], [{"label": 0}, {"label": 12}]),
        (["label=0", "label=012"], [{"label": "0"}, {"label": "012"}]),
        (["n=1/kind=a%2Fb%20c", "n=-2/kind=ü"], [{"n": 1, "kind": "a/b c"}, {"n": -2, "kind": "ü"}]),
        (["n=__HIVE_DEFAULT_PARTITION__", "n=2"], [{"n": None}, {"n": 2}]),
        (["plain", "n=2/=odd"], [{}, {"n": 2}]),
    ],
)
def test_fields_of_partitions(tmp_path: Path, folders: list[str], fields: list[dict[str, Any]]) -> None:
    urls = partitioned(tmp_path, folders)
    source = open_source(tmp_path)
    assert isinstance(source, ParquetSource)
    batch = source.read(np.arange(len(source)))
    by_path = {item.image_path.partition("#")[0]: item.metadata for item in batch.objects}
    assert by_path == dict(zip(urls, fields, strict=True))
    assert len({item.image_id for item in batch.objects}) == 4
    assert {f"{folders[1]}/part-0-1"} <= {item.image_id for item in batch.objects}


def test_a_column_goes_before_its_partition(tmp_path: Path) -> None:
    urls = partitioned(tmp_path, ["label=7/x=1"], {"label": ["own", None]})
    batch = ParquetSource(urls).read(np.arange(2))
    assert [item.metadata for item in batch.objects] == [{"label": "own", "x": 1}, {"label": None, "x": 1}]
    assert [item.image_id for item in batch.objects] == ["part-0-0", "part-0-1"]  # nothing repeats


def test_fingerprints_are_of_what_the_files_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a=1" / "0.parquet", {"jpg": [jpeg(n) for n in range(6)]})
    first = ParquetSource(path).fingerprint
    shutil.copytree(tmp_path / "a=1", tmp_path / "moved" / "a=1")
    assert ParquetSource(str(tmp_path / "moved" / "a=1" / "0.parquet")).fingerprint == first
    (tmp_path / "moved" / "a=1").rename(tmp_path / "moved" / "a=2")
    assert ParquetSource(str(tmp_path / "moved" / "a=2" / "0.parquet")).fingerprint != first
    write(Path(path), {"jpg": [jpeg(n + 20) for n in range(6)]})
    assert ParquetSource(path).fingerprint != first


def test_rows_that_could_not_be_read_now(img2dataset: list[str], tmp_path: Path) -> None:
    source = ParquetSource(img2dataset)
    copy = pickle.loads(pickle.dumps(source))
    source.read(np.array([0]))
    os.utime(img2dataset[0])
    batch = source.read(np.array([0, 4, 12]))
    assert (sorted(batch.errors), batch.unread) == ([1], {1})  # the first row group was read before
    assert "changed after it was opened" in batch.errors[1]
    assert copy.read(np.array([4])).errors == {}  # another machine's copy has times of its own
    os.truncate(img2dataset[0], 100)
    assert copy.read(np.array([0])).unread == {0}
    os.unlink(img2dataset[1])
    assert source.read(np.array([12, 10]), members=True).errors == {}  # in memory still
    assert copy.read(np.array([12])).unread == {0}


def test_a_file_named_in_a_row_that_is_not_there_is_the_rows_own_fault(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    rows = [{"bytes": None, "path": "gone.jpg"}, {"bytes": None, "path": "empty.jpg"}, {"bytes": None, "path": "a"}]
    (tmp_path / "a").mkdir()
    path = write(
        tmp_path / "0.parquet", {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    )
    batch = ParquetSource(path).read(np.arange(3))
    assert sorted(batch.errors) == [0, 1, 2]
    assert batch.unread == set()


def test_values_that_python_or_arrow_cannot_take_cost_no_sample(tmp_path: Path) -> None:
    table = pa.table(
        {
            "jpg": [b"a", b"b"],
            "view": pa.array(["x", None], pa.string_view()),
            "far": pa.array([10**7, 1], pa.date32()),
            "plain": [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = ParquetSource(str(tmp_path / "a.parquet"))
    for members in (False, True):
        batch = source.read(np.arange(2), members=members)
        assert batch.errors == {}
        first, second = (item.metadata for item in batch.objects)
        assert (first["view"], first["far"], first["plain"]) == ("x", "29349-01-26", 1)
        assert (second["view"], second["plain"]) == (None, 2)


def test_two_columns_of_one_name_are_refused_at_opening(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"a"]), pa.array([1]), pa.array([2])], ["jpg", "x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="several columns of the name 'x'"):
        ParquetSource(str(tmp_path / "a.parquet"))


def test_columns_with_bytes_are_metadata_and_ids_of_bytes_are_texts(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": b"a", "path": "1.jpg", "sha": "f"}, "mask": {"bytes": b"m"}, "key": b"k1", "tags": [b"t"]}
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = ParquetSource(str(tmp_path / "a.parquet"), image_column="image")
    (item,) = source.read(np.array([0])).objects
    about = {"image": {"path": "1.jpg", "sha": "f"}, "mask": {"bytes": b"m"}, "key": b"k1", "tags": [b"t"]}
    assert (item.image_id, item.metadata) == ("k1", about)
    (item,) = source.read(np.array([0]), members=True).objects
    assert item.metadata == about


def test_columns_that_are_chosen(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": b"a", "path": f"{n}.jpg", "w": n}, "n": n, "raw": b"x", "key": f"k{n}"} for n in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    for columns, found in (
        ([], {}),
        (["n"], {"n": 1}),
        (["image", "raw"], {"image": {"path": "1.jpg", "w": 1}, "raw": b"x"}),
    ):
        source = open_source(path, columns=columns, image_column="image")
        for members in (False, True):
            item = source.read(np.arange(2), members=members).objects[1]
            assert (item.image_id, item.metadata) == ("k1", found)
        assert source.arrow_fields.keys() == found.keys()  # type: ignore[union-attr]
        assert source.origin is not None
        assert reopen(source.origin).fingerprint == source.fingerprint
        assert source.fingerprint != open_source(path, image_column="image").fingerprint
    with pytest.raises(SourceError, match="columns= names 'm', which a does not have; it has image, n, raw, key"):
        open_source(path, columns=["m"], image_column="image")
    with pytest.raises(ValueError, match="columns is 'n'; allowed: a list"):
        open_source(path, columns="n", image_column="image")


def test_further_parts_of_the_images(tmp_path: Path) -> None:
    """The path is the id already where no column says another."""
    images = [{"bytes": b"a", "path": "1.jpg", "size": [3, 4]}, None, {"bytes": b"a", "path": None, "size": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("size", pa.list_(pa.int8()))])
    source = ParquetSource(write(tmp_path / "a.parquet", {"image": pa.array(images, kind)}))
    found = [dict(item.metadata) for item in source.read(np.arange(3)).objects]
    assert found == [{"image": {"size": [3, 4]}}, {"image": None}, {"image": {"size": None}}]
    assert source.arrow_fields == {"image": pa.struct([("size", pa.list_(pa.int8()))])}


LATE = 863 * 10**15  # microseconds, in a year that Python has not
BEYOND = pa.array([0, LATE], pa.int64()).cast(pa.timestamp("us"))
LISTED = pa.ListArray.from_arrays([0, 1, 2], BEYOND)
TYPES: dict[str, tuple[pa.Array, list[Any]]] = {
    "dictionary": (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    "large_string": (pa.array(["a", None], pa.large_string()), ["a", None]),
    "string_view": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "large_binary": (pa.array([b"\xff", None], pa.large_binary()), [b"\xff", None]),
    "fixed_binary": (pa.array([b"abcd", None], pa.binary(4)), [b"abcd", None]),
    "large_list": (pa.array([[1], None], pa.large_list(pa.int8())), [[1], None]),
    "fixed_size_list": (pa.array([[1, 2], None], pa.list_(pa.int16(), 2)), [[1, 2], None]),
    "map": (pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int8())), [[("a", 1), ("a", 2)], None]),
    "halffloat": (pa.array([1.5, None], pa.float16()), [1.5, None]),
    "null": (pa.nulls(2), [None, None]),
    "duration": (pa.array([1, None], pa.duration("us")), [dt.timedelta(microseconds=1), None]),
    "duration_ns": (pa.array([1, None], pa.duration("ns")), [pd.Timedelta(1, unit="ns"), None]),
    "time64": (pa.array([1, None], pa.time64("us")), [dt.time(0, 0, 0, 1), None]),
    "time64_ns": (pa.array([1, 2000], pa.time64("ns")), ["00:00:00.000000001", dt.time(0, 0, 0, 2)]),
    "timestamp_ns": (pa.array([1, None], pa.timestamp("ns")), [pd.Timestamp(1, unit="ns"), None]),
    "timestamp_s": (pa.array([1, None], pa.timestamp("s")), [dt.datetime(1970, 1, 1, 0, 0, 1), None]),
    "date64": (pa.array([dt.date(2024, 2, 29), None], pa.date64()), [dt.date(2024, 2, 29), None]),
    "decimal256": (pa.array([Decimal(10**60), None], pa.decimal256(76, 2)), [Decimal(10**60), None]),
    "uint64": (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
    "uuid": (pa.array([UUID(int=5).bytes, None], pa.uuid()), [UUID(int=5), None]),
    "json": (pa.array(['{"a": 1}', None], pa.json_()), ['{"a": 1}', None]),
    "late": (BEYOND, [dt.datetime(1970, 1, 1), "29317-05-19 22:13:20.000000"]),
    "late_list": (LISTED, [[dt.datetime(1970, 1, 1)], "[29317-05-19 22:13:20.000000]"]),
    "bad_utf8": (pa.StringArray.from_buffers(2, *pa.array([b"a", b"\xff"]).buffers()[1:]), ["a", "\udcff"]),
    "struct": (pa.array([{"x": {"y": b"z"}}, None]), [{"x": {"y": b"z"}}, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_column_is_metadata(name: str, tmp_path: Path) -> None:
    """Read with the members and without, and read again from the sidecars, a value is the same."""
    column, values = TYPES[name]
    path = write(tmp_path / "a.parquet", {"jpg": [jpeg(0), jpeg(1)], "x": column})
    source = ParquetSource(path, image_column="jpg")
    assert [item.metadata for item in source.read(np.arange(2)).objects] == [{"x": value} for value in values]
    batch = source.read(np.arange(2), members=True)
    assert [item.metadata for item in batch.objects] == [{"x": value} for value in values]
    again = [parse_metadata(bytes(members["json"])) for members in batch.members or []]
    assert is_same(again, [{"x": value} for value in values])


def test_files_that_differ_in_the_ending_alone_have_ids_of_their_own(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.pq"):
        pq.write_table(pa.table({"jpg": [b"a"]}), tmp_path / name)
    source = ParquetSource([str(tmp_path / "a.parquet"), str(tmp_path / "a.pq")])
    assert len({item.image_id for item in source.read(np.arange(2)).objects}) == 2


def test_a_file_without_rows_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(pa.table({"jpg": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    assert len(ParquetSource(str(tmp_path / "a.parquet"))) == 0
    assert "has no rows" in caplog.text


def test_texts_that_are_not_utf8_and_dates_beyond_pythons_cost_no_batch(tmp_path: Path) -> None:
    texts = pa.array([b"a/1.jpg", b"a/\xff.jpg", b"a/3.jpg"])
    odd = pa.StringArray.from_buffers(3, *texts.buffers()[1:])  # nobody checks it, as when a file is read
    image = pa.StructArray.from_arrays([pa.array([jpeg(1), jpeg(2), None]), odd], ["bytes", "path"])
    by_path = ParquetSource(write(tmp_path / "paths.parquet", {"image": image})).read(np.arange(3))
    assert [item.image_id for item in by_path.objects] == ["a/1", "a/\\xff", "a/3"]
    assert [bytes(data) for data in by_path.images[:2]] == [jpeg(1), jpeg(2)]
    assert list(by_path.errors) == [2]
    dates = pa.array([0, 1 << 62, None], pa.timestamp("us"))
    for key, ids in ((odd, ["a/1.jpg", "a/\\xff.jpg", "a/3.jpg"]), (dates, ["1970-01-01 00:00:00", None, "a-2"])):
        source = ParquetSource(write(tmp_path / "a.parquet", {"jpg": [jpeg(n) for n in range(3)], "key": key}))
        for members in (False, True):
            batch = source.read(np.arange(3), members=members)
            assert batch.errors == {}
            assert [bytes(data) for data in batch.images] == [jpeg(n) for n in range(3)]
            found = [item.image_id for item in batch.objects]
            assert [a for a, b in zip(found, ids, strict=True) if b is not None and a != b] == []
            assert len(set(found)) == 3
            assert all(isinstance(dict(item.metadata), dict) for item in batch.objects)

"""Metadata files of image folders, as Hugging Face has them."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from curator_dali.errors import SourceError
from curator_dali.sources import FolderSource, open_source

ROWS = [
    {"file_name": "a.jpg", "text": "eine Käsetorte", "label": 3, "n": 1.5},
    {"file_name": "deep/b.png", "text": "two,\nlines", "label": 4, "n": None},
]


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    if kind == "jsonl":
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "metadata.jsonl").write_text(f"{lines}\n\n")
    elif kind == "csv":
        pa.csv.write_csv(table, folder / "metadata.csv")
    else:
        pq.write_table(table, folder / "metadata.parquet")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.jpg", "deep/b.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"image")
    return tmp_path / "set"


def metadata(source: Any) -> list[dict[str, Any]]:
    return [item.metadata for item in source.read(np.arange(len(source))).objects]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("spec", ["set", "set/**/*.*g"])
def test_fields_of_every_kind_of_file(
    tree: Path, kind: str, spec: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tree, kind, ROWS)
    monkeypatch.chdir(tree.parent)
    source = open_source(spec)
    expected = [{"text": "eine Käsetorte", "label": 3, "n": 1.5}, {"text": "two,\nlines", "label": 4, "n": None}]
    assert metadata(source) == metadata(pickle.loads(pickle.dumps(source))) == expected
    assert caplog.records == []


def test_a_sidecar_goes_before_and_a_folders_label_is_not_made(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "a.jpg").rename(tree / "deep" / "a.jpg")
    (tree / "deep" / "b.json").write_text('{"label": 9}')
    assert metadata(FolderSource(str(tree)))[0] == {"label": 0, "label_name": "deep"}
    write(tree / "deep", "jsonl", [{"file_name": "b.png", "label": 1, "text": "b"}])
    with caplog.at_level(logging.INFO):
        source = FolderSource(str(tree))
    assert "no labels are made of folders" in caplog.text
    assert metadata(source) == [{}, {"label": 9, "text": "b"}]
    assert source.class_names == []


def test_each_splits_folder_has_its_own_and_the_nearest_counts(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for n in range(2):
            (tmp_path / split / f"{n}.jpg").write_bytes(b"image")
        write(tmp_path / split, "csv", [{"file_name": f"{n}.jpg", "text": f"{split} {n}"} for n in range(2)])
    write(tmp_path, "jsonl", [{"file_name": "train/1.jpg", "text": "far"}])
    assert [row["text"] for row in metadata(open_source(tmp_path))] == ["test 0", "test 1", "train 0", "train 1"]
    assert [row["text"] for row in metadata(open_source(tmp_path / "train"))] == ["train 0", "train 1"]


@pytest.mark.parametrize("spec", ["set/*", ["set/deep", "set/more"]])
def test_a_file_beside_class_folders_that_are_named(tree: Path, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "a.jpg").unlink()
    (tree / "more").mkdir()
    write(tree, "jsonl", ROWS[1:])
    monkeypatch.chdir(tree.parent)
    assert metadata(open_source(spec)) == [{"text": "two,\nlines", "label": 4, "n": None}]


def test_rows_and_images_that_do_not_fit_are_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tree, "jsonl", [ROWS[0], {"file_name": "gone.jpg"}, {"file_name": "gone.mp4"}])
    assert metadata(FolderSource(str(tree))) == [{"text": "eine Käsetorte", "label": 3, "n": 1.5}, {}]
    assert f"2 rows of the metadata files in {tree} have no image, and 1 of 2 images have no row" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.jsonl", b'{"file_name": "a.jpg"}\n\n{broken\n', r"metadata\.jsonl, line 3: b'\{broken' is no JSON"),
        ("metadata.jsonl", b'{"file_name": "a.jpg"}\n{"file_name": 3}', r"line 2: .* has no text 'file_name'"),
        ("metadata.csv", b"file_name,n\na.jpg,1\nb.jpg,2,3\n", r"metadata\.csv is damaged: .*Row #3"),
        ("metadata.parquet", b"PAR1 nonsense", r"metadata\.parquet is damaged"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tree: Path, name: str, data: bytes, message: str) -> None:
    (tree / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        open_source(tree)


def test_a_file_that_names_no_images_says_nothing_of_them(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "metadata.csv").write_text("name,n\na.jpg,1\n")
    assert metadata(open_source(tree)) == [{}, {}]
    assert "metadata.csv has no column 'file_name'" in caplog.text


def test_remote() -> None:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe({"/h/a.jpg": b"1", "/h/b.jpg": b"2", "/h/metadata.jsonl": b'{"file_name": "b.jpg", "n": 1}'})
    assert metadata(open_source("memory://h")) == [{}, {"n": 1}]
    assert metadata(open_source("memory://h/*.jpg")) == [{}, {"n": 1}]
    fs.store.clear()


def test_another_row_is_another_data_set(tree: Path) -> None:
    write(tree, "jsonl", ROWS)
    before = open_source(tree).fingerprint
    write(tree, "jsonl", ROWS[:1])
    assert open_source(tree).fingerprint != before


CSV = """file_name,zip,big,n,x,flag,word,day,some,dot,huge,exact
a.jpg,00123,12345678901234567890,-7,1.5,true,yes,2020-01-01,,1.,1e999,12345678901234567.5
b.jpg,00007,12345678901234567891,0,2e-3,False,nan,2020-01-02,5,.5,2,1
"""


def test_no_value_of_a_csv_changes(tree: Path) -> None:
    (tree / "deep" / "b.png").rename(tree / "b.jpg")
    (tree / "metadata.csv").write_text(CSV)
    first, second = metadata(open_source(tree))
    same = {"big": "12345678901234567890", "day": "2020-01-01", "huge": "1e999", "exact": "12345678901234567.5"}
    assert first == {
        **same,
        "zip": "00123",
        "n": -7,
        "x": 1.5,
        "flag": True,
        "word": "yes",
        "some": None,
        "dot": 1.0,
    }
    assert [type(first[name]) for name in ("n", "x", "flag")] == [int, float, bool]
    assert (second["zip"], second["word"], second["some"], second["n"]) == ("00007", "nan", 5, 0)
    assert (second["x"], second["flag"], second["dot"], second["huge"]) == (0.002, False, 0.5, "2")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2.5"], [1.0, 2.5]),
        (["9223372036854775807", "-9223372036854775808"], [2**63 - 1, -(2**63)]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["1", "007"], ["1", "007"]),
        (["1.5", "NA"], ["1.5", "NA"]),
        (["1.5", "inf"], ["1.5", "inf"]),
        (["+1", "2"], ["+1", "2"]),
        (["true", "1"], ["true", "1"]),
        (["TRUE", "FALSE"], ["TRUE", "FALSE"]),
        (['"1"', '""'], [1, None]),
        (["", ""], [None, None]),
        ([" 1", "2"], [" 1", "2"]),
    ],
)
def test_types_of_the_columns_of_a_csv(tree: Path, values: list[str], expected: list[Any]) -> None:
    rows = zip(("a.jpg", "deep/b.png"), values, strict=True)
    (tree / "metadata.csv").write_text("v,file_name\n" + "".join(f"{value},{name}\n" for name, value in rows))
    found = [row["v"] for row in metadata(open_source(tree))]
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.CSV", "metadata.jsonl", "METADATA.jsonl"])
def test_metadata_in_any_unicode_and_any_case(
    tree: Path, name: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"file_name": "a.jpg", "t": "Käse"}, {"file_name": "deep/b.png", "t": "日本"}]
    lines = ["file_name,t", *(f"{row['file_name']},{row['t']}" for row in rows)]
    if name.endswith("jsonl"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tree / name).write_bytes("\r\n".join(lines).encode(encoding))
    assert metadata(open_source(tree)) == [{"t": "Käse"}, {"t": "日本"}]
    assert metadata(open_source(str(tree / "*.jpg"))) == [{"t": "Käse"}]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.csv", b"file_name,t\na.jpg,caf\xe9\n", r"metadata\.csv is no UTF-8 text .*save it as UTF-8"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "t": "caf\xe9"}', r"metadata\.jsonl is no UTF-8 text"),
        ("metadata.csv", b"file_name,t,t\na.jpg,1,2\n", r"metadata\.csv has several columns 't'"),
        ("metadata.csv", b"file_name,t,file_name\na.jpg,1,2\n", r"metadata\.csv has several columns 'file_name'"),
    ],
)
def test_what_would_change_or_lose_values_is_refused(tree: Path, name: str, data: bytes, message: str) -> None:
    (tree / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        open_source(tree)


def test_a_repeated_column_of_a_parquet_file_is_refused(tree: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a.jpg"]), pa.array([1]), pa.array([2])], names=["file_name", "n", "n"])
    pq.write_table(table, tree / "metadata.parquet")
    with pytest.raises(SourceError, match=r"metadata\.parquet has several columns 'n'"):
        open_source(tree)


def test_repeated_and_rival_rows_are_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tree, "jsonl", [{"file_name": "a.jpg", "t": text} for text in ("one", "two")] + ROWS[1:])
    assert metadata(open_source(tree))[0] == {"t": "two"}
    assert f"1 rows of the metadata files in {tree} are not used" in caplog.text
    caplog.clear()
    write(tree, "csv", ROWS)
    assert metadata(open_source(tree))[0] == {"t": "two"}
    assert f"3 rows of the metadata files in {tree} are not used, as later ones name the same images" in caplog.text
    assert "of several metadata files in one folder the last by name" in caplog.text
    caplog.clear()
    (tree / "metadata.csv").unlink()
    write(tree, "jsonl", ROWS)
    write(tree / "deep", "csv", [{"file_name": "b.png", "n": 1}])  # nearer
    assert metadata(open_source(tree))[1] == {"n": 1}
    assert caplog.records == []


@pytest.mark.parametrize(
    "spec",
    ["m", "m/*/*/*.jpg", "m/**/*.jpg", "m/*/*", "m/x/*/*.jpg", ["m/x/y/a.jpg", "m/z/y/b.jpg"], ["m/x/y", "m/z/y"]],
    ids=str,
)
@pytest.mark.parametrize("remote", [False, True])
def test_metadata_in_folders_between(tmp_path: Path, spec: Any, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "x/y/a.jpg": b"1",
        "x/metadata.jsonl": b'{"file_name": "y/a.jpg", "n": 1}',
        "z/y/b.jpg": b"2",
        "metadata.csv": b"file_name,m\nz/y/b.jpg,2\n",
    }
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for path, data in files.items():
        (tmp_path / "m" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / path).write_bytes(data)
        fs.pipe(f"/m/{path}", data)
    monkeypatch.chdir(tmp_path)
    if remote:
        spec = f"memory://{spec}" if isinstance(spec, str) else [f"memory://{item}" for item in spec]
    source = open_source(spec)
    expected = [{"n": 1}, {"m": 2}]
    if remote and ".jpg" in spec[0]:
        expected = [
            {"label": 0, "label_name": "x"},
            {"label": 1, "label_name": "z"},
        ]  # URLs by hand have nothing beside
    assert metadata(source) == (expected[:1] if len(source) == 1 else expected)
    fs.store.clear()


def test_a_remote_glob_looks_where_its_images_lie() -> None:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe({"/h/cat/a.jpg": b"1", "/h/cat/deep/b.jpg": b"2", "/h/dog/c.jpg": b"3", "/h/dog/c.txt": b"c"})
    fs.pipe("/h/cat/metadata.jsonl", b'{"file_name": "a.jpg", "n": 1}\n{"file_name": "deep/b.jpg", "n": 2}')
    assert metadata(open_source("memory://h/*/*.jpg")) == [{"n": 1}, {"caption": "c"}]
    assert metadata(open_source("memory://h/{cat,dog}/*.jpg")) == [{"n": 1}, {"caption": "c"}]
    assert metadata(open_source("memory://h/**/*.jpg")) == [{"n": 1}, {"n": 2}, {"caption": "c"}]
    assert metadata(open_source("memory://h/dog/*.jpg")) == [{"caption": "c"}]
    before = open_source("memory://h/*/*.jpg").fingerprint
    fs.pipe("/h/cat/metadata.jsonl", b'{"file_name": "a.jpg", "n": 10}')
    assert open_source("memory://h/*/*.jpg").fingerprint != before
    fs.store.clear()


def test_a_metadata_file_names_nothing_outside_its_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "outside.jpg").write_bytes(b"\xff\xd8 outside")
    (tmp_path / "set" / "a.jpg").write_bytes(b"\xff\xd8 inside")
    names = ["a.jpg", "../outside.jpg", str(tmp_path / "outside.jpg"), "http://localhost/b.jpg", "/dev/zero"]
    (tmp_path / "set" / "metadata.csv").write_text("file_name,caption\n" + "".join(f"{n},text\n" for n in names))
    batch = FolderSource(str(tmp_path / "set")).read(np.arange(1))
    assert [bytes(image) for image in batch.images] == [b"\xff\xd8 inside"]
    assert "4 rows of the metadata files" in caplog.text

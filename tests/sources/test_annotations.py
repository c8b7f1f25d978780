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

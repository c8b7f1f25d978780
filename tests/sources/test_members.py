"""The sidecars among a sample's members say all of its metadata, whatever kind of source the sample comes from."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali.sources import FolderSource, MemorySource, Mixture, ParquetSource, Source, Subset
from curator_dali.sources.sidecars import SIDECARS, parse_metadata
from curator_dali.sources.subset import Without

JPEG = b"\xff\xd8\xff\xe0 an image"
ROWS: list[dict[str, Any]] = [
    {"caption": "Ein Käfer 🪲", "label": 3, "score": 0.5, "tags": ["a", "ü"], "box": {"x": 1, "y": None}},
    {"caption": None, "label": 0, "score": None, "tags": [], "box": None},
    {"caption": " spaces ", "label": -1, "score": 1e-7, "tags": None, "box": {"x": 0, "y": 2}},
]


def parse(members: Any) -> dict[str, Any]:
    return parse_metadata(*(bytes(members[name]) if name in members else None for name in SIDECARS))


def check(source: Source, images: int | None = None) -> list[dict[str, Any]]:
    """Compare what the members say with the metadata; returns the latter."""
    batch = source.read(np.arange(len(source)), members=True)
    assert batch.errors == {}
    assert batch.members is not None
    assert len(batch) == (images or len(batch))
    for item, members, image in zip(batch.objects, batch.members, batch.images, strict=True):
        assert parse(members) == item.metadata
        assert [bytes(data) for name, data in members.items() if name not in SIDECARS] == [bytes(image)]
    plain = source.read(np.arange(len(source)))
    assert [item.metadata for item in plain.objects] == [item.metadata for item in batch.objects]
    return [item.metadata for item in batch.objects]


def make_tree(root: Path) -> FolderSource:
    for name, data in {
        "cat/0.jpg": JPEG,
        "cat/1.jpg": JPEG,
        "cat/1.txt": b" a cat\n",
        "dog/2.jpg": JPEG,
        "dog/2.json": b'{"url": "x", "label_name": "its own"}',
        "dog/3.jpg": JPEG,
        "dog/3.cls": b"7",
        "dog/4.jpg": JPEG,
        "dog/4.TXT": b"upper",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return FolderSource(str(root))


def test_class_folders(tmp_path: Path) -> None:
    assert check(make_tree(tmp_path), 5) == [
        {"label": 0, "label_name": "cat"},
        {"caption": "a cat", "label": 0, "label_name": "cat"},
        {"url": "x", "label": 1, "label_name": "its own"},
        {"label": 7, "label_name": "dog"},
        {"caption": "upper", "label": 1, "label_name": "dog"},
    ]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"jpg": [JPEG] * 3, **{name: [row[name] for row in ROWS] for name in ROWS[0]}}), tmp_path / "a"
    )
    assert check(ParquetSource(str(tmp_path / "a"))) == ROWS


def test_dates_of_parquet_are_iso_text_and_stay_dates(tmp_path: Path) -> None:
    times = [datetime.datetime(2024, 2, 29, 12, 30), None]
    pq.write_table(pa.table({"jpg": [JPEG] * 2, "time": times}), tmp_path / "a")
    batch = ParquetSource(str(tmp_path / "a")).read(np.arange(2), members=True)
    assert [parse(members) for members in batch.members or []] == [{"time": time} for time in times]
    (first, _) = (bytes(members["json"]) for members in batch.members or [])
    assert b'"time": "2024-02-29T12:30:00"' in first


def test_partitions_of_parquet(tmp_path: Path) -> None:
    (tmp_path / "label=4").mkdir()
    pq.write_table(pa.table({"jpg": [JPEG], "caption": ["x"]}), tmp_path / "label=4" / "a.parquet")
    assert check(ParquetSource(str(tmp_path / "label=4" / "a.parquet"))) == [{"label": 4, "caption": "x"}]


def test_memory() -> None:
    assert check(MemorySource([JPEG] * 3, ROWS)) == ROWS
    assert check(MemorySource({"a": JPEG}, {})) == [{}]


@pytest.mark.parametrize("wrap", [lambda source: Subset(source, slice(None)), lambda source: Without(source, {})])
def test_what_forwards(wrap: Any) -> None:
    assert check(wrap(MemorySource([JPEG] * 3, ROWS))) == ROWS


def test_mixture(tmp_path: Path) -> None:
    found = check(Mixture({"tree": make_tree(tmp_path), "rows": MemorySource([JPEG] * 3, ROWS)}))
    assert [metadata["source"] for metadata in found] == ["tree"] * 5 + ["rows"] * 3
    assert found[0] == {"source": "tree", "label": 0, "label_name": "cat"}


def test_class_names_go_through(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    assert Subset(tree, [0]).class_names == ["cat", "dog"]
    assert Without(tree, {}).class_names == ["cat", "dog"]
    assert Mixture({"a": tree, "b": Subset(tree, slice(2))}).class_names == ["cat", "dog"]
    assert Mixture({"a": tree, "b": MemorySource([JPEG])}).class_names == []
    assert MemorySource([JPEG]).class_names == []


def test_unread_rows_go_through(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    (tmp_path / "cat" / "1.jpg").unlink()
    (tmp_path / "dog" / "2.jpg").write_bytes(b"")
    assert Subset(tree, [2, 1]).read(np.arange(2)).unread == {1}
    mixture = Mixture({"rows": MemorySource([JPEG, b""]), "tree": tree})
    batch = mixture.read(np.array([3, 1, 4, 0]))
    assert (sorted(batch.errors), batch.unread) == ([0, 1, 2], {0})
    left_out = Without(tree, {1: "it ends the process"}).read(np.arange(5))
    assert (left_out.errors[1], left_out.unread) == ("it ends the process", set())
    assert Without(tree, {2: "so"}).read(np.arange(5)).unread == {1}

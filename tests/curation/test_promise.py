"""README: "Ids, captions and metadata go along to the last file, kept images as their original bytes"; by each source.

Every test writes the same three photographs the way that its source has them, with a broken fourth one. It curates
them, and reads ids, captions and metadata back from the tars and from the Parquet.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator_dali as cd
from curator_dali.curation import read_fields
from tests import helpers
from tests.curation.helpers import read_members
from tests.sources.web_server import Server

BROKEN = b"\xff\xd8 is no photograph"
CAPTIONS = ["a cat, asleep", "größer — 大きい", "", "a broken one"]
LIKES = [3, 2**40, 0, 7]


@pytest.fixture(scope="module")
def images(photos: dict[str, Any]) -> list[bytes]:
    return [*(helpers.encode(crop) for _, crop in helpers.crops(photos, 3)), BROKEN]


def check_promise(source: Any, out: Path, ids: Sequence[str], images: Sequence[bytes], fields: Sequence[Any]) -> None:
    """Check that ids and fields of all samples, and the bytes of the kept ones, are in the output of a curation."""
    report = cd.curate(source, out, stages=[cd.Filter("width", min=1)], metadata=True, device="cpu", html=False)
    assert (report.kept, report.num_failed) == (3, 1)
    table = pq.read_table(next(out.glob("*.parquet")))
    assert table["image_id"].to_pylist() == list(ids)
    assert table["status"].to_pylist() == ["kept", "kept", "kept", "failed"]
    assert read_fields(table) == list(fields)
    batch = cd.open_source(out).read(np.arange(3))
    assert [item.image_id for item in batch.objects] == list(ids[:3])
    assert [item.metadata for item in batch.objects] == list(fields[:3])
    for members, image in zip(read_members(out).values(), images, strict=False):
        assert members["jpg"] == image


def write_folder(root: Path, images: Sequence[bytes]) -> list[dict[str, Any]]:
    root.mkdir(parents=True)
    for number, data in enumerate(images):
        (root / f"{number}.jpg").write_bytes(data)
        (root / f"{number}.txt").write_text(CAPTIONS[number], encoding="utf-8")
        (root / f"{number}.json").write_text(json.dumps({"likes": LIKES[number], "tags": ["a", None]}))
    return [{"likes": likes, "tags": ["a", None], "caption": text} for likes, text in zip(LIKES, CAPTIONS, strict=True)]


def test_a_folder(images: list[bytes], tmp_path: Path) -> None:
    fields = write_folder(tmp_path / "in", images)
    check_promise(tmp_path / "in", tmp_path / "out", ["0", "1", "2", "3"], images, fields)


def test_class_folders(images: list[bytes], tmp_path: Path) -> None:
    fields = write_folder(tmp_path / "in" / "cats", images[:2]) + write_folder(tmp_path / "in" / "dogs", images[2:])
    fields = [
        {**fields[number % 2], "label": number // 2, "label_name": ("cats", "dogs")[number // 2]} for number in range(4)
    ]
    ids = ["cats/0", "cats/1", "dogs/0", "dogs/1"]
    check_promise(tmp_path / "in", tmp_path / "out", ids, images, fields)


def test_a_folder_with_metadata_of_its_own(images: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, data in enumerate(images):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(data)
    days = [dt.date(2024, 5, number + 1) for number in range(4)]
    columns = {"caption": CAPTIONS, "likes": LIKES, "taken": days}
    names = [f"{number}.jpg" for number in range(4)]
    pq.write_table(pa.table({"file_name": names, **columns}), tmp_path / "in" / "metadata.parquet")
    fields = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    check_promise(tmp_path / "in", tmp_path / "out", ["0", "1", "2", "3"], images, fields)


def write_tar_members(images: Sequence[bytes]) -> tuple[list[tuple[str, bytes]], list[dict[str, Any]]]:
    members = []
    for number, data in enumerate(images):
        about = json.dumps({"likes": LIKES[number]}).encode()
        members += [(f"a/{number}.jpg", data), (f"a/{number}.json", about), (f"a/{number}.cls", b"%d" % number)]
        members.append((f"a/{number}.txt", CAPTIONS[number].encode()))
    rows = zip(LIKES, CAPTIONS, range(4), strict=True)
    return members, [{"likes": likes, "caption": caption, "label": label} for likes, caption, label in rows]


def test_a_tar(images: list[bytes], tmp_path: Path) -> None:
    members, fields = write_tar_members(images)
    path = helpers.write_tar(tmp_path / "a.tar", members)
    check_promise(path, tmp_path / "out", [f"a/{number}" for number in range(4)], images, fields)


def write_parquet(path: Path, images: Sequence[bytes]) -> list[dict[str, Any]]:
    columns: dict[str, Any] = {
        "key": ["k0", "k1", "k2", "k3"],
        "caption": CAPTIONS,
        "likes": LIKES,
        "taken": [dt.datetime(2024, 5, 1, number) for number in range(4)],
        "thumbnail": [b"\xff%d" % number for number in range(4)],
    }
    pq.write_table(pa.table({"jpg": images, **columns}), path)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_parquet(images: list[bytes], tmp_path: Path) -> None:
    fields = write_parquet(tmp_path / "a.parquet", images)
    check_promise(tmp_path / "a.parquet", tmp_path / "out", ["k0", "k1", "k2", "k3"], images, fields)


def test_memory(images: list[bytes], tmp_path: Path) -> None:
    rows = zip(LIKES, CAPTIONS, strict=True)
    more = {"raw": b"\xff", "day": dt.date(2024, 5, 1)}
    fields = [{"caption": caption, "likes": likes, **more} for likes, caption in rows]
    source = cd.MemorySource(images, fields)
    check_promise(source, tmp_path / "out", ["0", "1", "2", "3"], images, fields)


def test_a_url_of_a_tar(images: list[bytes], tmp_path: Path, server: Server) -> None:
    members, fields = write_tar_members(images)
    server.files["/a.tar"] = helpers.write_tar(tmp_path / "a.tar", members).read_bytes()
    check_promise(f"{server.url}/a.tar", tmp_path / "out", [f"a/{number}" for number in range(4)], images, fields)


def test_a_url_of_parquet(images: list[bytes], tmp_path: Path, server: Server) -> None:
    fields = write_parquet(tmp_path / "a.parquet", images)
    server.files["/a.parquet"] = (tmp_path / "a.parquet").read_bytes()
    check_promise(f"{server.url}/a.parquet", tmp_path / "out", ["k0", "k1", "k2", "k3"], images, fields)


def test_a_url_of_a_folder(images: list[bytes], tmp_path: Path) -> None:
    fields = write_folder(tmp_path / "in", images)
    url = f"memory://promise/{tmp_path.name}"
    fsspec.filesystem("memory").put(str(tmp_path / "in"), url, recursive=True)
    check_promise(url, tmp_path / "out", ["0", "1", "2", "3"], images, fields)

"""An output among the files of its data set is refused before anything is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.curation.config import check_out
from curator_dali.sources import FolderSource, MemorySource, TarSource, open_source
from tests import helpers

OPTIONS: dict[str, Any] = {"stages": [], "device": "cpu", "html": False}


@pytest.fixture
def data(tmp_path: Path, photos: dict[str, NDArray[np.uint8]]) -> Path:
    """`data/photos` of two images, `data/shards` and `data/tables` of two files."""
    samples = helpers.photo_samples(photos, 4)
    for number, (_, members) in enumerate(samples[:2]):
        path = tmp_path / "data" / "photos" / "cats" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(members["jpg"])
    helpers.write_shards(tmp_path / "data" / "shards", samples, per_shard=2)
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data" / "tables").mkdir()
    for number, (key, members) in enumerate(samples[:2]):
        table = pa.table({"key": [key], "jpg": [members["jpg"]]})
        pq.write_table(table, tmp_path / "data" / "tables" / f"{number}.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    return tmp_path


REFUSED = [
    ("data/photos", "data/photos/out"),  # whose tars would be the data set of the next run
    ("data/photos", "data/photos"),
    ("data/photos", "data/photos/cats/out"),
    ("data/photos", "data"),
    ("data/photos", "."),
    ("data/photos", "link/photos/out"),
    ("link/photos", "data/photos/out"),
    ("data/photos", "data/shards/../photos/out"),
    ("data/photos/cats/0.jpg", "data/photos/cats"),
    ("data/shards", "data/shards"),
    ("data/shards", "data/shards/out"),
    ("data/shards/*.tar", "data/shards"),
    ("data/shards/*.tar", "data"),
    ("data/*/*.tar", "data/out"),
    ("link/*/*.tar", "data/out"),
    ("data/**/*.tar", "data/out"),
    ("data/**/*.tar", "data/shards/deep/out"),
    ("data/*/00*.tar", "data/out"),
    ("data/shard*", "data/shards-out"),
    ("data/shards/{00000..00001}.tar", "data/shards"),
    (["data/shards/00000.tar", "data/shards/00001.tar"], "data/shards"),
    (["data/shards/00000.tar"], "data"),
    (["link/shards/00000.tar"], "data/shards"),
    ("data/tables", "data/tables/out"),
    ("data/tables/*.parquet", "data/tables"),
    ("data/*/*.parquet", "data/out"),
    ("data/tables/0.parquet", "data/tables"),
]
ALLOWED = [
    ("data/photos", "out"),
    ("data/photos", "data/out"),
    ("data/photos", "data/photos-out"),
    ("data/photos/cats/*.jpg", "data/photos/cats/out"),
    ("data/shards/*.tar", "data/shards/out"),
    ("data/*/*.tar", "data/shards/out"),
    (["data/shards/00000.tar", "data/shards/00001.tar"], "data/shards/out"),
    ("data/shards/{00000..00001}.tar", "out"),
    ("data/tables/0.parquet", "data/tables/out"),
]


@pytest.mark.parametrize(("source", "out"), REFUSED)
def test_refused(source: Any, out: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    before = sorted(data.rglob("*"))
    with pytest.raises(
        cd.OutputError, match=r"the output .* (is|lies in|lies around|holds files).*Choose a folder else"
    ):
        cd.curate(source, out, **OPTIONS)
    with pytest.raises(cd.OutputError, match="Choose a folder elsewhere"):  # as an object, and a part of one
        cd.curate(cd.Subset(open_source(source), slice(1)), str(data / out), **OPTIONS)
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize(("source", "out"), ALLOWED)
def test_allowed(source: Any, out: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    count = len(open_source(source))
    for _ in range(2):  # the second finds the same data set
        report = cd.curate(source, out, **OPTIONS)
        assert report.samples == count


def test_sources_made_as_objects_and_mixtures(data: Path) -> None:
    folder, tars = data / "data" / "photos", sorted(map(str, (data / "data" / "shards").glob("*.tar")))
    for source, out in (
        (FolderSource(str(folder)), folder / "out"),
        (TarSource(tars), data / "data" / "shards"),
        (cd.Mixture({"a": str(folder), "b": tars}), folder / "out"),
        (cd.Mixture({"a": str(folder), "b": tars}), data / "data" / "shards"),
        (cd.Mixture({"a": str(data / "data" / "**" / "*.tar")}), data / "data" / "out"),
        (cd.Subset(cd.Mixture({"a": str(data / "data" / "**" / "*.tar")}), [0]), data / "data" / "out"),
    ):
        with pytest.raises(cd.OutputError, match="Choose a folder elsewhere"):
            cd.curate(source, out, **OPTIONS)
        cd.curate(source, data / "out" / str(id(source)), **OPTIONS)
    image = (folder / "cats" / "0.jpg").read_bytes()
    assert cd.curate(MemorySource([image]), folder / "out", **OPTIONS).kept == 1  # of no place


def test_an_earlier_output_is_a_data_set_like_any_other(data: Path) -> None:
    first, second, third = data / "first", data / "second", data / "third"
    cd.curate(str(data / "data" / "shards"), first, **OPTIONS)
    assert cd.curate(str(first), second, **OPTIONS).kept == 4
    assert cd.curate(str(second / "*.tar"), third, **OPTIONS).kept == 4
    with pytest.raises(cd.OutputError, match="lies in the folder"):
        cd.curate(str(first), first / "more", **OPTIONS)
    stages = [cd.Filter("width", min=1)]
    for new, match in (
        (first / "new", "lies in the folder"),
        (data, "lies around the folder"),
        (data / "data" / "shards", "is the folder"),
        (data / "data" / "shards" / "new", "lies in the folder"),
    ):
        for tars in (True, False):
            with pytest.raises(cd.OutputError, match=match):
                cd.rethreshold(first, new, stages=stages, tars=tars, html=False)
    assert cd.rethreshold(first, data / "new", stages=stages, html=False).kept == 4


def test_urls(data: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path in (data / "data" / "shards").glob("*.tar"):
        fs.pipe(f"/bucket/shards/{path.name}", path.read_bytes())
    source = open_source("memory://bucket/shards/*.tar")
    for out in ("memory://bucket/shards", "memory:///bucket/shards/", "memory://bucket"):
        with pytest.raises(cd.OutputError, match="Choose a folder elsewhere"):
            cd.curate(source, out, **OPTIONS)
    for spec, out in (
        ("memory://bucket/shards", "memory://bucket/shards/out"),
        ("memory://bucket/**", "memory://bucket/x"),
    ):
        with pytest.raises(cd.OutputError, match="Choose a folder elsewhere"):
            check_out(out, origin={"spec": [spec]})
    check_out("memory://bucket/out", source)
    check_out("s3://bucket/shards", source)  # another store
    check_out("/bucket/shards", source)
    with pytest.raises(cd.OutputError, match="lies in"):
        check_out(f"file://{data}/data/photos/out", open_source(str(data / "data" / "photos")))
    fs.rm("/bucket", recursive=True)


def test_the_command_line_overwrites_no_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, tables = data / "data" / "photos", data / "data" / "tables"
    image, table = photos / "cats" / "0.jpg", tables / "0.parquet"
    before = image.read_bytes(), table.read_bytes()
    for command in (
        ["curate", str(photos), str(photos / "out"), "--dry-run"],
        ["preview", str(photos), "-o", str(image)],
        ["preview", str(photos), "-o", str(photos / "sheet.png")],
        ["preview", str(image), "-o", str(image)],
        ["verify", str(tables), "--report", str(table)],
        ["verify", str(table), "--report", str(table)],
        ["verify", str(tables / "*.parquet"), "--report", str(tables / "errors.parquet")],
    ):
        assert main([*command, "--device", "cpu"]) != 0
        assert "Choose a folder elsewhere" in capsys.readouterr().err
    assert (image.read_bytes(), table.read_bytes()) == before
    assert not [name for name in os.listdir(tables) if "errors" in name or "probe" in name]
    assert main(["verify", str(tables / "*.parquet"), "--report", str(tables / "errors.json"), "--device", "cpu"]) == 0

"""Files that rows of a Parquet file name by a path or a URL."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali import ImageLoader, curate
from curator_dali.sources import ParquetSource, open_source
from curator_dali.sources.row_groups import _FILE_LIMIT, NamedFiles, OutsideError
from curator_dali.stages import Quality
from tests.helpers import encode

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PHOTO = encode(np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8))
ALLOWED = "allow_outside=True"


def write(path: str, *names: str) -> str:
    table = pa.table({"image": pa.array([{"bytes": None, "path": name} for name in names], KIND)})
    with fsspec.open(path, "wb") as file:
        pq.write_table(table, file)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A data set in `set`, and beside it what it must not reach."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    for path in ("set/images/in.jpg", "out.jpg", "set-2.jpg"):
        (tmp_path / path).write_bytes(PHOTO)
    (tmp_path / "secret.txt").write_text("password=hunter2 and more")
    (tmp_path / "set" / "notes.txt").write_text("password=hunter2 and more")
    (tmp_path / "set" / "noise.jpg").write_bytes(b"\x00\x01hunter2")
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (tmp_path / "set" / "good_link.jpg").symlink_to("images/in.jpg")
    (tmp_path / "set" / "up").symlink_to(tmp_path)
    return tmp_path


INSIDE = [
    "images/in.jpg",
    "./images/../images/in.jpg",
    "good_link.jpg",
    "{set}/images/in.jpg",
    "file://{set}/images/in.jpg",
]
OUTSIDE = [
    "{root}/secret.txt",
    "../secret.txt",
    "../out.jpg",
    "../set-2.jpg",
    "link.jpg",
    "up/out.jpg",
    "images/../../out.jpg",
    "file://{root}/out.jpg",
    "/dev/zero",
    "http://localhost/a.jpg",
    "http://localhost@evil.example/a.jpg",
    "s3://bucket/a.jpg",
    "filecache::http://localhost/a.jpg",
    "memory://a.jpg",
]


@pytest.mark.parametrize("as_url", [False, True])
def test_files_of_a_local_parquet(tree: Path, as_url: bool) -> None:
    names = [name.format(root=tree, set=tree / "set") for name in [*INSIDE, *OUTSIDE]]
    path = write(str(tree / "set" / "0.parquet"), *names)
    source = pickle.loads(pickle.dumps(ParquetSource(f"file://{path}" if as_url else path)))
    batch = source.read(np.arange(len(names)))
    assert sorted(batch.errors) == list(range(len(INSIDE), len(names)))
    assert batch.unread == set()
    assert all(bytes(image) == PHOTO for image in batch.images[: len(INSIDE)])
    for row, reason in batch.errors.items():
        assert reason.startswith("names a file outside: ")
        assert repr(names[row]) in reason
        assert ALLOWED in reason


@pytest.mark.parametrize("spec", ["{set}/*.parquet", "{set}/0.parquet"])
def test_files_outside_are_read_where_that_is_allowed(tree: Path, spec: str) -> None:
    names = ["../out.jpg", "link.jpg", f"{tree}/out.jpg", f"file://{tree}/out.jpg", "up/out.jpg", "images/in.jpg"]
    write(str(tree / "set" / "0.parquet"), *names)
    source = open_source(spec.format(set=tree / "set"), allow_outside=True)
    assert source.read(np.arange(6)).errors == {}
    assert source.origin is not None
    assert source.origin["allow_outside"] is True


@pytest.mark.parametrize("allow_outside", [False, True])
@pytest.mark.timeout(60)
def test_what_is_no_regular_image_file(tree: Path, allow_outside: bool) -> None:
    folder = tree / "set"
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jpg"))
        with (folder / "large.jpg").open("wb") as file:
            file.truncate(_FILE_LIMIT + 1)
        names = ["pipe.jpg", "zero.jpg", "s.jpg", "large.jpg", "images", "a\0b", "gone.jpg", "noise.jpg/a", "notes.txt"]
        path = write(str(folder / "0.parquet"), *names, "noise.jpg", "x" * 5000)
        batch = ParquetSource(path, allow_outside=allow_outside).read(np.arange(11))
    assert sorted(batch.errors) == list(range(11))
    assert batch.unread == set()
    reasons = batch.errors
    assert "no regular file" in reasons[0]
    assert "no regular file" in reasons[1]
    assert "over the limit of 268,435,456" in reasons[3]
    assert "Is a directory" in reasons[4]
    assert reasons[8] == "not an image: the file 'notes.txt' begins like none"
    assert reasons[9] == "not an image: the file 'noise.jpg' begins like none"
    assert "hunter2" not in str(reasons)


def test_no_byte_of_a_file_comes_out_of_a_loader_or_a_curation(tree: Path) -> None:
    names = ["images/in.jpg", "notes.txt", "noise.jpg", "../secret.txt"]
    path = write(str(tree / "set" / "0.parquet"), *names)
    for allow_outside in (False, True):
        source = open_source(path, allow_outside=allow_outside)
        with ImageLoader(source, device="cpu") as loader:
            assert sum(map(len, loader)) == 1
        assert len(loader.errors) == 3
        assert not any(text in str(loader.errors) for text in ("hunter2", b"hunter2".hex(" ")))
        out = tree / f"out-{allow_outside}"
        report = curate(source, out, stages=[Quality()], device="cpu")
        assert (report.kept, report.num_failed) == (1, 3)
        for file in out.rglob("*"):
            assert not file.is_file() or b"hunter2" not in file.read_bytes()


def test_the_cache_of_the_hugging_face_hub(tmp_path: Path) -> None:
    """Its files are links into `blobs`, also those that a Parquet file there names."""
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    (snapshot / "data").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "aa").write_bytes(PHOTO)
    write(str(blobs / "bb"), "in.jpg", "../other.jpg")
    (snapshot / "data" / "in.jpg").symlink_to("../../../blobs/aa")
    (snapshot / "other.jpg").symlink_to("../../blobs/aa")
    (snapshot / "data" / "train.parquet").symlink_to("../../../blobs/bb")
    batch = ParquetSource(str(snapshot / "data" / "train.parquet")).read(np.arange(2))
    assert list(batch.errors) == [1]
    (tmp_path / "folder").symlink_to(snapshot / "data")  # a data set whose folder is itself a link
    assert ParquetSource(str(tmp_path / "folder" / "train.parquet")).read(np.array([0])).errors == {}


def test_files_of_a_remote_parquet(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path in ("/named/set/a b.jpg", "/named/out.jpg"):
        fs.pipe(path, PHOTO)
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    inside = ["a b.jpg", "memory://named/set/a b.jpg", "x/../a b.jpg"]
    outside = ["../out.jpg", "memory://named/out.jpg", "memory://named/set/../out.jpg", str(tmp_path / "a.jpg")]
    names = [*inside, *outside, f"file://{tmp_path}/a.jpg", "filecache::memory://named/set/a b.jpg"]
    path = write("memory://named/set/0.parquet", *names)
    batch = ParquetSource(path).read(np.arange(len(names)))
    assert {row for row in batch.errors if batch.errors[row].startswith("names a file outside")} == set(range(3, 9))
    assert 0 not in batch.errors
    assert 1 not in batch.errors
    assert ParquetSource(path, allow_outside=True).read(np.array([1, 4, 6, 7])).errors == {}
    fs.rm("/named", recursive=True)


@pytest.mark.parametrize(
    ("url", "name", "path"),
    [
        ("https://host/d/a.parquet?sig=b/c", "x.jpg", "https://host/d/x.jpg"),
        ("https://host/d/a.parquet?sig=b/c", "https://host/d/x.jpg?sig=1", "https://host/d/x.jpg?sig=1"),
        ("https://host/d/a.parquet", "https://host/e/x.jpg", None),
        ("https://host/d/a.parquet", "https://host.evil/d/x.jpg", None),
        ("https://host/d/a.parquet", "https://user@host/d/x.jpg", None),
        ("https://host/d/a.parquet", "http://host/d/x.jpg", None),
        ("https://host/d/a.parquet", "%2e%2e/x.jpg", None),
        ("s3://b/d/a.parquet", "s3://b/d/x.jpg::http://evil/y.jpg", None),
        ("s3://b/d/a.parquet", "x.jpg::http://evil/y.jpg", None),
        ("https://host/d/a.parquet", "..\\x.jpg", None),
        ("https://host/d/a.parquet", "//evil/x.jpg", None),
        ("https://host/a.parquet", "..x.jpg", "https://host/..x.jpg"),
        ("s3://bucket/a.parquet", "s3://bucket-2/x.jpg", None),
        ("filecache::s3://b/d/a.parquet", "x.jpg", "filecache::s3://b/d/x.jpg"),
        ("filecache::s3://b/d/a.parquet", "s3://b/d/x.jpg", None),
        ("zip://d/a.parquet::s3://b/c.zip", "x.jpg", "zip://d/x.jpg::s3://b/c.zip"),
        ("zip://d/a.parquet::s3://b/c.zip", "../x.jpg", None),
        ("/d/a.parquet", "x\\..\\..\\y.jpg", "/d/x\\..\\..\\y.jpg"),
        ("/a.parquet", "etc/x.jpg", "/etc/x.jpg"),
    ],
)
def test_names_are_resolved(url: str, name: str, path: str | None) -> None:
    files = NamedFiles(url, allow_outside=False)
    if path is None:
        with pytest.raises(OutsideError):
            files.resolve(name)
        NamedFiles(url, allow_outside=True).resolve(name)
    else:
        assert files.resolve(name) == path

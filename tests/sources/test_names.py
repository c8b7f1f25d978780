"""Odd names of files open as themselves, here and in stores; what is no source is refused with advice."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali import ImageLoader
from curator_dali.errors import SourceError
from curator_dali.sources import open_source
from tests.helpers import write_tar

NAMES = [
    *("plain", "with space", "a#b", "100%", "a%20b", "what?", "写真", "a+b", "a&b=c", "[1]", "semi;colon", "x{1}"),
    *("x{1,2}", "{1..3}", "a*b", "**", "a?versionId=2", "[!a]", "a:b", " "),
]


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, memory: fsspec.AbstractFileSystem, tmp_path: Path) -> str:
    return "memory://data" if request.param == "memory" else str(tmp_path / "data")


def write(url: str, content: bytes) -> None:
    if url.startswith("memory://"):
        fsspec.filesystem("memory").pipe_file(url.removeprefix("memory:/"), content)
    else:
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        Path(url).write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_opened_by_it(store: str, tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": [b"image"]}), buffer)
    tar = write_tar(tmp_path / "made.tar", [("a.jpg", b"image")]).read_bytes()
    write(f"{store}/i/{name}.jpg", b"image")
    write(f"{store}/i/{name}.txt", b"caption")
    write(f"{store}/t/{name}.tar", tar)
    write(f"{store}/p/{name}.parquet", buffer.getvalue())
    write(f"{store}/{name}/1.jpg", b"image")
    for spec, path in {
        f"{store}/i/{name}.jpg": f"{store}/i/{name}.jpg",
        f"{store}/i": f"{store}/i/{name}.jpg",
        f"{store}/i/*.jpg": f"{store}/i/{name}.jpg",
        f"{store}/t/{name}.tar": f"tar://a.jpg::{store}/t/{name}.tar",
        f"{store}/t": f"tar://a.jpg::{store}/t/{name}.tar",
        f"{store}/t/*.tar": f"tar://a.jpg::{store}/t/{name}.tar",
        f"{store}/p/{name}.parquet": f"{store}/p/{name}.parquet#row=0",
        f"{store}/p/*": f"{store}/p/{name}.parquet#row=0",
        f"{store}/{name}": f"{store}/{name}/1.jpg",
    }.items():
        for given in (spec, [spec]):
            source = open_source(given)
            batch = source.read(np.arange(len(source)), members=True)
            assert batch.errors == {}, spec
            assert [item.image_path for item in batch.objects] == [path]
            assert [bytes(image) for image in batch.images] == [b"image"]
        if spec in (f"{store}/i", f"{store}/i/*.jpg"):
            assert batch.objects[0].metadata == {"caption": "caption"}
        assert open_source(spec).fingerprint == source.fingerprint
    if name.strip():
        assert open_source(f"{store}/t/{name}.tar").name == name.partition(".")[0]
        assert open_source(f"{store}/i/{name}.jpg").read(np.arange(1)).objects[0].image_id == name


def test_a_glob_is_a_glob_where_no_file_has_its_name(store: str) -> None:
    for name in ("1", "2", "a", "what", "whatx"):
        write(f"{store}/i/{name}.jpg", name.encode())
    for pattern, names in {"[12].jpg": "12", "what?.jpg": ["whatx"], "?.jpg": "12a", "{1,a}.jpg": "1a"}.items():
        source = open_source(f"{store}/i/{pattern}")
        assert [bytes(image).decode() for image in source.read(np.arange(len(source))).images] == list(names)
    write(f"{store}/i/[12].jpg", b"itself")
    write(f"{store}/i/what?.jpg", b"itself")
    for pattern in ("[12].jpg", "what?.jpg"):
        source = open_source(f"{store}/i/{pattern}")
        assert [bytes(image) for image in source.read(np.arange(len(source))).images] == [b"itself"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.zip", "an archive, which is not read: unpack it first"),
        ("a.ZIP", "unpack it first"),
        ("a.7z", "unpack it first"),
        ("a.tfrecord", "a TFRecord file.*write its images as .tar shards"),
        ("a.rec", "a RecordIO file"),
        ("data.mdb", "an LMDB database"),
        ("a.h5", "a file of arrays"),
        ("a.npz", "a file of arrays"),
        ("a.pkl", "a pickle.*as a list"),
        ("a.arrow", "an Arrow file.*write it as Parquet"),
        ("shards.txt", r"no image\. If it lists paths or URLs, give these as a list"),
        ("shards.jsonl", "give these as a list"),
    ],
)
def test_other_containers_are_refused_with_what_to_do(store: str, name: str, advice: str) -> None:
    write(f"{store}/{name}", b"x" * 100)
    for spec in (f"{store}/{name}", [f"{store}/{name}"], f"{store}/*"):
        with pytest.raises(SourceError, match=f"{name}' as a source: it is .*{advice}"):
            open_source(spec)
    write(f"{store}/{name}", b"\xff\xd8\xff\xe0 an image")
    assert len(open_source(f"{store}/{name}")) == 1  # a file that is named itself may have any ending
    write(f"{store}/{name}", b"x" * 100)
    write(f"{store}/b.jpg", b"image")
    for spec in (store, f"{store}/*"):
        assert len(open_source(spec)) == 1  # beside images it is passed over


def test_archives_behind_fsspec_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("c/0.jpg", b"image")
    tar = write_tar(tmp_path / "a.tar", [("0.jpg", b"image")])
    for spec in (
        *(f"zip://::{tmp_path}/a.zip", f"zip://c::{tmp_path}/a.zip", f"zip::{tmp_path}/a.zip"),
        *(
            f"zip://c/0.jpg::{tmp_path}/a.zip",
            f"zip://*/*.jpg::file://{tmp_path}/a.zip",
            ["zip://*.jpg::s3://b/a.zip"],
        ),
        *(f"tar://0.jpg::{tar}", f"tar://::{tar}", f"filecache::zip://*::file://{tmp_path}/a.zip"),
        *(f"libarchive://*.jpg::{tmp_path}/a.7z", f"dir://::file://{tmp_path}"),
    ):
        with pytest.raises(
            SourceError, match=r"goes through the whole archive.*Unpack the archive and give the folder"
        ):
            open_source(spec)


@pytest.mark.parametrize("cache", ["filecache", "simplecache", "blockcache"])
def test_copies_that_fsspec_keeps_are_read(memory: fsspec.AbstractFileSystem, tmp_path: Path, cache: str) -> None:
    tar = write_tar(tmp_path / "t" / "a.tar", [("0.jpg", b"image")])
    (tmp_path / "i" / "cat").mkdir(parents=True)
    (tmp_path / "i" / "cat" / "1.jpg").write_bytes(b"image")
    for spec in (
        f"file://{tar}",
        f"file://{tar.parent}",
        f"file://{tar.parent}/*.tar",
        f"file://{tmp_path}/i",
        f"{tar}",
    ):
        source = open_source(f"{cache}::{spec}")
        batch = source.read(np.arange(1))
        assert batch.errors == {}
        assert bytes(batch.images[0]) == b"image"


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("pipe:cat a.tar", "no commands are run. Give the tars themselves"),
        ("pipe:aws s3 cp s3://b/{0..9}.tar -", "no commands are run"),
        ("a.tar\n", "white space: that name without it is there"),
        ("gone.tar ", "white space: leave it out"),
        ("imagenet-1k", "data set of the Hugging Face hub"),
        ("ILSVRC/imagenet-1k", "hf://datasets/OWNER/NAME"),
        ("/gone/a.tar", r"nothing there: '/gone/a\.tar'\. A source is a folder"),
    ],
)
def test_names_of_nothing_are_refused_with_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, advice: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(SourceError, match=advice):
        open_source(spec)
    with pytest.raises(SourceError, match=advice):
        ImageLoader(spec, device="cpu")


def test_white_space_behind_the_name_of_a_file_in_a_store(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/a.jpg", b"image")
    with pytest.raises(SourceError, match="begins or ends with white space"):
        open_source("memory://a.jpg\n")

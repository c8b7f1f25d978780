"""From what a user writes to a source; and images in memory."""

from __future__ import annotations

import logging
import pickle
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali.errors import SourceError
from curator_dali.sources import FolderSource, MemorySource, ParquetSource, Source, TarSource, open_source, reopen
from curator_dali.sources.listing import expand_braces
from tests.helpers import write_tar


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for n in range(4):
        write_tar(tmp_path / "shards" / f"{n:05d}.tar", [(f"{n}.jpg", b"%d" % n)])
        pq.write_table(pa.table({"jpg": [b"%d" % n]}), tmp_path / "shards" / f"{n:05d}.parquet")
    (tmp_path / "shards" / "00000_stats.json").write_text("{}")
    for name in ("cats/a.jpg", "dogs/b.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        (tmp_path / "tree" / name).write_bytes(b"image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(source: Source) -> list[str]:
    return [obj.image_id for obj in source.read(np.arange(len(source))).objects]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a"]),
        ("{000..003}.tar", ["000.tar", "001.tar", "002.tar", "003.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{x,y}{1..2}", ["x1", "x2", "y1", "y2"]),
        ("{a,b{1..2}}", ["a", "b1", "a", "b2"]),
        ("{only}/{}", ["{only}/{}"]),
        ("s3://b/{train,val}-{0..1}.tar", [f"s3://b/{s}-{n}.tar" for s in ("train", "val") for n in (0, 1)]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert sorted(set(expand_braces(pattern))) == sorted(set(expected))
    if "{1..2}}" not in pattern:
        assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "shards",
        "shards/",
        "shards/*.tar",
        "shards/{00000..00003}.tar",
        "shards/0000[0-3].tar",
        ["shards/00000.tar", "shards/{00001,00002}.tar", "shards/00003.tar"],
        "**/*.tar",
        Path("shards"),
        [Path("shards/00000.tar"), "shards/0000[1-3].tar"],
    ],
    ids=str,
)
def test_tars(data: Path, spec: object) -> None:
    source = open_source(spec)
    assert isinstance(source, TarSource)
    assert source.name == "shards"
    assert ids(source) == ["0", "1", "2", "3"]


def test_parquet(data: Path) -> None:
    source = open_source("shards/*.parquet", image_column="jpg")
    assert isinstance(source, ParquetSource)
    assert len(source) == 4
    for tar in (data / "shards").glob("*.tar"):
        tar.unlink()
    assert isinstance(open_source("shards"), ParquetSource)
    (data / "hub" / "data").mkdir(parents=True)  # as Hugging Face lays a data set out
    (data / "shards" / "00000.parquet").rename(data / "hub" / "data" / "train-0.parquet")
    hub = open_source("hub")
    assert isinstance(hub, ParquetSource)
    assert hub.name == "hub"


def test_folders_and_image_files(data: Path) -> None:
    source = open_source("tree")
    assert isinstance(source, FolderSource)
    assert ids(source) == ["cats/a", "dogs/b"]
    assert source.read(np.array([1])).objects[0].metadata == {"label": 1, "label_name": "dogs"}
    plain = open_source("tree", label_from_folder=False, name="mine")
    assert plain.read(np.array([1])).objects[0].metadata == {}
    assert plain.name == "mine"
    (data / "tree" / "cats" / "a.txt").write_text("a cat")
    one = open_source("tree/cats/a.jpg")
    assert one.read(np.array([0])).objects[0].metadata == {"caption": "a cat"}
    assert ids(open_source("tree/*/*.*g")) == ["cats/a", "dogs/b"]


@pytest.mark.timeout(20)  # a glob follows two such links for ever
@pytest.mark.parametrize(
    ("names", "kind", "count"),
    [
        (["deep/b.tar", "deep/a.tar", "also/c.parquet"], TarSource, 2),
        (["deep/b.pq", "also/c.parquet"], ParquetSource, 2),
        (["also/a.tar", "deep/b.jpg"], FolderSource, 1),
    ],
)
def test_what_lies_deeper_is_found_once_where_links_lead_back(
    tmp_path: Path, names: list[str], kind: type[Source], count: int
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".tar"):
            write_tar(tmp_path / name, [(f"{name}.jpg", b"1")])
        else:
            pq.write_table(pa.table({"jpg": [b"1"]}), tmp_path / name)
    for link in ("one", "two"):
        (tmp_path / "deep" / link).symlink_to(tmp_path)
    source = open_source(tmp_path)
    assert isinstance(source, kind)
    assert len(source) == count


def test_sources_and_memory_are_taken_as_they_are(data: Path) -> None:
    source = open_source("tree")
    assert open_source(source) is source
    assert ids(open_source({"x": b"1", "y": b"2"})) == ["x", "y"]
    assert ids(open_source([b"1", bytearray(b"2"), np.frombuffer(b"3", np.uint8)])) == ["0", "1", "2"]
    assert ids(open_source(b"\xff\xd8")) == ["0"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", r"nothing there: 'nowhere'.*a glob.*relative paths count from"),
        ("shards/*.zip", r"nothing there: 'shards/\*\.zip'"),
        ("shards/{00002..00005}.tar", r"nothing there: 'shards/00004\.tar', 'shards/00005\.tar' \(of"),
        ("", "cannot open ''"),
        ([], r"cannot open \[\]"),
        (None, "cannot open None"),
        (7, "cannot open 7"),
        (["tree", 7], r"cannot open 7 \(int\)"),
        ("shards/*", "parquet and tar"),
        ("shards/*.json", "cannot open 'shards/00000_stats.json' as a source: it is no image"),
        (["shards/00000.tar", "shards/00000.parquet"], "parquet and tar"),
        (["tree", "tree"], "cannot open 2 folders"),
        ("empty", "holds no images"),
        ("mixed", r"holds both 1 \.tar and 1 image files"),
        ("packed.tar.gz", "compressed tar.*unpack it first"),
        ("bogus://x/*.tar", "bogus"),
    ],
)
def test_what_cannot_be_opened_says_why_and_what_can(data: Path, spec: object, message: str) -> None:
    (data / "empty").mkdir()
    (data / "packed.tar.gz").write_bytes(b"\x1f\x8b")
    write_tar(data / "mixed" / "a.tar", [])
    (data / "mixed" / "b.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_a_name_with_special_characters_is_itself_if_it_is_there(data: Path) -> None:
    write_tar(data / "odd" / "{a,b}[1].tar", [("x.jpg", b"1")])
    assert ids(open_source("odd/{a,b}[1].tar")) == ["x"]


def test_memory() -> None:
    images = {"a": b"\xff\xd81", "b": b"\x89PNG", "c": b""}
    source = MemorySource(images, {"b": {"caption": "x"}}, name="mine")
    batch = source.read(np.array([1, 0, 1, 2]), members=True)
    assert [obj.image_id for obj in batch.objects] == ["b", "a", "b", "c"]
    assert [obj.metadata for obj in batch.objects] == [{"caption": "x"}, {}, {"caption": "x"}, {}]
    assert list(batch.errors) == [3]
    assert batch.members is not None
    assert [list(m) for m in batch.members[:2]] == [["png", "txt"], ["jpg"]]
    batch.images[0][0] = 0  # writable, and nobody else's
    assert bytes(batch.images[2]) == images["b"] == bytes(source.read(np.array([1])).images[0])
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint != MemorySource([b"1"]).fingerprint
    with pytest.raises(SourceError, match="encoded"):
        MemorySource([np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(SourceError, match="str"):
        MemorySource(["a"])  # type: ignore[list-item]
    with pytest.raises(SourceError, match="2 images need as many metadata, not 1"):
        MemorySource([b"1", b"2"], [{}])


def labels(source: Source) -> list[str | None]:
    return [item.metadata.get("label_name") for item in source.read(np.arange(len(source))).objects]


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/1.jpg", "a/1.txt", "c/2.png", "c/deep/3.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"image")
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train-2").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "train"


@pytest.mark.parametrize(
    ("spec", "names", "found"),
    [
        ("train", "abc", "acc"),
        ("train/*", "abc", "acc"),
        ("train/*/", "abc", "acc"),
        ("train/{a,c}", "ac", "acc"),
        (["train/a", "train/c"], "ac", "acc"),
        (["train/a", "train/b"], "ab", "a"),
        ("train/[a]", "a", "a"),
        ("train/*/*.*g", "abc", "ac"),
        ("train/**/*.jpg", "abc", "ac"),
        ("train/a*/*.jpg", "a", "a"),
        ("train/**", "abc", "acc"),
    ],
    ids=str,
)
def test_class_folders_by_a_glob_or_a_list(classes: Path, spec: object, names: str, found: str) -> None:
    source = open_source(spec)
    assert isinstance(source, FolderSource)
    assert source.class_names == list(names)
    assert labels(source) == list(found)
    assert ids(source)[0] == "a/1"
    assert source.read(np.array([0])).objects[0].metadata["caption"] == "image"
    assert labels(open_source(spec, label_from_folder=False)) == [None] * len(found)
    again = reopen(source.origin or {})
    assert again.fingerprint == source.fingerprint


def test_folders_of_tars_by_a_glob(data: Path) -> None:
    (data / "shards" / "00000.tar").rename(data / "shards" / "more.tar")
    write_tar(data / "sets" / "a" / "0.tar", [("x.jpg", b"1")])
    write_tar(data / "sets" / "b" / "1.tar", [("y.jpg", b"1")])
    assert ids(open_source("sets/*")) == ["x", "y"]
    with pytest.raises(SourceError, match="folder and tar"):
        open_source(["sets/a", "tree"])


@pytest.mark.parametrize(
    "spec",
    [["train/a", "train/a"], ["train", "train-2", "train/c"], ["/", "/"], ["train/a", "train/c/2.png"], "train/b"],
)
def test_folders_that_are_no_classes_of_one(classes: Path, spec: Any) -> None:
    with pytest.raises(SourceError, match=r"give the folder that holds them|holds folder and image|holds no images"):
        open_source(spec)


def test_a_glob_passes_over_what_is_no_image(classes: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("notes.txt", "film.mp4", "README.md", "2.txt"):
        (classes / "c" / name).write_text("-")
    assert ids(open_source("train/c/*")) == ["2"]
    assert [record.getMessage() for record in caplog.records] == [
        "passing over 2 files and 1 folder of train/c/*: 1 .mp4, 1 .txt"
    ]
    caplog.clear()
    assert ids(open_source("train/c/*.*")) == ["2"]
    assert "passing over 2 files of train/c/*.*: 1 .mp4, 1 .txt" in caplog.text


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xd8\xff",
        b"P6\n3 4",
        b"8BPS\0\1",
        b"qoif\0",
        b"\0\0\1\0\1",
        b"DDS |",
        b"\1\xda\1",
        b"\x0a\5\1\x08",
        b"\xff\x4f\xff\x51",
    ],
)
def test_a_file_named_by_hand_may_have_any_ending(tmp_path: Path, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("k", "l.jpg_large"):
        (tmp_path / name).write_bytes(head)
    assert ids(open_source("./k")) == ["k"]
    assert ids(open_source(["./l.jpg_large", tmp_path / "k"])) == ["l", "k"]


def test_a_file_named_by_hand_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("PS: no image")
    with pytest.raises(SourceError, match=r"cannot tell what .*notes\.xyz' is: .*begins with b'PS: no image'"):
        open_source(tmp_path / "notes.xyz")


@pytest.mark.parametrize(
    ("files", "warned"),
    [
        (
            [
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            1,
        ),
        (["train.parquet", "test.parquet"], 1),
        (["train/0000.parquet", "validation/0000.parquet"], 1),
        (["train-0.tar", "val-0.tar"], 1),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], 0),
        (["training_data.parquet", "latest.parquet"], 0),
        (["0.tar", "1.tar"], 0),
    ],
)
def test_splits_in_one_folder_are_told(
    tmp_path: Path, files: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".tar"):
            write_tar(tmp_path / name, [(f"{number}.jpg", b"1")])
        else:
            pq.write_table(pa.table({"jpg": [b"1"]}), tmp_path / name)
    assert len(open_source(tmp_path)) == len(files)
    assert ("and all are read as one data set" in caplog.text) == bool(warned)
    caplog.clear()
    open_source([tmp_path / name for name in files])  # named by hand: as wanted
    open_source(tmp_path, label_from_folder=False)
    assert caplog.records == []


def test_files_of_img2dataset_open_as_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for shard in ("00000", "00001"):
        (tmp_path / shard).mkdir()
        (tmp_path / shard / f"{shard}0.jpg").write_bytes(b"image")
        pq.write_table(pa.table({"key": [f"{shard}0"]}), tmp_path / f"{shard}.parquet")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
    assert ids(open_source(tmp_path)) == ["00000/000000", "00001/000010"]
    assert caplog.records == []


def test_an_output_of_a_curation_below_is_no_data(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(data / "all" / "deep" / "0.tar", [("x.jpg", b"1")])
    write_tar(data / "all" / "out" / "1.tar", [("y.jpg", b"1")])
    (data / "all" / "out" / "_manifest").mkdir()
    with caplog.at_level(logging.INFO):
        assert ids(open_source("all")) == ["x"]
    assert "is the output of a curation" in caplog.text
    assert ids(open_source("all/out")) == ["y"]


def make(root: Path, names: list[str]) -> Path:
    """Write files that hold what their endings say, or an image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif name.endswith(".tar"):
            write_tar(path, [(f"{name.replace('/', '-')}.jpg", b"1")])
        elif name.endswith((".parquet", ".PQ")):
            pq.write_table(pa.table({"jpg": [b"1"]}), path)
        else:
            path.write_bytes(b"\xff\xd8")
    return root


USUAL = [
    "README",
    "0_stats.json",
    "0.json",
    "0.idx",
    "0.tar.cdindex",
    "metadata.csv",
    ".git/x",
    "_SUCCESS",
    "_tmp/x.cr2",
]


@pytest.mark.parametrize(
    ("names", "size", "message"),
    [
        (
            ["0.tar", "2.tar.gz", "3", "sub/1.tar", "sub/x.jpg"],
            1,
            "2 files and 1 folder of d: 1 .tar.gz, 1 without an en",
        ),
        (["0.tar", "0.parquet", *USUAL], 1, ""),
        (["0.tar", "x.parquet"], 1, "1 file of d: 1 .parquet"),
        (["0.tar", "out/_manifest/run.json"], 1, ""),
        (["0.tar", "1.parquet", "report.html", "_manifest/run.json"], 1, ""),
        (["a.parquet", "label=cat/b.parquet"], 1, "1 folder of d"),
        (["0.PQ", "x.mp4", *USUAL], 1, "1 file of d: 1 .mp4"),
        (["a/0.tar", "b/1.parquet", "b/x.tgz", "b/README.md"], 1, "2 files of d: 1 .parquet, 1 .tgz"),
        (["a/0.parquet", "a/_SUCCESS", "a/_temporary/1.parquet"], 1, ""),
        (["b/0.tar", "1.jpg"], 1, "1 file of"),
    ],
)
def test_what_a_folder_of_shards_holds_besides_is_told(
    tmp_path: Path,
    names: list[str],
    size: int,
    message: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "d", names)
    monkeypatch.chdir(tmp_path)
    assert len(open_source("d", index="none")) == size
    records = [record.getMessage() for record in caplog.records]
    assert len(records) == bool(message)
    assert f"passing over {message}" in "".join(records) or not message


def test_several_folders_of_shards_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, ["a/0.tar", "a/x.mp4", "b/1.tar", "b/sub/2.tar"])
    open_source(f"{tmp_path}/*")
    assert [record.getMessage() for record in caplog.records] == [
        f"passing over 1 file and 1 folder of {tmp_path}/*: 1 .mp4"
    ]


def test_what_a_remote_folder_of_shards_holds_besides_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"jpg": [b"1"]}), table)
    fs.pipe({"/d/0.parquet": table.getvalue().to_pybytes(), "/d/x.zip": b"1", "/d/k=1/1.parquet": b"1", "/d/_t/x": b""})
    assert len(open_source("memory://d")) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "passing over 1 file and 1 folder of memory://d: 1 .zip"
    ]
    fs.store.clear()


@pytest.mark.parametrize(
    ("names", "kind", "size"),
    [
        (["a.parquet", "a/"], ParquetSource, 1),
        (["a.parquet", "b.parquet", "a/"], ParquetSource, 2),
        (["a.parquet", "a/x.parquet"], ParquetSource, 1),
        (["metadata.parquet", "part-0.parquet"], ParquetSource, 2),
        (["metadata.parquet"], ParquetSource, 1),
        (["0.parquet", "0/1.jpg", "1.parquet", "1/"], FolderSource, 1),  # img2dataset got no image of the last shard
        (["0.parquet", "0/1.jpg", "b.parquet"], ParquetSource, 1),
    ],
)
def test_a_parquet_file_is_a_table_of_metadata_only_beside_images(
    tmp_path: Path, names: list[str], kind: type[Source], size: int
) -> None:
    source = open_source(make(tmp_path / "d", names))
    assert isinstance(source, kind)
    assert len(source) == size


@pytest.mark.parametrize("spec", ["d/*.parquet", ["d/a.parquet", "d/b.parquet"], "d", "d/*"])
def test_folders_named_like_shards_are_opened(tmp_path: Path, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "d", [f"{k}.parquet/{name}" for k in "ab" for name in ("0.parquet", "_SUCCESS", "_t/1.parquet")])
    make(tmp_path / "t", ["x.tar/0.tar", "y.tar"])
    monkeypatch.chdir(tmp_path)
    assert len(open_source(spec)) == 2
    assert ids(open_source("t/*.tar")) == ["x", "y"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("d/*/*.jpg", ["cat/1", "dog/2"]),
        ("d/**/*.jpg", ["cat/1", "dog/2"]),
        ("d/*", ["cat/1", "dog/2"]),
        ("d/bob/*.jpg", ["3"]),
        ("d/b*/*.jpg", ["bob/3"]),
        ("d/b*", ["bob/3", "bob/deep/4"]),
        ("d/bob/**/*.jpg", ["3", "deep/4"]),
        ("*/bob/*.jpg", ["d/bob/3"]),
        ("t/*/*.tar", ["in-0"]),
        ("t/out/*.tar", ["out-1"]),
        ("runs/*", ["a-0", "b-1"]),
        ("runs/*/*.tar", ["a-0", "b-1"]),
    ],
)
def test_outputs_of_curations_by_a_glob(
    tmp_path: Path, spec: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "d", ["cat/1.jpg", "dog/2.jpg", "bob/3.jpg", "bob/deep/4.jpg", "bob/_manifest/"])
    make(tmp_path / "t", ["in/0.tar", "out/1.tar", "out/_manifest/"])
    make(tmp_path / "runs", ["a/0.tar", "a/_manifest/", "b/1.tar", "b/_manifest/", "notes.txt"])
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        source = open_source(spec)
    assert ids(source) == expected
    assert ("in outputs of curations" in caplog.text) == (spec in ("d/*/*.jpg", "d/**/*.jpg", "d/*", "t/*/*.tar"))
    if spec in ("d/*/*.jpg", "d/*"):
        assert source.class_names == ["cat", "dog"]


def test_images_by_hand_with_only_the_top_in_common_have_no_labels(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        paths = [make(Path(elsewhere), ["a.jpg"]) / "a.jpg", make(tmp_path, ["b.jpg"]) / "b.jpg"]
        source = open_source(paths)
        assert labels(source) == [None, None]
        assert source.read(np.arange(2)).errors == {}
        source = open_source([f"file://{path}" for path in paths])
        assert labels(source) == [None, None]
        assert source.read(np.arange(2)).errors == {}
    fs = fsspec.filesystem("memory")
    fs.pipe({"/one/a.jpg": b"1", "/two/b.jpg": b"2"})
    source = open_source(["memory://one/a.jpg", "memory://two/b.jpg"])
    batch = source.read(np.arange(2))
    assert [bytes(image) for image in batch.images] == [b"1", b"2"]
    assert [item.image_path for item in batch.objects] == ["memory://one/a.jpg", "memory://two/b.jpg"]
    assert labels(source) == [None, None]
    with pytest.raises(SourceError, match="lie in different stores"):
        open_source([tmp_path / "b.jpg", "memory://one/a.jpg"])
    fs.store.clear()


def test_a_glob_through_a_cache(tmp_path: Path) -> None:
    make(tmp_path / "d", ["cat/1.jpg", "dog/2.jpg"])
    source = open_source(f"simplecache::file://{tmp_path}/d/*/*.jpg")
    batch = source.read(np.arange(2))
    assert batch.errors == {}
    assert batch.objects[0].image_path == f"simplecache::file://{tmp_path}/d/cat/1.jpg"
    assert labels(source) == ["cat", "dog"]


def test_local_names_that_look_like_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "d", ["a::b.jpg", "c.jpg"])
    monkeypatch.chdir(tmp_path)
    for spec in ("d", "d/*.jpg"):
        source = open_source(spec)
        assert ids(source) == ["a::b", "c"]
        assert source.read(np.arange(2)).errors == {}


def test_paths_may_be_in_an_array(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [("1.jpg", b"x")])
    paths = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    arrays: list[Any] = [np.array(paths), np.array(paths, object), [np.str_(path) for path in paths], pd.Series(paths)]
    for array in arrays:
        source = open_source(array)
        assert len(source) == 2
        assert source.origin is not None
        assert source.origin["spec"] == paths
    assert len(open_source(np.str_(paths[0]))) == len(TarSource(Path(paths[0]))) == 1

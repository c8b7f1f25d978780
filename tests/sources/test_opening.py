"""From what a user writes to a source; and images in memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali.errors import SourceError
from curator_dali.sources import FolderSource, MemorySource, ParquetSource, Source, TarSource, open_source
from curator_dali.sources.opening import expand_braces
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
        ("shards/*.json", "cannot tell what 'shards/00000_stats.json' is"),
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

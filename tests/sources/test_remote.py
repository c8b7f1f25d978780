"""Sources behind fsspec: its in-memory filesystem, and a real HTTP server on this machine."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curator_dali.errors import SourceError
from curator_dali.io import ranges as storage
from curator_dali.sources import FolderSource, ParquetSource, TarSource, open_source
from tests.helpers import write_tar
from tests.sources.web_server import Server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_RETRY_DELAYS", (0.01, 0.01))


def tar_bytes(tmp_path: Path, shard: int, count: int = 6, size: int = 700) -> bytes:
    members = []
    for n in range(count):
        members += [(f"{shard}-{n}.jpg", bytes([shard, n]) * size), (f"{shard}-{n}.json", b'{"n": %d}' % n)]
    return write_tar(tmp_path / "made.tar", members).read_bytes()


def check(source: TarSource, order: list[int], size: int = 700) -> None:
    batch = source.read(np.array(order), members=True)
    assert batch.errors == {}
    for row, index in enumerate(order):
        shard, n = divmod(index, 6)
        assert bytes(batch.images[row]) == bytes([shard, n]) * size
        assert batch.images[row].flags.writeable
        assert batch.objects[row].image_id == f"{shard}-{n}"
        assert batch.objects[row].metadata == {"n": n}
        assert batch.members is not None
        assert list(batch.members[row]) == ["jpg", "json"]


ORDER = [7, 0, 11, 3, 3, 8]


def test_tars_in_memory(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for shard in range(2):
        memory.pipe(f"/data/{shard}.tar", tar_bytes(tmp_path, shard))
    for spec in ("memory://data/{0..1}.tar", "memory://data/*.tar", "memory://data", "memory:///data/"):
        source = open_source(spec)
        assert isinstance(source, TarSource)
        assert source.read_ahead == 8
        assert source.name == "data"
        check(source, ORDER)
        check(pickle.loads(pickle.dumps(source)), ORDER)
        source.close()
    with fsspec.open(source.read(np.array([7])).objects[0].image_path) as file:
        assert file.read() == bytes([1, 1]) * 700


def test_large_members_are_passed_over_when_indexing(server: Server, tmp_path: Path) -> None:
    data = server.files["/big.tar"] = tar_bytes(tmp_path, 0, size=1_500_000)
    source = open_source(f"{server.url}/big.tar")
    assert len(source) == 6
    indexed = server.ranges_sent("/big.tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        headers = [member.offset_data - 512 for member in tar]
    assert all(any(begin <= place < end for begin, end in indexed) for place in headers)
    assert sum(end - begin for begin, end in indexed) <= (len(headers) // 2 + 1) * ((1 << 20) + 1024) < len(data) // 2
    server.requests.clear()
    check(source, [5, 0], size=1_500_000)
    images = [(place + 512, place + 512 + 3_000_000) for place in headers[::2]]
    read = server.ranges_sent("/big.tar")
    assert [min(begin for begin, _ in read), max(end for _, end in read)] == [images[0][0], headers[-1] + 512 + 8]
    assert sum(end - begin for begin, end in read) < 2 * 3_000_000 + 4096  # two images and two sidecars, no third
    with pytest.raises(SourceError, match="1 of 1 shards"):
        open_source(f"{server.url}/gone.tar")


def test_tars_over_http(server: Server, tmp_path: Path) -> None:
    for shard in range(2):
        server.files[f"/s/{shard}.tar"] = tar_bytes(tmp_path, shard)
    source = open_source(f"{server.url}/s/{{0..1}}.tar")
    check(source, ORDER)
    gets = len(server.requests)
    source.read(np.arange(12))
    assert len(server.requests) == gets + 2  # one request a shard: neighbours are read together
    again = open_source(f"{server.url}/s/{{0..1}}.tar")  # the index was kept
    looks, *rest = server.requests[gets + 2 :]
    assert looks == ("GET", "/s/.curator_dali_index/files.arrow None")
    assert {command for command, _ in rest} == {"HEAD"}
    check(again, ORDER)
    obj = source.read(np.array([7])).objects[0]
    assert obj.image_path == f"tar://1-1.jpg::{server.url}/s/1.tar"
    with fsspec.open(obj.image_path) as file:
        assert file.read() == bytes([1, 1]) * 700


def test_a_query_is_no_glob(server: Server, tmp_path: Path) -> None:
    server.files["/0.tar?key=a*b"] = tar_bytes(tmp_path, 0)
    source = open_source(f"{server.url}/0.tar?key=a*b")
    check(source, [2, 0])
    assert source.name == "0"


def test_requests_that_fail_are_tried_again_and_then_cost_their_rows(server: Server, tmp_path: Path) -> None:
    for shard in range(2):
        server.files[f"/{shard}.tar"] = tar_bytes(tmp_path, shard)
    source = open_source([f"{server.url}/{shard}.tar" for shard in range(2)])
    server.failures["/1.tar"] = 2
    check(source, ORDER)
    server.failures["/1.tar"] = 99
    batch = source.read(np.array(ORDER))
    assert sorted(batch.errors) == [0, 2, 5]
    assert batch.unread == {0, 2, 5}
    assert "500" in batch.errors[0]
    assert bytes(batch.images[1]) == bytes([0, 0]) * 700
    del server.files["/0.tar"]
    assert "FileNotFoundError" in source.read(np.array([0])).errors[0]
    with pytest.raises(SourceError, match="1 of 1 shards cannot be read"):
        open_source(f"{server.url}/0.tar")


@pytest.mark.parametrize("members", [False, True])
def test_a_sample_of_which_a_part_cannot_be_read_is_unread(server: Server, tmp_path: Path, members: bool) -> None:
    far = bytes(600_000)  # so that each member is a request of its own
    names = ["a.jpg", "a.json", "a.npy", "b.bin", "b.json", "c.txt", "c.jpg"]
    path = write_tar(tmp_path / "a.tar", [pair for name in names for pair in ((name, b"{}"), (f".{name}", far))])
    with tarfile.open(path) as tar:
        places = {member.name: member.offset_data for member in tar}
    server.files["/a.tar"] = path.read_bytes()
    source = open_source(f"{server.url}/a.tar")
    assert len(source) == 3
    for lost, unread in (
        ("a.jpg", {0}),
        ("a.json", {0}),
        ("a.npy", {0} if members else set()),
        ("b.json", set()),  # the index says that b has no image: a verdict, whatever can be read
        ("c.txt", {2}),
    ):
        server.broken = places[lost]
        batch = source.read(np.arange(3), members=members)
        assert batch.unread == unread, lost
        assert set(batch.errors) == unread | {1}
        assert all("500" in batch.errors[row] for row in unread)
        assert "no image member" in batch.errors[1]
        if lost != "a.jpg" and unread:
            assert "a member beside the image cannot be read" in batch.errors[min(unread)]
    server.broken = -1
    batch = source.read(np.arange(3), members=members)
    assert batch.unread == set()
    assert list(batch.errors) == [1]


def test_a_store_that_fails_when_an_index_is_made_again(server: Server, tmp_path: Path) -> None:
    for shard in range(2):
        server.files[f"/{shard}.tar"] = tar_bytes(tmp_path, shard)
    source = open_source(f"{server.url}/{{0..1}}.tar", index="none")
    assert len(source) == 12
    source.close()
    server.failures["/1.tar"] = 99
    batch = source.read(np.array(ORDER))
    assert batch.unread == batch.errors.keys() == {0, 2, 5}
    assert "500" in batch.errors[0]
    with pytest.raises(SourceError, match=r"1 of 2 shards cannot be read.*1\.tar.*500"):
        len(open_source(f"{server.url}/{{0..1}}.tar", index="none"))


def test_a_new_signature_or_time_is_the_same_data_set_and_new_content_another(server: Server, tmp_path: Path) -> None:
    def fingerprint(query: str, etag: str) -> str:
        server.files[f"/0.tar{query}"] = data
        server.etag = etag
        return open_source(f"{server.url}/0.tar{query}", index="none").fingerprint

    data = tar_bytes(tmp_path, 0)
    base = fingerprint("?Signature=a/b", "")
    assert fingerprint("?Signature=c/d", '"65f1b3a2-1c00"') == fingerprint("", 'W/"0x8DC"') == base  # times
    hashed = {fingerprint("", '"d41d8cd98f00b204e9800998ecf8427e"'), fingerprint("", '"' + "e" * 32 + '-7"')}
    assert len(hashed | {base}) == 3
    data = tar_bytes(tmp_path, 1)
    assert fingerprint("", "") != base


def test_names_of_classes_beside_remote_tars(
    memory: fsspec.AbstractFileSystem, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = b'{"class_names": ["cat", "dog"]}'
    memory.pipe({"/out/0.tar": tar_bytes(tmp_path, 0), "/out/_manifest/run.json": record})
    assert open_source("memory://out/0.tar").class_names == ["cat", "dog"]
    server.files = {"/out/0.tar?key=a/b": tar_bytes(tmp_path, 0)}
    assert open_source(f"{server.url}/out/0.tar?key=a/b").class_names == []
    assert caplog.text == ""
    server.files["/out/_manifest/run.json"] = record
    assert open_source(f"{server.url}/out/0.tar?key=a/b").class_names == ["cat", "dog"]
    server.failures["/out/_manifest/run.json"] = 99
    assert open_source(f"{server.url}/out/0.tar?key=a/b").class_names == []
    assert "cannot read names of classes" in caplog.text


def test_an_unknown_protocol_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_RETRY_DELAYS", ("no time to sleep",))
    (found,) = storage.Storage().cat([("bogus://a.jpg", None, None)])
    assert isinstance(found, SourceError)
    assert "bogus" in str(found)


def test_a_server_without_ranges_says_so(server: Server, tmp_path: Path) -> None:
    server.files["/0.tar"] = tar_bytes(tmp_path, 0, size=2_000_000)
    server.ranges = False
    with pytest.raises(SourceError, match=r"does not serve byte ranges.*simplecache"):
        len(open_source(f"{server.url}/0.tar"))
    server.ranges = True
    source = open_source(f"{server.url}/0.tar")
    assert len(source) == 6
    server.ranges = False
    assert "does not serve byte ranges" in source.read(np.array([2])).errors[0]


def test_a_remote_tar_that_was_replaced_by_a_shorter_one(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.pipe("/0.tar", tar_bytes(tmp_path, 0))
    source = open_source("memory://0.tar")
    assert len(source) == 6
    memory.pipe("/0.tar", tar_bytes(tmp_path, 0)[:4900])
    batch = source.read(np.arange(6))
    assert batch.unread == batch.errors.keys() == set(range(6))  # also the first: its bytes may be another tar's
    assert "was cut at byte 4900" in batch.errors[3]
    fresh = open_source("memory://0.tar")  # not served from the old index
    assert sum("truncated" in reason for reason in fresh.read(np.arange(len(fresh))).errors.values()) == 1


def test_a_folder_in_memory(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({"/t/cats/a.jpg": b"cat", "/t/cats/a.json": b'{"x": 1}', "/t/dogs/b.png": b"dog", "/t/.h/c.jpg": b"-"})
    source = open_source("memory://t")
    assert isinstance(source, FolderSource)
    batch = source.read(np.array([1, 0]), members=True)
    assert [obj.image_path for obj in batch.objects] == ["memory://t/dogs/b.png", "memory://t/cats/a.jpg"]
    assert [bytes(data) for data in batch.images] == [b"dog", b"cat"]
    assert batch.objects[1].metadata == {"x": 1, "label": 0, "label_name": "cats"}
    assert batch.members is not None
    assert {ext: bytes(data) for ext, data in batch.members[1].items()} == {
        "jpg": b"cat",
        "json": b'{"x": 1, "label_name": "cats"}',
        "cls": b"0",
    }
    memory.rm("/t/cats/a.jpg")
    lost = source.read(np.array([0]))
    assert "FileNotFoundError" in lost.errors[0]
    assert lost.unread == {0}  # it was listed
    with pytest.raises(SourceError):
        open_source("memory://nowhere/*.tar")


def test_parquet_in_memory(memory: fsspec.AbstractFileSystem) -> None:
    buffer = io.BytesIO()
    rows = [{"bytes": b"\xff\xd8%d" % n, "path": None} for n in range(5)] + [{"bytes": None, "path": "x/side.jpg"}]
    pq.write_table(pa.table({"image": rows, "n": list(range(6))}), buffer, row_group_size=2)
    memory.pipe({"/p/0.parquet": buffer.getvalue(), "/p/x/side.jpg": b"\xff\xd8beside"})
    source = open_source("memory://p/*.parquet")
    assert isinstance(source, ParquetSource)
    batch = source.read(np.array([5, 4, 0]))
    assert batch.errors == {}
    assert [bytes(data) for data in batch.images] == [b"\xff\xd8beside", b"\xff\xd84", b"\xff\xd80"]
    assert batch.objects[1].metadata == {"n": 4}


def test_a_remote_folder_says_what_a_local_one_does(
    memory: fsspec.AbstractFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    memory.pipe({"/t/a/1.JPG": b"1", "/t/a/1.TXT": b"upper", "/t/c/2.jpg": b"2", "/t/c/x.mp4": b"-"})
    memory.pipe({"/t/a/out/_manifest/run.json": b"{}", "/t/a/out/3.jpg": b"3"})
    memory.mkdir("/t/b")
    source = open_source("memory://t")
    batch = source.read(np.arange(len(source)))
    assert source.class_names == ["a", "b", "c"]
    assert [item.metadata for item in batch.objects] == [
        {"caption": "upper", "label": 0, "label_name": "a"},
        {"label": 2, "label_name": "c"},
    ]
    assert "class folders in memory://t have no images: 'b'" in caplog.text
    assert "passing over 1 file of memory://t: 1 .mp4" in caplog.text
    for spec in ("memory://t/*", ["memory://t/a", "memory://t/c", "memory://t/b"]):
        again = open_source(spec)
        assert again.class_names == ["a", "b", "c"]
        assert [item.image_id for item in again.read(np.arange(len(again))).objects] == ["a/1", "c/2"]
    globbed = open_source("memory://t/*/*.[jJ]*")
    assert globbed.class_names == ["a", "b", "c"]
    assert globbed.read(np.array([0])).objects[0].metadata["caption"] == "upper"


def test_the_fingerprint_of_a_remote_folder_is_of_its_listing(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({"/t/1.jpg": b"1", "/t/1.txt": b"a"})
    prints = {open_source("memory://t").fingerprint, open_source("memory://t/*.jpg").fingerprint}
    memory.pipe("/t/1.txt", b"longer")
    prints |= {open_source("memory://t").fingerprint, open_source("memory://t/*.jpg").fingerprint}
    assert len(prints) == 2  # a folder and a glob of all its images are the same data set


def test_an_empty_remote_folder_is_refused(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/t/a.mp4", b"-")
    with pytest.raises(SourceError, match="holds no images"):
        open_source("memory://t")


def test_partitions_of_a_remote_folder(memory: fsspec.AbstractFileSystem) -> None:
    for label in ("cat", "dog"):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"jpg": [label.encode()]}), buffer)
        memory.pipe(f"/p/label={label}/part-0.parquet", buffer.getvalue())
    source = open_source("memory://p")
    batch = source.read(np.arange(2), members=True)
    assert [item.metadata for item in batch.objects] == [{"label": "cat"}, {"label": "dog"}]
    assert [item.image_id for item in batch.objects] == ["label=cat/part-0-0", "label=dog/part-0-0"]
    memory.rm("/p/label=dog/part-0.parquet")
    lost = open_source("memory://p").read(np.arange(1))
    assert lost.errors == {}
    source.close()
    lost = source.read(np.arange(2))
    assert lost.unread == {1}


def test_dead_links_of_a_list_and_a_server_that_is_out_of_order(server: Server) -> None:
    server.files = {"/a.jpg": b"1", "/b.jpg": b"2", "/photo?id=3": b"\xff\xd8\xff"}
    source = open_source([f"{server.url}/a.jpg", f"{server.url}/gone.jpg", f"{server.url}/b.jpg"])
    server.failures["/b.jpg"] = 100
    batch = source.read(np.arange(3))
    assert (sorted(batch.errors), batch.unread) == ([1, 2], {2})  # nobody has ever seen gone.jpg
    server.failures.clear()
    assert list(source.read(np.arange(3)).errors) == [1]
    assert len(open_source([f"{server.url}/photo?id=3", f"{server.url}/dead?id=4"])) == 2
    with pytest.raises(SourceError, match="cannot tell what"):
        open_source(f"{server.url}/dead?id=4")


def test_a_row_group_of_a_server_that_is_out_of_order(server: Server) -> None:
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"jpg": [bytes([n]) * 300_000 for n in range(4)]}), buffer, row_group_size=1, compression="NONE"
    )
    server.files["/0.parquet?sig=a.b"] = server.files["/0.parquet?sig=c"] = buffer.getvalue()
    source = open_source(f"{server.url}/0.parquet?sig=a.b")
    assert source.fingerprint == open_source(f"{server.url}/0.parquet?sig=c").fingerprint
    assert source.read(np.array([1])).objects[0].image_id == "0-1"
    server.failures["/0.parquet?sig=a.b"] = 1
    assert source.read(np.array([2])).errors == {}  # tried again
    server.failures["/0.parquet?sig=a.b"] = 1000
    batch = source.read(np.array([0]))
    assert (list(batch.errors), batch.unread) == ([0], {0})


class KeepingStore(MemoryFileSystem):
    """A store whose listings are kept, as those of S3 and GCS are."""

    protocol = "keepingstore"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("keepingstore://")))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **options)
        found = self.dircache[path]
        return found if detail else [info["name"] for info in found]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


def test_each_opening_lists_a_store_anew(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    fsspec.register_implementation("keepingstore", KeepingStore, clobber=True)
    for count in (1, 2):
        memory.pipe({f"/i/{count}.jpg": b"image", f"/t/{count}.tar": tar_bytes(tmp_path, 0)})
        for spec in ("keepingstore://i", "keepingstore://i/*.jpg"):
            assert len(open_source(spec)) == count
        for spec in ("keepingstore://t", "keepingstore://t/*.tar"):
            assert len(open_source(spec)) == 6 * count

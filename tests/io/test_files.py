"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curator_dali.errors import ImageError
from curator_dali.io import files
from curator_dali.io.files import AtomicFile, Written, make_folder, remove_leftovers, write_file
from curator_dali.loader.results import write_errors


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


class Flaky(MemoryFileSystem):
    """An object store that fails now and then, and tells what it was asked."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012
    calls: list[str] = []  # noqa: RUF012
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self.calls.append(f"put {rpath}")
        if type(self).failures:
            type(self).failures -= 1
            raise TimeoutError("the store is slow today")
        super().put_file(lpath, rpath, **options)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        raise AssertionError("an object is not renamed: that would copy it")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(files, "_OBJECT_STORES", {"flaky"})
    Flaky.store.clear()
    Flaky.calls.clear()
    Flaky.failures = 0
    return Flaky


def test_a_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "über all.bin"
    file = AtomicFile(path, digest=True)
    file.write(b"ab")
    file.writev([b"cd", memoryview(b"efg")[1:], b""])
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert file.commit() == Written(str(path), 6, hashlib.blake2b(b"abcdfg", digest_size=16).hexdigest())
    assert path.read_bytes() == b"abcdfg"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_many_and_large_buffers_arrive_in_order(tmp_path: Path) -> None:
    parts = [bytes([n % 251]) * (n % 7) for n in range(5000)] + [os.urandom(3 << 20)]
    with AtomicFile(tmp_path / "x") as file:
        assert file.writev(parts) == sum(map(len, parts)) == file.tell()
    assert (tmp_path / "x").read_bytes() == b"".join(parts)


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [b"".join(parts)[:5]]))
    with AtomicFile(tmp_path / "x", digest=True) as file:
        file.writev([b"abc", b"", b"defgh", memoryview(b"ijk")])
    assert (tmp_path / "x").read_bytes() == b"abcdefghijk"


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_file(tmp_path / "x", b"old")
    with pytest.raises(TypeError), AtomicFile(tmp_path / "x") as file:
        file.writev([b"new", "no bytes"])  # type: ignore[list-item]
    assert (tmp_path / "x").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="committed or discarded already"):
        file.write(b"more")
    with pytest.raises(ValueError, match="committed or discarded already"):
        file.commit()


def test_what_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    AtomicFile(tmp_path / "x").write(b"abc")
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_takes_nothing_away(tmp_path: Path) -> None:
    file = AtomicFile(tmp_path / "x")
    file.write(b"abc")
    pid = os.fork()
    if pid == 0:
        file.discard()
        os._exit(0)
    os.waitpid(pid, 0)
    file.commit()
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_long_names(tmp_path: Path) -> None:
    for name in ("n" * 250, "ü" * 120):
        write_file(tmp_path / name, b"abc")
        assert (tmp_path / name).read_bytes() == b"abc"


def test_only_what_nobody_writes_any_more_is_a_leftover(tmp_path: Path) -> None:
    (tmp_path / "data.partial").write_bytes(b"somebody's own")
    (tmp_path / ".x.partial").write_bytes(b"somebody's own")
    (tmp_path / "x.tar").write_bytes(b"finished")
    alive = AtomicFile(tmp_path / "mine")
    code = (
        "import sys, time; from curator_dali.io.files import AtomicFile\n"
        "file = AtomicFile(sys.argv[1]); file.write(b'abc'); print('ready', flush=True); time.sleep(600)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / f"of {n}")], stdout=subprocess.PIPE)
        for n in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        assert remove_leftovers(str(tmp_path)) == []
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        removed = remove_leftovers(str(tmp_path))
        assert len(removed) == 1
        assert removed[0].startswith(".of 0.")
        assert remove_leftovers(str(tmp_path)) == []
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    alive.commit()
    assert len(remove_leftovers(str(tmp_path))) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"data.partial", ".x.partial", "x.tar", "mine"}


def test_another_machines_file_is_left_until_it_was_idle_for_long(tmp_path: Path) -> None:
    other = tmp_path / f".x.tar.elsewhere.{'0' * 16}.partial"
    other.write_bytes(b"abc")
    assert remove_leftovers(str(tmp_path)) == []
    os.utime(other, (time.time() - 7200,) * 2)
    assert remove_leftovers(str(tmp_path)) == [other.name]


def test_leftovers_of_no_folder() -> None:
    assert remove_leftovers("/there/is/none") == []
    assert remove_leftovers("memory://there/is/none") == []


def test_a_remote_file_appears_when_it_is_committed(memory: Any) -> None:
    url = "memory://bucket/über all/x.tar"
    file = AtomicFile(url, digest=True)
    file.write(b"abc")
    assert memory.find("/") == []
    written = file.commit()
    assert written.size == 3
    assert memory.find("/") == ["/bucket/über all/x.tar"]
    assert memory.cat_file("/bucket/über all/x.tar") == b"abc"
    with pytest.raises(TypeError), AtomicFile(url) as file:
        file.writev([b"new", "no bytes"])  # type: ignore[list-item]
    assert memory.cat_file("/bucket/über all/x.tar") == b"abc"
    assert len(memory.find("/")) == 1


def test_remote_leftovers(memory: Any) -> None:
    name = f".x.tar.elsewhere.{'0' * 16}.partial"
    memory.pipe_file(f"/out/{name}", b"abc")
    memory.pipe_file("/out/x.tar", b"abc")
    assert remove_leftovers("memory://out") == []
    memory.store[f"/out/{name}"].created = memory.store[f"/out/{name}"].created.replace(year=2020)
    assert remove_leftovers("memory://out") == [name]
    assert memory.find("/out") == ["/out/x.tar"]


def test_an_object_is_uploaded_once_under_its_name(store: type[Flaky]) -> None:
    write_file("flaky://bucket/a.tar", b"abc")
    assert store.calls == ["put /bucket/a.tar"]
    assert store().cat_file("flaky://bucket/a.tar") == b"abc"


def test_an_upload_is_tried_again(store: type[Flaky]) -> None:
    store.failures = 2
    write_file("flaky://bucket/a.tar", b"abc")
    assert len(store.calls) == 3
    store.failures = 99
    with pytest.raises(TimeoutError):
        write_file("flaky://bucket/b.tar", b"abc")
    assert store().find("flaky://bucket") == ["/bucket/a.tar"]


def test_a_local_url(tmp_path: Path) -> None:
    write_file(f"file://{tmp_path}/a b.bin", b"abc")
    assert (tmp_path / "a b.bin").read_bytes() == b"abc"
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot open 'nope://x/y': Protocol not known"):
        write_file("nope://x/y", b"")
    with pytest.raises(ValueError, match="cannot open 'nope://x"):
        make_folder("nope://x")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        make_folder(str(tmp_path / "file" / "out"))
    make_folder(str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []


LIMITED = """
import resource, signal, sys
from curator_dali.io.files import AtomicFile
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
file = AtomicFile(sys.argv[1])
file.write(bytes(1 << 19))
try:
    file.writev([bytes(1 << 19), bytes(1 << 19)])
except OSError as error:
    print(error.errno, file.closed)
"""


def test_a_write_that_fails_ends_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "x")], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(errno.EFBIG), "True"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json"])
def test_errors_appear_whole(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ImageError("a", "x/a.jpg", "x", "broken", 3)]
    write_errors(rows, tmp_path / f"errors.{ending}")
    before = (tmp_path / f"errors.{ending}").read_bytes()
    assert b"broken" in before
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(OSError, match="no"):
        write_errors(rows * 2, tmp_path / f"errors.{ending}")
    assert [entry.name for entry in tmp_path.iterdir()] == [f"errors.{ending}"]
    assert (tmp_path / f"errors.{ending}").read_bytes() == before


def test_written_pickles() -> None:
    written = Written("a", 1, "b")
    assert pickle.loads(pickle.dumps(written)) == written

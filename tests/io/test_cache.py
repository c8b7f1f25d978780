"""A cache of remote files: shared by processes, safe against kills, bounded, and never wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import shutil
import signal
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.errors import SourceError
from curator_dali.io import Request, Storage, clear_cache, read_cache_info, use_cache
from curator_dali.io import cache as caches
from curator_dali.io.blocks import BLOCK, CachedFiles, Entry, split_runs
from curator_dali.io.cache import CacheFolder, find_entries
from tests.sources.store_server import SimulatedStore

SIZE = 3 * BLOCK + 12_345
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture
def store(tmp_path: Path, data: bytes) -> Iterator[SimulatedStore]:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "a.bin").write_bytes(data)
    with SimulatedStore(folder, delay=0.002, rate=0) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> cd.Cache:
    return cd.Cache(tmp_path / "cache", limit="1GB")


def read(storage: Storage, url: str, places: list[tuple[int, int]], **options: Any) -> list[bytes | str]:
    """Ranges of a file, or why they cannot be read."""
    stat = storage.stat(url)
    found = [bytearray(length) for _, length in places]
    requests = [Request(url, stat, at, memoryview(part)) for (at, _), part in zip(places, found, strict=True)]
    outcomes = storage.fill(requests, **options)
    return [outcome.reason or bytes(part) for outcome, part in zip(outcomes, found, strict=True)]


PLACES = [(5, 100), (BLOCK - 7, 20), (2 * BLOCK, BLOCK + 12_345), (0, 0), (SIZE - 3, 3)]


def expected(data: bytes, places: list[tuple[int, int]] = PLACES) -> list[bytes]:
    return [data[at : at + length] for at, length in places]


@pytest.mark.parametrize(
    ("limit", "size"),
    [("2TB", 2 * 10**12), ("500 GB", 500 * 10**9), ("64GiB", 64 << 30), (10**9, 10**9), ("1.5gb", 1_500_000_000)],
)
def test_limits_are_bytes_or_texts(limit: Any, size: int) -> None:
    assert cd.Cache("x", limit).limit == size
    assert cd.Cache("~/x", limit=limit).folder == os.path.expanduser("~/x")


@pytest.mark.parametrize("limit", ["", "2 parsecs", "TB", "-1GB", "10MB", 10**6, 1.5, True, None, "1e99TB"])
def test_other_limits_are_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"limit is .*; allowed: bytes of at least 64,000,000"):
        cd.Cache("x", limit)


@pytest.mark.parametrize("folder", ["s3://bucket/cache", "", b"x"])
def test_other_folders_are_refused(folder: Any) -> None:
    with pytest.raises(ValueError, match="give the path of a folder"):
        cd.Cache(folder, "1GB")


def test_a_cache_is_a_frozen_value(tmp_path: Path) -> None:
    cache = cd.Cache(tmp_path, "1GB")
    assert pickle.loads(pickle.dumps(cache)) == cache == cd.Cache(str(tmp_path), 10**9)
    assert hash(cache) == hash(cd.Cache(str(tmp_path), 10**9))
    assert not list(tmp_path.iterdir())
    with pytest.raises(AttributeError):
        cache.limit = 3  # type: ignore[misc]


def test_blocks_are_downloaded_once(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    url = f"{store.url}/a.bin"
    for _ in range(2):
        storage = Storage(cache=cache)
        assert read(storage, url, PLACES) == expected(data)
        storage.close()
        assert read(storage, url, PLACES) == expected(data)
        assert store.total().bytes == SIZE
    storage = pickle.loads(pickle.dumps(storage))
    assert storage.cache == cache
    assert read(storage, url, [(0, SIZE)]) == [data]
    assert store.total().bytes == SIZE
    storage.close()
    about = read_cache_info(str(cache.folder))
    assert about.files == 1
    assert SIZE <= about.bytes <= SIZE + 16_384
    assert (about.downloads, about.limit) == (SIZE, 10**9)
    assert about.hits >= SIZE


def test_only_the_blocks_of_a_range_are_downloaded(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    storage = Storage(cache=cache)
    assert read(storage, f"{store.url}/a.bin", [(BLOCK + 5, 7)]) == [data[BLOCK + 5 : BLOCK + 12]]
    assert store.total().bytes == BLOCK
    assert read_cache_info(str(cache.folder)).bytes < 2 * BLOCK


def test_ranges_that_are_not_kept_come_from_the_store(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    assert read(storage, url, [(5, 100)], keep=False) == [data[5:105]]
    assert store.total().bytes == 100
    read(storage, url, [(0, 1)])
    store.reset()
    assert read(storage, url, [(5, 100)], keep=False) == [data[5:105]]
    assert store.total().bytes == 0


def test_whole_files_and_streams_go_through_it(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    url = f"{store.url}/a.bin"
    for _ in range(2):
        storage = Storage(cache=cache)
        stat = storage.stat(url)
        assert storage.cat([(url, None, None), (url, 3, 9)], stats={url: stat}) == [data, data[3:9]]
        with storage.open(url, stat) as file:
            file.seek(-10, os.SEEK_END)
            assert file.read() == data[-10:]
            file.seek(BLOCK - 3)
            assert file.read(10) == data[BLOCK - 3 : BLOCK + 7]
        reader = storage.reader(url, stat=stat)
        assert reader(0, 8 << 20) == data[: 8 << 20]
        assert reader(SIZE - 5, 100) == data[-5:]
        assert reader(SIZE + 5, 100) == b""
    assert store.total().bytes == SIZE + 12


def test_a_changed_file_is_another_entry(store: SimulatedStore, cache: cd.Cache, data: bytes, tmp_path: Path) -> None:
    url, storage = f"{store.url}/a.bin", Storage(cache=cache)
    assert read(storage, url, [(0, 10)]) == [data[:10]]
    path = tmp_path / "store" / "a.bin"
    path.write_bytes(data[::-1])
    os.utime(path, ns=(1, 1))
    assert read(storage, url, [(0, 10)]) == [data[::-1][:10]]
    assert read_cache_info(str(cache.folder)).files == 2


def test_a_new_signature_is_the_same_entry(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    storage = Storage(cache=cache)
    for signature in ("one", "two"):
        url = f"{store.url}/a.bin?X-Amz-Signature={signature}"
        assert read(storage, url, [(0, 10)]) == [data[:10]]
    assert store.total().bytes == BLOCK
    [(_, _, path)] = find_entries(str(cache.folder))
    assert b"two" not in Path(path).read_bytes()[:2048]
    assert b"one" not in Path(path).read_bytes()[:2048]


def read_in_child(url: str, cache: cd.Cache, data: bytes, gate: Any, wrong: Any) -> None:
    gate.wait()
    rng = random.Random(os.getpid())
    places = [(at, rng.randrange(1, 200_000)) for at in (rng.randrange(SIZE - 200_000) for _ in range(200))]
    if read(Storage(cache=cache), url, places) != expected(data, places):
        wrong.value += 1


def test_processes_share_downloads(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    store.change(delay=0.05)
    gate, wrong = fork.Barrier(4), fork.Value("i", 0)
    children = [
        fork.Process(target=read_in_child, args=(f"{store.url}/a.bin", cache, data, gate, wrong)) for _ in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert wrong.value == 0
    assert 3 * BLOCK <= store.total().bytes <= SIZE


def test_threads_share_downloads(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: read(storage, url, [(n, 8 << 20)]), range(16)))
    assert found == [[data[n : n + (8 << 20)]] for n in range(16)]
    assert store.total().bytes == 3 * BLOCK


def test_a_fork_opens_files_anew(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    stat = storage.stat(url)
    read(storage, url, [(0, SIZE)])
    child = os.fork()
    if child == 0:
        part = bytearray(SIZE)
        [outcome] = storage.fill([Request(url, stat, 0, memoryview(part))])
        os._exit(outcome.reason != "" or bytes(part) != data)
    assert os.waitpid(child, 0)[1] == 0


def download_for_ever(url: str, cache: cd.Cache) -> None:
    while True:
        read(Storage(cache=cache), url, [(0, SIZE)])
        clear_cache(str(cache.folder))


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_leaves_nothing_wrong(
    store: SimulatedStore, cache: cd.Cache, data: bytes, seed: int
) -> None:
    url = f"{store.url}/a.bin"
    rng = random.Random(seed)
    for _ in range(5):
        child = fork.Process(target=download_for_ever, args=(url, cache))
        child.start()
        time.sleep(rng.uniform(0.02, 0.3))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        storage = Storage(cache=cache)
        begun = time.monotonic()
        assert read(storage, url, PLACES) == expected(data)
        assert time.monotonic() - begun < 5  # its locks went with it
        storage.close()


def entry_of(store: SimulatedStore, cache: cd.Cache) -> tuple[Path, Storage, str]:
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    read(storage, url, [(0, SIZE)])
    storage.close()
    [(_, _, path)] = find_entries(str(cache.folder))
    store.reset()
    return Path(path), storage, url


def test_a_block_without_its_checksum_does_not_count(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    path, storage, url = entry_of(store, cache)
    with path.open("r+b") as file:  # as if killed between the block and its checksum
        file.seek(2048 + 4)
        file.write(bytes(4))
    assert read(storage, url, [(0, SIZE)]) == [data]
    assert store.total().bytes == BLOCK


def test_after_a_power_cut_blocks_are_compared(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    path, storage, url = entry_of(store, cache)
    header = path.read_bytes()[:2048]
    with path.open("r+b") as file:  # written before the machine was started anew, and not all of it came to the disk
        file.write(header.replace(b'"boot": "', b'"boot": "before')[:2048])
        file.seek(4096 + BLOCK + 9)
        file.write(bytes(100))
    assert read(storage, url, [(0, SIZE)]) == [data]
    assert store.total().bytes == BLOCK
    storage.close()
    store.reset()
    assert read(storage, url, [(0, SIZE)]) == [data]
    assert store.total().bytes == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "header", "folder"])
def test_a_damaged_entry_is_made_anew(store: SimulatedStore, cache: cd.Cache, data: bytes, damage: str) -> None:
    path, storage, url = entry_of(store, cache)
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "empty":
        os.truncate(path, 0)
    elif damage == "text":
        path.write_bytes(b"nonsense" * 1000)
    elif damage == "header":
        with path.open("r+b") as file:
            file.write(b"[" * 2048)
    else:
        path.unlink()
        path.mkdir()
    assert read(storage, url, PLACES) == expected(data)
    if damage != "folder":
        store.reset()
        assert read(storage, url, PLACES) == expected(data)
        assert store.total().bytes == 0


def fill_store(tmp_path: Path, count: int, size: int) -> list[bytes]:
    contents = [random.Random(n).randbytes(size) for n in range(count)]
    for n, content in enumerate(contents):
        (tmp_path / "store" / f"{n}.bin").write_bytes(content)
    return contents


def test_the_oldest_files_go_first(store: SimulatedStore, tmp_path: Path) -> None:
    cache = cd.Cache(tmp_path / "cache", limit=64_000_000)
    contents = fill_store(tmp_path, 10, 8 << 20)
    storage = Storage(cache=cache)
    for round_ in range(2):
        for n, content in enumerate(contents):
            assert read(storage, f"{store.url}/{n}.bin", [(0, 8 << 20)]) == [content]
            assert sum(size for _, size, _ in find_entries(str(cache.folder))) <= 64_000_000
        if not round_:
            store.reset()
            assert read(storage, f"{store.url}/9.bin", [(0, 8 << 20)]) == [contents[9]]
            assert read(storage, f"{store.url}/8.bin", [(0, 8 << 20)]) == [contents[8]]
            assert store.total().bytes == 0
    assert read_cache_info(str(cache.folder)).files <= 7


def test_a_file_larger_than_the_limit_is_read_through(
    store: SimulatedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [content] = fill_store(tmp_path, 1, 80_000_000)
    storage = Storage(cache=cd.Cache(tmp_path / "cache", limit=64_000_000))
    url = f"{store.url}/0.bin"
    for _ in range(2):
        assert read(storage, url, [(0, 80_000_000), (7, 100)]) == [content, content[7:107]]
    assert store.total().bytes == 2 * 80_000_100
    assert not list(find_entries(str(tmp_path / "cache")))
    [warned] = [record.message for record in caplog.records if "0.bin" in record.message]
    assert "64,000,000 bytes, is smaller than" in warned
    assert "80,000,000 bytes" in warned
    reader = storage.reader(url, keep=True, stat=storage.stat(url))
    store.reset()
    assert reader(0, 8 << 20) == content[: 8 << 20]
    assert read(storage, url, [(9, 100)]) == [content[9:109]]  # of the pieces in memory
    assert store.total().bytes == 8 << 20


def test_a_limit_smaller_than_the_data_is_told_and_short_ranges_pass_it_by(
    store: SimulatedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cd.Cache(tmp_path / "cache", limit=64_000_000)
    contents = fill_store(tmp_path, 24, BLOCK)
    storage = Storage(cache=cache)
    for n in range(24):
        assert read(storage, f"{store.url}/{n}.bin", [(0, BLOCK)]) == [contents[n]]
    messages = [record.message for record in caplog.records if "limit of the cache" in record.message]
    assert len(messages) == 1
    assert "64,000,000 bytes, is smaller than the files" in messages[0]
    assert f"({16 * (BLOCK + 4096):,} bytes and more)" in messages[0]
    store.reset()
    places = [(BLOCK // 2, 1000)]
    found = [read(storage, f"{store.url}/{n}.bin", places)[0] for n in range(24)]
    assert found == [content[BLOCK // 2 :][:1000] for content in contents]
    assert 0 < store.total().bytes <= 24_000


def test_who_reads_a_file_that_is_removed_reads_no_wrong_byte(
    store: SimulatedStore, cache: cd.Cache, data: bytes
) -> None:
    storage, url, end = Storage(cache=cache), f"{store.url}/a.bin", threading.Event()

    def remove() -> None:
        while not end.is_set():
            clear_cache(str(cache.folder))

    read(storage, url, PLACES)
    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(60):
            assert read(storage, url, PLACES) == expected(data)
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO"])
def test_a_full_disk_is_read_through(
    store: SimulatedStore,
    cache: cd.Cache,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: str,
) -> None:
    def fail(self: Entry, first: int, data: bytes) -> None:
        raise OSError(getattr(__import__("errno"), error), "no")

    monkeypatch.setattr(Entry, "write", fail)
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    for _ in range(3):
        assert read(storage, url, PLACES) == expected(data)
    store.reset()
    assert read(storage, url, PLACES) == expected(data)
    assert store.total().bytes == sum(length for _, length in PLACES)  # and not whole blocks
    warned = [record.message for record in caplog.records if "keeps nothing now" in record.message]
    assert len(warned) == 1
    assert ("its disk is full" in warned[0]) == (error != "EIO")


def test_a_limit_of_the_process_is_read_through(tmp_path: Path, store: SimulatedStore, data: bytes) -> None:
    """A real write that fails: files of this process may not grow."""
    import resource

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        storage = Storage(cache=cd.Cache(tmp_path / "cache", "1GB"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, BLOCK))
        good = read(storage, f"{store.url}/a.bin", PLACES) == expected(data)
        os._exit(not good)
    assert os.waitpid(child, 0)[1] == 0


def test_a_folder_that_cannot_be_used_is_refused_at_the_opening(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(SourceError, match=r"cache folder .*file/x' cannot be used: NotADirectoryError.*Choose one"),
        use_cache(cd.Cache(tmp_path / "file" / "x", "1GB")),
    ):
        pass


def test_a_folder_that_goes_away_is_read_through(
    store: SimulatedStore, cache: cd.Cache, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(cache=cd.Cache(os.path.join(os.fspath(cache.folder), "x"), "1GB"))
    Path(cache.folder).write_text("no folder")
    for _ in range(2):
        assert read(storage, f"{store.url}/a.bin", PLACES) == expected(data)
    assert sum("keeps nothing now" in record.message for record in caplog.records) == 1


def test_clear_removes_what_is_the_caches(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    folder = Path(cache.folder)
    storage = Storage(cache=cache)
    read(storage, f"{store.url}/a.bin", [(0, SIZE)])
    (folder / "mine.txt").write_text("mine")
    (folder / "ab").mkdir(exist_ok=True)
    (folder / "ab" / "mine.blocks").write_text("mine")
    assert clear_cache(str(folder)).files == 1
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["lock", "mine.blocks", "mine.txt"]
    assert read_cache_info(str(folder))[:2] == (0, 0)
    for _ in range(2):
        assert read(storage, f"{store.url}/a.bin", PLACES) == expected(data)
    assert read_cache_info(str(folder)).files == 1
    with pytest.raises(SourceError, match="is no folder of a cache"):
        clear_cache(str(folder / "ab"))
    with pytest.raises(SourceError, match="is no folder of a cache"):
        read_cache_info(str(folder / "nowhere"))


def test_a_lost_lock_file_is_made_anew(store: SimulatedStore, cache: cd.Cache, data: bytes) -> None:
    read(Storage(cache=cache), f"{store.url}/a.bin", [(0, BLOCK)])
    (Path(cache.folder) / "lock").unlink()
    read(Storage(cache=cache), f"{store.url}/a.bin", [(0, SIZE)])
    counts = struct.unpack("<4q", (Path(cache.folder) / "lock").read_bytes())
    assert SIZE <= counts[0] <= SIZE + 2 * BLOCK


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_that_is_removed_while_it_is_in_use_is_made_anew(
    store: SimulatedStore, cache: cd.Cache, data: bytes, anew: bool
) -> None:
    storage, url, folder = Storage(cache=cache), f"{store.url}/a.bin", str(cache.folder)
    read(storage, url, [(0, BLOCK)])
    shutil.rmtree(folder)
    if anew:  # another process has it already
        read(Storage(cache=cache), url, [(0, BLOCK)])
    for _ in range(2):
        assert read(storage, url, PLACES) == expected(data)
    about = read_cache_info(folder)  # of its own lock file: what this process downloaded is counted there
    assert (about.files, about.downloads) == (1, SIZE)
    assert SIZE <= about.bytes <= SIZE + 16_384
    assert SIZE <= struct.unpack("<4q", (Path(folder) / "lock").read_bytes())[0] <= SIZE + 16_384


def test_info_and_clear_need_no_lock_file(
    store: SimulatedStore, cache: cd.Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    read(Storage(cache=cache), f"{store.url}/a.bin", [(0, BLOCK)])
    (Path(cache.folder) / "lock").unlink()
    assert read_cache_info(str(cache.folder)).files == 1
    assert main(["cache", "info", str(cache.folder)]) == 0
    assert "at most" not in capsys.readouterr().out  # the limit went with the file
    assert clear_cache(str(cache.folder)).files == 1
    assert not list(find_entries(str(cache.folder)))


def test_waiting_for_another_process_ends(
    store: SimulatedStore, cache: cd.Cache, data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from curator_dali.io import blocks

    monkeypatch.setattr(blocks, "_PATIENCE", 0.2)
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    other = Entry(CacheFolder(str(cache.folder), 10**9), url, storage.stat(url))
    assert other.claim([0, 1]) == ([0, 1], [])
    begun = time.monotonic()
    assert read(storage, url, PLACES) == expected(data)
    assert time.monotonic() - begun < 5
    assert [other.have[n] for n in range(4)] == [0, 0, 0, 0]
    other.look(range(4))
    assert [other.have[n] for n in range(4)] == [0, 0, 1, 1]


def test_what_a_store_refuses_is_told(store: SimulatedStore, cache: cd.Cache, tmp_path: Path) -> None:
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    stat = storage.stat(url)
    (tmp_path / "store" / "a.bin").unlink()
    [outcome] = storage.fill([Request(url, stat, 0, memoryview(bytearray(10)))])
    assert "FileNotFoundError" in outcome.reason


def test_a_file_that_is_cut_is_told(store: SimulatedStore, cache: cd.Cache, data: bytes, tmp_path: Path) -> None:
    storage, url = Storage(cache=cache), f"{store.url}/a.bin"
    stat = storage.stat(url)._replace(etag="")
    os.truncate(tmp_path / "store" / "a.bin", 1000)
    [outcome] = storage.fill([Request(url, stat, 0, memoryview(bytearray(2000)))])
    assert "changed" in outcome.reason or "was cut at byte 1000" in outcome.reason


def test_runs_have_no_gaps_and_a_length() -> None:
    assert split_runs([0, 1, 2, 3, 4, 5, 7]) == [(0, 3), (4, 5), (7, 7)]
    assert split_runs([]) == []


def test_a_cached_files_object_is_its_setting(cache: cd.Cache) -> None:
    assert pickle.loads(pickle.dumps(CachedFiles(cache))).setting == cache
    assert caches.current_cache() is None
    with use_cache(cache):
        assert Storage().cache == cache
        with use_cache(None):
            assert Storage().cache == cache
    assert Storage().cache is None

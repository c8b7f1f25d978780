"""Making the index of a data set: by threads, processes, ranks and Ray; taken up again; brought up to date."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.errors import OutputError, SourceError
from curator_dali.io.links import Link
from curator_dali.preparation import run
from curator_dali.sources import ParquetSource
from tests.helpers import encode, load_photos, photo_samples, write_shards, write_tar
from tests.sources.web_server import Server

FOLDER = ".curator_dali_index"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def samples() -> list[Any]:
    return photo_samples(load_photos(), 24)


@pytest.fixture
def shards(samples: list[Any], tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", samples, 2)
    return tmp_path / "shards"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All samples of an index, in the order of its files."""
    files = pa.ipc.open_file(folder / "files.arrow").read_all()
    parts = {name: pa.ipc.open_file(folder / name).read_all() for name in set(files.column("part").to_pylist())}
    columns = zip(*(files.column(name).to_pylist() for name in ("part", "row", "samples")), strict=True)
    rows: list[dict[str, Any]] = []
    for part, row, count in columns:
        rows += parts[part].slice(row, count).to_pylist()
    return rows


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_however_it_is_made_it_is_the_same(shards: Path, tmp_path: Path) -> None:
    made = cd.prepare(str(shards), tmp_path / "threads", threads=3)
    assert (made.files, made.samples, made.indexed, made.complete, made.refused) == (12, 24, 12, True, {})
    assert made.nbytes == sum(path.stat().st_size for path in shards.iterdir())
    assert str(made).startswith(f"{tmp_path}/threads: 24 samples in 12 files, ")
    cd.prepare(str(shards), tmp_path / "processes", processes=2)
    ranks = [cd.prepare(str(shards), tmp_path / "ranks", shard=cd.Shard(rank, 3)) for rank in (2, 0, 1)]
    assert [rank.complete for rank in ranks] == [False, False, True]
    assert [rank.indexed for rank in ranks] == [4, 4, 4]
    assert "once all ranks are done" in str(ranks[0])
    expected = rows_of(tmp_path / "threads")
    assert [row["key"] for row in expected] == [f"{n:06d}" for n in range(24)]
    for name in ("processes", "ranks"):
        assert rows_of(tmp_path / name) == expected
        assert names_of(tmp_path / name) == names_of(tmp_path / "threads")  # also no records of groups


def test_by_an_executor(shards: Path, tmp_path: Path) -> None:
    given: list[str] = []

    class Here:
        """Does everything in this process, with what crosses to others pickled."""

        def map(self, function: Any, items: Any) -> Any:
            import pickle

            return (pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item))) for item in items)

    class Cluster:
        @contextmanager
        def workers(self, folder: str) -> Any:
            given.append(folder)
            yield Here()

    seen: list[tuple[int, int, int]] = []
    made = cd.prepare(str(shards), executor=Cluster(), progress=lambda *counts: seen.append(counts))
    assert made.indexed == 12
    assert given == [f"{shards}/{FOLDER}/_work"]
    assert sum(files for files, _, _ in seen) == 12
    assert sum(samples for _, samples, _ in seen) == 24
    cd.prepare(str(shards), tmp_path / "threads")
    assert rows_of(shards / FOLDER) == rows_of(tmp_path / "threads")


def test_only_what_changed_is_indexed(shards: Path, samples: list[Any]) -> None:
    cd.prepare(str(shards))
    before = names_of(shards / FOLDER)
    stamp = (shards / FOLDER / "files.arrow").stat().st_mtime_ns
    assert cd.prepare(str(shards)).indexed == 0
    assert (shards / FOLDER / "files.arrow").stat().st_mtime_ns == stamp
    (shards / "00003.tar").unlink()
    write_tar(shards / "00007.tar", [("other.jpg", samples[0][1]["jpg"])])
    write_tar(shards / "00012.tar", [("new.jpg", samples[1][1]["jpg"])])
    made = cd.prepare(str(shards))
    assert (made.files, made.samples, made.indexed) == (12, 22, 2)
    after = names_of(shards / FOLDER)
    assert {*before} < {*after}  # a source that is open goes on
    assert len(after) == len(before) + 2
    assert cd.prepare(str(shards)).indexed == 0
    after = names_of(shards / FOLDER)
    assert len(after) == len(before)
    assert len({*before} & {*after}) == 11  # the table, and parts of ten files
    keys = [f"{n:06d}" for n in (*range(6), *range(8, 24))]
    keys[12:14] = ["other"]
    assert [row["key"] for row in rows_of(shards / FOLDER)] == [*keys, "new"]


def test_parts_of_a_data_set_share_an_index(shards: Path) -> None:
    cd.prepare(f"{shards}/0000*.tar")
    made = cd.prepare(f"{shards}/0001*.tar")
    assert (made.files, made.samples, made.indexed) == (12, 24, 2)
    (shards / "00011.tar").unlink()
    assert cd.prepare(f"{shards}/0001*.tar").files == 11
    assert cd.prepare(str(shards)).indexed == 0


def test_files_that_are_no_tars_are_named_and_the_others_are_done(shards: Path) -> None:
    (shards / "00005.tar").write_bytes(b"no tar" * 100)
    (shards / "00008.tar").write_bytes(b"nor this" * 100)
    with pytest.raises(SourceError, match=r"2 of 12 groups .*00005.tar: .*00008.tar: .* All other groups are done"):
        cd.prepare(str(shards))
    for name in ("00005.tar", "00008.tar"):
        (shards / name).unlink()
    made = cd.prepare(str(shards))
    assert made.samples == 20


def test_what_is_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match="no images"):
        cd.prepare(str(tmp_path / "images"))
    with pytest.raises(SourceError, match="an index is made of tars"):
        cd.prepare([b"bytes"])
    with pytest.raises(SourceError, match=r"'00000.tar' is given twice"):
        cd.prepare([str(shards / "00000.tar")] * 2)
    with pytest.raises(ValueError, match="threads is 0; allowed: a whole number of at least 1"):
        cd.prepare(str(shards), threads=0)
    odd = tmp_path / "odd" / os.fsdecode(b"\xff.tar")
    odd.parent.mkdir()
    shutil.copy(shards / "00000.tar", odd)
    with pytest.raises(SourceError, match=r"xff.tar' is no UTF-8, as names in an index are: rename the file"):
        cd.prepare(str(odd.parent))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file stands where a folder should be"):
        cd.prepare(str(shards), tmp_path / "file" / "index")


def test_one_file_and_one_without_samples(tmp_path: Path, samples: list[Any]) -> None:
    tar = write_tar(tmp_path / "a" / "one.tar", [("x.jpg", samples[0][1]["jpg"])])
    assert cd.prepare(str(tar)).samples == 1
    assert len(cd.open_source(str(tar))) == 1
    write_tar(tmp_path / "b" / "none.tar", [])
    assert cd.prepare(str(tmp_path / "b")).samples == 0
    source = cd.open_source(str(tmp_path / "b"))
    assert len(source) == len(source.read(np.arange(0))) == 0


SCRIPT = """
import sys, time
import curator_dali as cd
from curator_dali.preparation import groups

index = groups._index_tar
def slow(*args, **kwargs):
    time.sleep(0.15)
    return index(*args, **kwargs)
groups._index_tar = slow
cd.prepare(sys.argv[1], threads=1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_is_taken_up_again(shards: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(shards)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((shards / FOLDER).glob("group-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number
    done = len(list((shards / FOLDER).glob("group-*")))
    assert 3 <= done < 12
    assert len(cd.open_source(str(shards))) == 24  # there is no index yet
    made = cd.prepare(str(shards))
    assert made.indexed == 12 - done
    assert [row["key"] for row in rows_of(shards / FOLDER)] == [f"{n:06d}" for n in range(24)]
    assert not [name for name in names_of(shards / FOLDER) if not name.endswith(".arrow") or "group" in name]


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from curator_dali.preparation.groups import silence_interrupts

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=silence_interrupts)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.kill(child, signal.SIGINT)  # as Ctrl-C reaches all of a terminal's processes
    os.kill(child, 0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_the_command(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(shards), "--worker", "1/2"]) == 0
    assert "indexed 6 of 12 files" in capsys.readouterr().out
    assert main(["prepare", str(shards), "--json", "--threads", "2"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["samples"], made["indexed"], made["complete"]) == (24, 6, True)
    assert main(["prepare", str(shards), "--index", str(tmp_path / "index"), "--no-headers"]) == 0
    assert "Headers of images are not in it" in capsys.readouterr().out
    assert {row["width"] for row in rows_of(tmp_path / "index")} == {None}
    with pytest.raises(SystemExit):
        main(["prepare", str(shards), "--worker", "2/2"])
    assert main(["prepare", str(tmp_path / "nothing")]) == 2


def test_a_folder_that_cannot_be_written_to(shards: Path, tmp_path: Path) -> None:
    (shards / ".curator_dali_index").touch()  # also root cannot make a folder of that name
    with pytest.raises(OutputError, match="a file stands where a folder should be"):
        cd.prepare(str(shards))
    assert cd.prepare(str(shards), tmp_path / "index").complete


def test_a_copy_with_its_index(shards: Path, tmp_path: Path) -> None:
    cd.prepare(str(shards))
    copy = shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copy)
    source = cd.open_source(str(copy))
    assert source.headers(np.arange(24))["codec"].all()
    assert source.fingerprint == cd.open_source(str(shards)).fingerprint


def test_an_index_in_a_store(shards: Path, memory: fsspec.AbstractFileSystem) -> None:
    for path in shards.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    expected = cd.open_source("memory://bucket/*.tar", index="none")
    made = cd.prepare("memory://bucket/*.tar")
    assert made.folder == "memory://bucket/.curator_dali_index"
    assert cd.prepare("memory://bucket/*.tar").indexed == 0
    source = cd.open_source("memory://bucket/*.tar")
    assert source.headers(np.arange(24))["codec"].all()
    assert source.fingerprint == expected.fingerprint
    assert source.read_ids(np.arange(24)).to_pylist() == expected.read_ids(np.arange(24)).to_pylist()
    memory.pipe_file("/bucket/00003.tar", (shards / "00004.tar").read_bytes())
    assert cd.prepare("memory://bucket/*.tar").indexed == 1
    keys = [f"{n:06d}" for n in range(24)]
    keys[6:8] = keys[8:10]
    assert cd.open_source("memory://bucket/*.tar").read_ids(np.arange(24)).to_pylist() == keys


def sent(server: Server) -> int:
    """Bytes that ranges were asked for, and whole files."""
    total = 0
    for method, text in server.requests:
        path, _, wanted = text.partition(" ")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        size = len(server.files.get(path, b""))
        if method == "GET":
            total += min(int(match[2]) + 1, size) - int(match[1]) if match else size
    return total


@pytest.mark.parametrize(("side", "count", "most"), [(90, 1500, 1.05), (220, 400, 1.05), (1800, 8, 0.35)])
def test_a_store_is_asked_for_each_byte_once(
    server: Server, tmp_path: Path, side: int, count: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images have about 8 kB, 60 kB and 3 MB, and the last ones are worth a hop whatever this machine does."""
    if side == 1800:
        monkeypatch.setattr(Link, "break_even", 1 << 20)
    image = encode(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8), quality=90)
    for number in range(3):
        members = [
            (f"{number}{n:05d}.{end}", data) for n in range(count) for end, data in (("jpg", image), ("txt", b"x"))
        ]
        server.files[f"/t/{number}.tar"] = write_tar(tmp_path / f"{number}.tar", members).read_bytes()
    size = sum(map(len, server.files.values()))
    made = cd.prepare([f"{server.url}/t/{number}.tar" for number in range(3)], tmp_path / "index")
    assert (made.samples, made.refused, made.headers) == (3 * count, {}, True)
    assert sent(server) <= most * size


def test_row_groups_of_a_store_are_read_once(server: Server, tmp_path: Path) -> None:
    photo = encode(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8), quality=90)
    table = pa.table({"key": [f"{n:04d}" for n in range(200)], "jpg": [photo] * 200, "text": ["x" * 100] * 200})
    for number in range(2):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table, path, row_group_size=40, use_dictionary=False)
        server.files[f"/p/{number}.parquet"] = path.read_bytes()
    size = sum(map(len, server.files.values()))
    made = cd.prepare([f"{server.url}/p/{number}.parquet" for number in range(2)], tmp_path / "index")
    assert (made.samples, made.refused) == (400, {})
    assert [row["key"] for row in rows_of(tmp_path / "index")] == [f"{n:04d}" for n in range(200)] * 2
    print(sent(server) / size, server.requests)
    assert sent(server) <= 1.05 * size


def _prepare(pattern: str, barrier: Any, results: Any) -> None:
    barrier.wait(60)
    results.put(cd.prepare(pattern, threads=2).indexed)


def test_two_at_once_with_other_patterns_make_one_index(shards: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    patterns = [f"{shards}/0000*.tar", f"{shards}/0001*.tar", f"{shards}/*.tar"]
    processes = [context.Process(target=_prepare, args=(pattern, barrier, results)) for pattern in patterns]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [row["key"] for row in rows_of(shards / FOLDER)] == [f"{n:06d}" for n in range(24)]
    assert cd.prepare(str(shards)).indexed == 0
    assert {name.split("-")[0] for name in names_of(shards / FOLDER)} == {"files.arrow", "samples"}


def test_what_another_process_is_at_stays(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank does its share of the last tars while another process does the first ones."""
    index, script = run._run, "import sys, curator_dali as cd; cd.prepare(sys.argv[1], shard=cd.Shard(0, 2))"

    def index_beside(*args: Any) -> int:
        monkeypatch.setattr(run, "_run", index)
        subprocess.run([sys.executable, "-c", script, f"{shards}/0001*.tar"], check=True, timeout=60)
        return index(*args)

    monkeypatch.setattr(run, "_run", index_beside)
    assert cd.prepare(f"{shards}/0000*.tar").complete
    assert len(list((shards / FOLDER).glob("group-*"))) == 1  # of the rank
    assert cd.prepare(f"{shards}/0001*.tar").indexed == 1
    assert len(rows_of(shards / FOLDER)) == 24


def test_an_open_source_goes_on_after_a_change(shards: Path, samples: list[Any]) -> None:
    cd.prepare(str(shards))
    source = cd.open_source(str(shards))
    write_tar(shards / "00007.tar", [("other.jpg", samples[0][1]["jpg"])])
    cd.prepare(str(shards))
    assert source.read_ids(np.arange(24)).to_pylist() == [f"{n:06d}" for n in range(24)]
    assert len(source.read(np.arange(24)).errors) == 2  # of the tar that changed


def test_a_damaged_record_is_made_again(shards: Path) -> None:
    cd.prepare(str(shards), shard=cd.Shard(0, 2))
    (record, *_) = (shards / FOLDER).glob("group-*")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(SourceError, match="run it again"):
        cd.prepare(str(shards))
    assert cd.prepare(str(shards)).indexed == 1
    assert len(rows_of(shards / FOLDER)) == 24


def test_parts_that_are_missing_cut_or_damaged_are_made_again(shards: Path) -> None:
    cd.prepare(str(shards))
    expected, names = rows_of(shards / FOLDER), names_of(shards / FOLDER)
    parts = sorted((shards / FOLDER).glob("samples-*"))
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    reasons = set(cd.open_source(str(shards)).read(np.arange(24)).errors.values())
    assert len(reasons) == 2
    assert all("`curator-dali prepare --anew`" in reason for reason in reasons)
    assert cd.prepare(str(shards)).indexed == 2
    assert rows_of(shards / FOLDER) == expected
    whole = parts[2].read_bytes()
    parts[2].write_bytes(bytes(len(whole)))
    assert cd.prepare(str(shards)).indexed == 0
    (reason,) = set(cd.open_source(str(shards)).read(np.arange(24)).errors.values())
    assert "`curator-dali prepare --anew`" in reason
    assert main(["prepare", str(shards), "--anew"]) == 0
    assert parts[2].read_bytes() == whole
    assert names_of(shards / FOLDER) == names
    assert cd.prepare(str(shards), anew=True, shard=cd.Shard(0, 2)).indexed == 6


def test_an_index_of_other_data_is_not_replaced(shards: Path, tmp_path: Path) -> None:
    image = encode(next(iter(load_photos().values())))
    rows = tmp_path / "rows"
    rows.mkdir()
    pq.write_table(pa.table({"jpg": [image], "png": [image]}), rows / "0.parquet")
    index = tmp_path / "index"
    cd.prepare(ParquetSource(rows / "0.parquet", image_column="jpg"), index)
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    shutil.copytree(shards, tmp_path / "others")
    with pytest.raises(SourceError, match=r"index with the files 'parquet', not 'tar': .* \(--index\)"):
        cd.prepare(str(shards), index)
    with pytest.raises(SourceError, match=r"image column 'jpg', not 'png': .* \(--index\)"):
        cd.prepare(ParquetSource(rows / "0.parquet", image_column="png"), index)
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before
    with pytest.raises(SourceError, match="is the index of a data set of kind 'parquet', and not of 'tar'"):
        cd.open_source(str(shards), index=index)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(image)
    for spec in (tmp_path / "images", tmp_path / "images" / "*.jpg", [tmp_path / "images" / "a.jpg"]):
        with pytest.raises(SourceError, match=r"of kind 'parquet', and not of 'folder'|opened without an index"):
            cd.open_source(spec, index=index)
    cd.prepare(str(shards), tmp_path / "tars")
    with pytest.raises(SourceError, match="and not of 'parquet'"):
        cd.open_source(str(rows), index=tmp_path / "tars")
    with pytest.raises(SourceError, match=r"index with the folder .*shards', not .*others': .* \(--index\)"):
        cd.prepare(str(tmp_path / "others"), tmp_path / "tars")


def test_where_no_index_may_lie(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    before = names_of(shards)
    for index in ("", "beside", "cache", "none", "shards", str(shards), f"{shards}/"):
        with pytest.raises(SourceError, match=r"is no folder|is the folder of the data"):
            cd.prepare("shards", index)
        assert main(["prepare", "shards", "--index", index]) == 2
    assert names_of(shards) == before
    assert names_of(shards.parent) == ["shards"]

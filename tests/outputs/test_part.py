"""Parts of an output: all of a part or nothing, whatever ends the process."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator_dali.errors import OutputError
from curator_dali.outputs import Manifest, PartWriter, RowFiles
from tests.account import account
from tests.outputs.part_job import PART, SAMPLES, SCHEMA, image, rows, run

# Forks a child for each try, which has everything imported already, and kills it at a random moment.
KILLER = """
import os, random, signal, sys, time
import pyarrow, pyarrow.parquet
import curator_dali.outputs
from tests.outputs.part_job import run

pyarrow.array([1])  # imports more
random.seed(int(sys.argv[2]))
longest = 0.002
began = time.perf_counter()
kills = 0
while True:
    pid = os.fork()
    if pid == 0:
        try:
            run(sys.argv[1])
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    time.sleep(random.random() * longest)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(os.WEXITSTATUS(status) or print(kills))
    kills += 1
    longest *= 1.02  # so that it ends on a slow machine, too
    if time.perf_counter() - began > 60:
        sys.exit("no end")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(str(folder))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_sample_is_there_once(whole: Path) -> None:
    accounts = account(str(whole), tars=True)
    accounts.check()
    statuses = [status for start in range(0, SAMPLES, PART) for status in rows(start, start + PART)["rows"]["status"]]
    assert accounts.counts == {name: statuses.count(name) for name in ("kept", "dropped", "failed")}
    found = RowFiles(str(whole)).columns(["index", "status", "tar", "key", "score"])
    assert found["index"].tolist() == list(range(SAMPLES))
    assert found["status"].tolist() == statuses
    for number, (status, name, key) in enumerate(zip(statuses, found["tar"], found["key"], strict=True)):
        assert (name is not None) == (status == "kept")
        if status == "kept" and number % 5 == 0:
            with tarfile.open(whole / name) as tar:
                assert tar.extractfile(f"{key}.jpg").read() == image(number)  # type: ignore[union-attr]
                about = json.loads(tar.extractfile(f"{key}.curation.json").read())  # type: ignore[union-attr]
                assert about == {"image_id": key, "score": number / 10}


@pytest.mark.parametrize("seed", range(3))
def test_kill_anywhere_loses_nothing(tmp_path: Path, whole: Path, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "out"), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stderr == ""
    assert int(done.stdout) > 10
    assert content(tmp_path / "out") == content(whole)
    account(str(tmp_path / "out"), tars=True).check()


def test_a_limit_on_files_is_named_and_leaves_only_whole_ones(tmp_path: Path, whole: Path) -> None:
    command = [sys.executable, "-m", "tests.outputs.part_job", str(tmp_path)]
    done = subprocess.run([*command, "45000"], capture_output=True, text=True, check=False)
    assert "OutputError: cannot write" in done.stderr
    assert "is larger than this process may write (see ulimit -f)" in done.stderr
    assert "Exception ignored" not in done.stderr
    expected = content(whole)
    found = content(tmp_path)
    assert 3 < len(found) < len(expected)
    assert found.items() <= expected.items()
    subprocess.run(command, check=True)
    assert content(tmp_path) == expected


def test_a_full_disk_is_named_and_leaves_only_whole_files(tmp_path: Path, whole: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        with pytest.raises(
            OutputError, match=r"the disk is full \(0\.0 of 0\.0 GB are free\)\. What is finished stays"
        ):
            run(str(disk / "out"))
        found = content(disk / "out")
        assert len(found) > 3
        assert found.items() <= content(whole).items()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        run(str(disk / "out"))
        assert content(disk / "out") == content(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_remote(whole: Path) -> None:
    run("memory://part job/öut")
    account("memory://part job/öut", tars=True).check()
    from curator_dali.io.files import filesystem

    fs, root = filesystem("memory://part job/öut")
    expected = content(whole)
    expected.pop("_manifest/lock")
    assert {path[len(root) + 1 :]: fs.cat_file(path) for path in fs.find(root)} == expected


@pytest.fixture
def manifest(tmp_path: Path) -> Any:
    with Manifest.open(str(tmp_path), source="made-up", samples=SAMPLES, settings={}) as opened:
        yield opened


def test_a_part_takes_each_of_its_samples_once(manifest: Manifest, tmp_path: Path) -> None:
    before = content(tmp_path)
    part = PartWriter(manifest, 24, 48, SCHEMA)
    part.write(**rows(40, 48))
    for start, stop, words in ((47, 48, "sample 47 was given twice"), (16, 32, "sample 16 is not of"), (47, 49, "48")):
        with pytest.raises(ValueError, match=words):
            part.write(**rows(start, stop))
    twice = rows(24, 26)
    twice["rows"]["index"] = np.array([24, 24])
    with pytest.raises(ValueError, match="sample 24 was given twice"):
        part.write(**twice)
    part.write(**rows(24, 30))
    with pytest.raises(ValueError, match=r"10 samples of \[24, 48\) are missing: \[30, 31, 32, 33, 34\]"):
        part.commit()
    part.discard()
    part.discard()
    assert content(tmp_path) == before
    assert manifest.ranges() == []
    with pytest.raises(ValueError, match=r"\[239, 241\) is no range of the 240 samples"):
        PartWriter(manifest, 239, 241, SCHEMA)


def test_an_exception_leaves_nothing_even_of_full_tars(manifest: Manifest, tmp_path: Path) -> None:
    before = content(tmp_path)
    part = PartWriter(manifest, 0, 24, SCHEMA, shard_samples=2)
    part.write(**rows(0, 20))
    assert len(list(tmp_path.glob("*.tar"))) > 2
    with pytest.raises(ValueError, match="was given twice"), part:
        part.write(**rows(16, 24))
    assert content(tmp_path) == before


def test_a_kept_sample_needs_its_members(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="sample '000001' is kept, but its members were not given"):
        PartWriter(manifest, 0, 24, SCHEMA).write(**(rows(0, 24) | {"members": None}))


def test_rows_without_tars(manifest: Manifest, tmp_path: Path) -> None:
    with PartWriter(manifest, 0, SAMPLES, SCHEMA, tars=False) as part:
        part.write(**rows(0, SAMPLES))
        done = part.commit({"seconds": 1.5})
    assert [file.name for file in done.files] == ["000000000000-000000000240.parquet"]
    assert manifest.parts() == [done]
    assert RowFiles(str(tmp_path)).lineage == manifest.run["lineage"]
    account(str(tmp_path), tars=True).check()


def test_what_does_not_add_up_is_told(manifest: Manifest, tmp_path: Path) -> None:
    import dataclasses

    import pyarrow.parquet as pq

    with PartWriter(manifest, 0, SAMPLES, SCHEMA) as writer:
        writer.write(**rows(0, SAMPLES))
        part = writer.commit()
    (parquet,) = tmp_path.glob("*.parquet")
    table = pq.read_table(parquet)

    def problems(changed: Any) -> str:
        pq.write_table(changed, parquet)
        files = [f._replace(size=(tmp_path / f.name).stat().st_size) for f in part.files]
        manifest.commit(dataclasses.replace(part, files=tuple(files)))
        accounts = account(str(tmp_path), tars=True)
        with pytest.raises(OutputError, match="does not account for its input"):
            accounts.check()
        return "; ".join(accounts.problems)

    assert "1 have no row" in problems(table.slice(1))
    assert "239 rows for 240 samples" in problems(table.slice(1))
    assert "1 have more than one row" in problems(table.take([*range(SAMPLES), 5]))
    assert "rows are {'kept': 0, 'dropped': 0, 'failed': 240}, the record says" in problems(
        table.set_column(table.column_names.index("status"), table.schema.field("status"), [["failed"] * SAMPLES])
    )
    assert "-0000.tar has 144 samples, not the 143 that the rows say" in problems(
        table.set_column(
            table.column_names.index("tar"), table.schema.field("tar"), [[None, None, *table["tar"].to_pylist()[2:]]]
        )
    )
    parquet.unlink()
    assert account(str(tmp_path)).problems == [f"{parquet.name} is missing"]

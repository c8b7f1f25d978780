"""What is finished and what is missing, whatever happened to the run before."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.errors import OutputError
from curator_dali.io.files import Written, filesystem
from curator_dali.io.store import join
from curator_dali.outputs import Manifest, Part
from curator_dali.outputs.manifest import part_name

SETTINGS = {"stages": [{"kind": "filter", "min": 5.0}], "embeddings": True}
LINEAGE = {"clip": {"sha256": "ab12"}}
COUNTS = {"kept": 1, "dropped": 0, "failed": 0}


def begin(folder: Path | str, samples: int = 100, **changes: Any) -> Manifest:
    given: dict[str, Any] = {"source": "tar-1", "samples": samples, "settings": SETTINGS, "lineage": LINEAGE}
    return Manifest.open(str(folder), **(given | changes))


def finish(manifest: Manifest, start: int, stop: int, content: bytes = b"abc") -> Part:
    """Write a part's file, and record it."""
    from curator_dali.io.files import AtomicFile

    with AtomicFile(join(manifest.folder, f"{part_name(start, stop)}.parquet"), digest=True) as file:
        file.write(content)
        written = file.commit()
    part = Part(start, stop, (written._replace(name=os.path.basename(written.name)),), {"kept": stop - start}, {"s": 1})
    manifest.commit(part)
    return part


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "öut put")
    else:
        fs = filesystem("memory://")[0]
        fs.store.clear()
        yield "memory://öut put"
        fs.store.clear()


def test_a_run_goes_on_where_it_stood(folder: str) -> None:
    with begin(folder) as manifest:
        assert manifest.missing(40) == [(0, 40), (40, 80), (80, 100)]
        part = finish(manifest, 40, 80)
    with begin(folder) as manifest:
        assert manifest.parts() == [part]
        assert manifest.ranges() == [(40, 80)]
        assert manifest.missing() == [(0, 40), (80, 100)]
        assert manifest.missing(30) == [(0, 30), (30, 40), (80, 90), (90, 100)]
        assert manifest.verify() == ["samples 0 to 39 are missing", "samples 80 to 99 are missing"]
        for start, stop in manifest.missing(40):
            finish(manifest, start, stop)
        assert manifest.missing() == []
        assert manifest.verify(deep=True) == []
    assert [len(part) for part in Manifest.load(folder).parts()] == [40, 40, 20]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "tar-2"}, "source was 'tar-1' and is now 'tar-2'"),
        ({"samples": 101}, "samples was 100 and is now 101"),
        (
            {"settings": {"stages": [{"kind": "filter", "min": 6.0}], "embeddings": True}},
            r"stages\[0\]\.min was 5\.0 and is now 6",
        ),
        ({"settings": {"stages": SETTINGS["stages"]}}, "settings.embeddings was True and is now not there"),
        ({"settings": SETTINGS | {"embeddings": 1}}, "settings.embeddings was True and is now 1"),
        ({"settings": SETTINGS | {"stages": []}}, r"settings\.stages was \[\{.*\}\] and is now \[\]"),
        ({"lineage": {"clip": {"sha256": "cd34"}}}, "lineage.clip.sha256 was 'ab12' and is now 'cd34'"),
    ],
)
def test_another_run_is_refused_by_what_differs(folder: str, changes: dict[str, Any], words: str) -> None:
    begin(folder).close()
    with pytest.raises(OutputError, match=words):
        begin(folder, **changes)
    begin(folder).close()


def test_tuples_are_lists(tmp_path: Path) -> None:
    begin(tmp_path, settings={"a": (1, 2)}).close()
    begin(tmp_path, settings={"a": [1, 2]}).close()


def test_parts_with_other_files_are_done_again(folder: str) -> None:
    fs = filesystem(folder)[0]
    with begin(folder) as manifest:
        for start in (0, 20, 40, 60, 80):
            finish(manifest, start, start + 20)
        names = [part.files[0].name for part in manifest.parts()]
        fs.rm_file(filesystem(join(folder, names[1]))[1])
        fs.pipe_file(filesystem(join(folder, names[2]))[1], b"shorter than it was"[:2])
        fs.pipe_file(filesystem(join(folder, names[3]))[1], b"abd")
        fs.pipe_file(filesystem(join(folder, "_manifest/parts/" + names[4].replace("parquet", "json")))[1], b"{")
        assert manifest.verify()[1:3] == [f"{names[1]} is missing", f"{names[2]} has 2 bytes instead of 3"]
        assert f"{names[3]} has other content than was written" in manifest.verify(deep=True)
        with pytest.raises(OutputError, match="1 damaged records"):
            manifest.parts()
    with begin(folder) as manifest:
        assert manifest.missing(20) == [(20, 40), (40, 60), (80, 100)]
        assert sorted(path.rpartition("/")[2] for path in fs.glob(filesystem(join(folder, "*.parquet"))[1])) == [
            names[0],
            names[3],
        ]


def test_files_of_unfinished_parts_go_and_others_stay(tmp_path: Path) -> None:
    with begin(tmp_path) as manifest:
        finish(manifest, 0, 10)
    strangers = ["x.tar", "000000000010-000000000020.txt", "00010-00020.tar", "000000000010-000000000020.tar.bak"]
    for name in [*strangers, "000000000010-000000000020-0000.tar", "000000000010-000000000020.parquet"]:
        (tmp_path / name).write_bytes(b"abc")
    begin(tmp_path).close()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {*strangers, "000000000000-000000000010.parquet", "_manifest"}


def test_an_output_without_its_settings_is_not_touched(tmp_path: Path) -> None:
    with begin(tmp_path) as manifest:
        finish(manifest, 0, 10)
    (tmp_path / "_manifest" / "run.json").unlink()
    with pytest.raises(OutputError, match=r"run\.json is gone"):
        begin(tmp_path)
    assert (tmp_path / "000000000000-000000000010.parquet").exists()
    with pytest.raises(OutputError, match="is no output of a curation"):
        Manifest.load(str(tmp_path))


def test_other_versions_and_damage(tmp_path: Path) -> None:
    begin(tmp_path).close()
    run = tmp_path / "_manifest" / "run.json"
    text = run.read_text()
    run.write_text(text.replace('"format": 1', '"format": 2'))
    for call in (lambda: begin(tmp_path), lambda: Manifest.load(str(tmp_path))):
        with pytest.raises(OutputError, match="was written in format 2 by curator_dali"):
            call()
    run.write_text(text[:20])
    with pytest.raises(OutputError, match=r"run\.json is damaged"):
        begin(tmp_path)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    manifest = begin(tmp_path)
    with pytest.raises(OutputError, match="another run is writing to"):
        begin(tmp_path)
    worker = pickle.loads(pickle.dumps(manifest))
    finish(worker, 0, 50)
    del worker
    finish(Manifest.load(str(tmp_path)), 50, 100)
    assert manifest.missing() == []
    with pytest.raises(OutputError, match="another run"):
        begin(tmp_path)
    manifest.close()
    manifest.close()
    begin(tmp_path).close()


RANGE = st.tuples(st.integers(0, 59), st.integers(1, 60)).filter(lambda pair: pair[0] < pair[1])


@settings(deadline=None)  # files are written
@given(st.lists(RANGE, max_size=6), st.integers(1, 70))
def test_missing_is_what_no_part_has(ranges: list[tuple[int, int]], size: int) -> None:
    from curator_dali.outputs.manifest import Records

    filesystem("memory://")[0].store.clear()
    manifest = begin("memory://missing", samples=60)
    for start, stop in ranges:
        Records("memory://missing/_manifest").write(Part(start, stop, (), {"kept": stop - start}))
    missing = manifest.missing(size)
    wanted = set(range(60)) - {n for start, stop in ranges for n in range(start, stop)}
    found = [n for start, stop in missing for n in range(start, stop)]
    assert found == sorted(wanted)
    assert all(0 < stop - start <= size and start // size == (stop - 1) // size for start, stop in missing)
    overlap = len([n for start, stop in set(ranges) for n in range(start, stop)]) > 60 - len(wanted)
    assert any("more than one part" in problem for problem in manifest.verify()) == overlap


def test_many_records_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curator_dali.outputs.manifest._PACK_FROM", 5)
    with begin(tmp_path) as manifest:
        for start in range(0, 60, 10):
            finish(manifest, start, start + 10)
        before = manifest.parts()
    with begin(tmp_path) as manifest:
        assert list((tmp_path / "_manifest" / "parts").iterdir()) == []
        assert manifest.parts() == before
        finish(manifest, 60, 70)
        assert manifest.missing() == [(70, 100)]
        (tmp_path / before[2].files[0].name).unlink()
    with begin(tmp_path) as manifest:
        assert manifest.missing() == [(20, 30), (70, 100)]
        assert len(manifest.parts()) == 6
        part = finish(manifest, 20, 30, b"another")
        assert part in manifest.parts()
        assert manifest.verify(deep=True) == ["samples 70 to 99 are missing"]
    (tmp_path / "_manifest" / "parts.jsonl").write_bytes(b"{\n")
    with pytest.raises(OutputError, match=r"parts\.jsonl is damaged"):
        begin(tmp_path)
    assert (tmp_path / "000000000000-000000000010.parquet").exists()


def test_an_empty_source(folder: str) -> None:
    with begin(folder, samples=0) as manifest:
        assert manifest.missing(10) == []
        assert manifest.verify() == []


def test_parts_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not \[5, 5\)"):
        Part(5, 5)
    with pytest.raises(ValueError, match="has 5 samples, its counts add up to 1"):
        Part(0, 5, (), COUNTS)
    with begin(tmp_path) as manifest:
        with pytest.raises(ValueError, match="no range of the 100 samples"):
            manifest.commit(Part(99, 101, (), {"kept": 2}))
        with pytest.raises(ValueError, match="at least 1 sample"):
            manifest.missing(0)
    assert Part.from_json(Part(0, 1, (Written("a", 1, "b"),), COUNTS).to_json()).files == (Written("a", 1, "b"),)
    for data in (b"[]", b"{", b"3", json.dumps({"start": 0}).encode()):
        with pytest.raises(ValueError, match=r".+"):
            Part.from_json(data)


READ_ONLY = """
import os, sys
from curator_dali.errors import OutputError
from curator_dali.outputs import Manifest
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    Manifest.open(sys.argv[1], source="s", samples=1, settings={})
except OutputError as error:
    print(error)
"""


def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents][:3]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    folder = tmp_path / "out"
    folder.mkdir(mode=0o555)
    for target in (folder, folder / "inner"):
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(target)], check=True, capture_output=True, text=True
        )
        assert re.match(rf"cannot write {target}: Permission denied. Choose a folder", done.stdout), done
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="a file stands where a folder should be"):
        begin(tmp_path / "file")
    with pytest.raises(OutputError, match="a file stands where a folder should be"):
        begin(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="cannot open 'nope://out"):
        begin("nope://out")

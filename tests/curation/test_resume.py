"""Killed, interrupted or failing: nothing is lost, nothing is half there, and the same call finishes it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import curator_dali as cd
from curator_dali.batch.batch import ImageBatch
from curator_dali.io import store
from curator_dali.outputs import Manifest, PartWriter
from tests import formats, helpers
from tests.curation.helpers import FirstOfItsLabel, Spy, cheap_stages, content, read_members, read_rows
from tests.curation.run_curation import stages_for

SAMPLES, PART = 240, 24


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> Path:
    folder = tmp_path_factory.mktemp("long")
    helpers.write_shards(folder, helpers.photo_samples(photos, SAMPLES), per_shard=100)
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> Path:
    """The same, with a file of every kind of damage, some of them in one batch, and sidecars that are none."""
    folder = tmp_path_factory.mktemp("damaged")
    samples = helpers.photo_samples(photos, SAMPLES)
    bad = [data for data, _ in formats.bad_files(Image.fromarray(photos["chelsea"])).values()]
    bad += [data for name, data in formats.good_files(Image.fromarray(photos["chelsea"])).items() if "jpeg" not in name]
    flipped = bytearray(formats.save(Image.fromarray(photos["chelsea"]).resize((61, 47)), "PNG"))
    flipped[29] ^= 1  # of the checksum of the header, as a worn disk does it
    bad += [bytes(flipped), bytes(flipped[:33]) + flipped[-12:]]
    for number, data in enumerate(bad):
        key, members = samples[3 * number + number % 3]
        samples[3 * number + number % 3] = (key, {**members, "jpg": data})
    samples[200] = (samples[200][0], {**samples[200][1], "json": b'{"number": 200', "cls": b"\xff"})
    helpers.write_shards(folder, samples, per_shard=100)
    return folder


def run_here(source: Path, out: Path, kind: str = "") -> cd.Report:
    return cd.curate(str(source), out, stages=stages_for(kind), device="cpu", batch_size=8, part_size=PART)


def start(source: Path, out: Path, kind: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.curation.run_curation", str(source), str(out), kind]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def whole_files(out: Path) -> None:
    """Every file that a reader would see can be read to its end."""
    import pyarrow.parquet as pq

    read_members(out)
    for path in out.glob("*.parquet"):
        pq.read_table(path)


@pytest.mark.parametrize("kind", ["", "global"])
def test_killed_again_and_again_it_ends_as_if_nothing_had_been(damaged: Path, tmp_path: Path, kind: str) -> None:
    source, whole = damaged, tmp_path / "whole"
    assert run_here(source, whole, kind).num_failed >= 15
    out = tmp_path / "out"
    rng = random.Random(kind)
    kills = 0
    for _ in range(3 if kind else 4):
        process = start(source, out, kind)
        assert process.stdout
        try:
            assert process.stdout.readline() == "running\n"
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        finally:
            process.kill()
            process.communicate()
        if out.exists():
            whole_files(out)
    assert kills >= 2  # else the waits are too long to test anything
    report = run_here(source, out, kind)
    assert report.complete
    assert content(out) == content(whole)  # the same rows and the same tars, byte for byte
    assert not list(out.rglob("*.partial"))
    assert Manifest.load(str(out)).verify(deep=True) == []


@pytest.mark.parametrize("kind", ["", "global"])
def test_two_runs_leave_the_same_but_for_the_seconds(damaged: Path, tmp_path: Path, kind: str) -> None:
    outs = [tmp_path / name for name in ("a", "b")]
    held = []
    for number, out in enumerate(outs):
        held.append([bytearray(3000) for _ in range(500 * number)])  # so that addresses differ
        run_here(damaged, out, kind)
    assert content(outs[0]) == content(outs[1])
    records = [
        [(part.files, part.counts, _untimed(part.info)) for part in Manifest.load(str(out)).parts()] for out in outs
    ]
    assert records[0] == records[1]
    reports = [_untimed(json.loads((out / "report.json").read_text())) for out in outs]
    assert [report.pop("out") for report in reports] == list(map(str, outs))
    assert reports[0] == reports[1]


def _untimed(record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.items() if "second" not in name and name != "stages"}


def test_ctrl_c_keeps_finished_parts_and_says_how_to_go_on(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(source, out)
    assert process.stdout
    try:
        assert process.stdout.readline() == "running\n"
        deadline = time.monotonic() + 60
        while not list(out.glob("*.parquet")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "KeyboardInterrupt" in err
    assert f"of {SAMPLES} samples are done and stay in {out}; the same call goes on from there" in err
    assert not list(out.rglob("*.partial"))  # what was under way is gone, not left behind
    whole_files(out)
    done = sum(len(part) for part in Manifest.load(str(out)).parts())
    assert 0 < done < SAMPLES
    assert run_here(source, out).earlier == done
    assert [row["index"] for row in read_rows(out)] == list(range(SAMPLES))


def test_an_error_in_a_stage_drops_the_part_under_way_only(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class BoomError(Exception):
        pass

    def explode(batch: ImageBatch) -> None:
        if batch.columns["index"][0] >= 3 * PART:
            raise BoomError

    out = tmp_path / "out"
    options: dict[str, Any] = {"device": "cpu", "batch_size": 8, "part_size": PART}
    with pytest.raises(BoomError):
        cd.curate(str(source), out, stages=[*cheap_stages(), Spy(explode)], **options)
    assert f"samples {3 * PART} to {3 * PART + 7} of long" in caplog.text
    finished = Manifest.load(str(out)).ranges()
    assert finished == [(PART * n, PART * (n + 1)) for n in range(len(finished))]  # the writer may be a part behind
    assert len(finished) in (2, 3)
    assert len(list(out.glob("*.parquet"))) == len(finished)
    assert not list(out.rglob("*.partial"))


def test_an_error_of_the_writer_ends_the_run(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def break_it(batch: ImageBatch) -> None:
        if batch.columns["index"][0] == PART:  # the folder of the records becomes a file
            (out / "_manifest" / "parts").rename(out / "_manifest" / "away")
            (out / "_manifest" / "parts").write_text("")

    options: dict[str, Any] = {"device": "cpu", "batch_size": 8, "part_size": PART}
    with pytest.raises(cd.OutputError, match="cannot write"):
        cd.curate(str(source), out, stages=[Spy(break_it), *cheap_stages()], **options)
    assert not list(out.glob("*.partial")) + list(out.glob(".*.partial"))


def test_an_error_of_the_last_part_is_raised_too(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PartWriter.commit

    def commit(self: PartWriter, info: Any = None) -> Any:
        if self.stop == SAMPLES:  # there is nothing more to hand over, so nobody would notice
            time.sleep(0.3)
            raise cd.OutputError("the disk is full")
        return original(self, info)

    monkeypatch.setattr(PartWriter, "commit", commit)
    with pytest.raises(cd.OutputError, match="the disk is full"):
        run_here(source, tmp_path / "out")
    monkeypatch.undo()
    assert run_here(source, tmp_path / "out").earlier == SAMPLES - PART


def test_two_runs_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused: list[str] = []

    def begin_another(batch: ImageBatch) -> None:
        if batch.columns["index"][0] == 0:
            try:
                run_here(source, out)
            except cd.OutputError as error:
                refused.append(str(error))

    cd.curate(str(source), out, stages=[Spy(begin_another)], device="cpu", part_size=PART)
    assert len(refused) == 1
    assert "another run is writing" in refused[0]


def test_a_lost_file_is_made_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_here(source, out)
    before = content(out)
    next(iter(sorted(out.glob("*.tar")))).unlink()
    report = run_here(source, out)
    assert report.earlier == SAMPLES - PART
    assert content(out) == before


def test_killed_when_all_is_written_it_leaves_no_scores(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    original = store.remove_folder

    def kill(folder: str) -> None:
        if folder.endswith("_scored"):
            raise Killed
        original(folder)

    out = tmp_path / "out"
    monkeypatch.setattr(store, "remove_folder", kill)
    with pytest.raises(Killed):
        run_here(source, out, "global")
    assert (out / "_scored").exists()
    monkeypatch.undo()
    assert run_here(source, out, "global").earlier == SAMPLES
    assert not (out / "_scored").exists()


def test_a_stage_that_sees_everything_decides_before_tars_are_written(source: Path, tmp_path: Path) -> None:
    first = FirstOfItsLabel()
    out = tmp_path / "out"
    counts: list[int] = []
    stages = [cd.Filter("width", min=110), first, cd.Quality(), cd.Filter("sharpness", min=300)]
    options: dict[str, Any] = {"device": "cpu", "batch_size": 8, "part_size": PART}
    with cd.Curation(str(source), out, stages=stages, **options) as curation:
        assert curation.work == (0, 2 * SAMPLES)
        report = curation.run(counts.append)
        assert curation.work == (2 * SAMPLES, 2 * SAMPLES)
    assert sum(counts) == 2 * SAMPLES
    plain = tmp_path / "plain"
    cd.curate(str(source), plain, stages=[stages[0], *stages[2:], cd.Filter("label", min=0)], **options)
    seen: dict[int, int] = {}
    for row, scored in zip(read_rows(out), read_rows(plain), strict=True):
        assert row["index"] == scored["index"]
        assert row["sharpness"] == scored["sharpness"]
        if scored["stage"] == "Filter(width)":  # before the decision: as without it
            assert (row["stage"], row["first"]) == ("Filter(width)", None)
            continue
        label = scored["label"] if scored["label"] is not None else row["label"]
        earlier = seen.setdefault(label, row["index"])
        assert row["first"] == earlier
        if earlier != row["index"]:  # also one that the filter behind it would have dropped
            assert (row["stage"], row["reason"]) == ("FirstOfItsLabel", f"label as of {earlier}")
        else:
            assert (row["status"], row["reason"]) == (scored["status"], scored["reason"])
    assert report.kept == sum(row["status"] == "kept" for row in read_rows(out)) == len(read_members(out)) > 0
    assert report.dropped["FirstOfItsLabel"] == {"label seen before": report.num_dropped - _others(report)}
    assert not (out / "_scored").exists()
    originals = read_members(source)
    for members in read_members(out).values():
        members.pop("curation.json")
        assert members in originals.values()
    again = cd.curate(str(source), out, stages=stages, **options)
    assert (again.earlier, again.kept) == (SAMPLES, report.kept)


def _others(report: cd.Report) -> int:
    return sum(sum(kinds.values()) for stage, kinds in report.dropped.items() if stage != "FirstOfItsLabel")

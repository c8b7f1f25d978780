"""Other thresholds on an output that is there: as a new run would decide, and without looking at an image."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.errors import StageError
from curator_dali.outputs import Manifest, RowFiles
from curator_dali.stages import Deduplicate, Filter, Quality
from tests import helpers
from tests.account import account
from tests.curation.helpers import FirstOfItsLabel, content, read_members, read_rows, write_embedded

OPTIONS: dict[str, Any] = {"device": "cpu", "batch_size": 16, "part_size": 20}
BEFORE = [Quality(), Deduplicate("bytes", near=4), Filter("sharpness", min=300)]
AFTER = [Quality(), Filter("sharpness", min=250), Deduplicate(False, near=16, keep="first")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> list[Path]:
    """Three tars: 40 crops, and 20 of them again."""
    samples = list(helpers.photo_samples(photos, 40))
    again = [(f"again-{key}", members) for key, members in samples[:20]]
    return helpers.write_shards(tmp_path_factory.mktemp("twice"), [*samples, *again], per_shard=20)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, shards: list[Path]) -> Path:
    folder = tmp_path_factory.mktemp("first") / "out"
    cd.curate([str(shard) for shard in shards], folder, stages=BEFORE, **OPTIONS)
    return folder


def decided(folder: Path) -> list[tuple[Any, ...]]:
    names = ("image_id", "status", "stage", "reason", "tar", "key", "sharpness", "duplicate_of", "duplicate_group")
    return [tuple(row.get(name) for name in names) for row in read_rows(folder)]


def test_it_decides_as_a_new_run_would(out: Path, shards: list[Path], tmp_path: Path) -> None:
    report = cd.rethreshold(out, tmp_path / "new", stages=AFTER)
    whole = cd.curate([str(shard) for shard in shards], tmp_path / "whole", stages=AFTER, **OPTIONS)
    assert decided(tmp_path / "new") == decided(tmp_path / "whole")
    assert (report.kept, report.dropped) == (whole.kept, whole.dropped)
    assert 0 < report.kept < 60
    assert len(report.dropped) == 2
    new, fresh = read_members(tmp_path / "new"), read_members(tmp_path / "whole")
    assert {key: members["jpg"] for key, members in new.items()} == {key: m["jpg"] for key, m in fresh.items()}
    account(str(tmp_path / "new"), tars=True).check()
    assert report.complete
    assert "phash" in read_rows(tmp_path / "new")[0]
    third = cd.rethreshold(tmp_path / "new", tmp_path / "third", stages=cd.stages_of(out))  # and back again
    assert decided(tmp_path / "third") == decided(out)
    assert third.kept != report.kept


def test_what_drops_nothing_is_known_by_name(out: Path, tmp_path: Path) -> None:
    new = cd.rethreshold(out, tmp_path / "new", stages=[Filter("width", min=1), *AFTER[1:]])
    assert len(new.dropped("width")) == 0
    assert len(new.dropped("sharpness")) > 0
    for report, stage in ((cd.Report.load(out), "Deduplicate"), (new, "Deduplicate"), (new, "Filter(width)")):
        assert report.stages[stage] > 0  # and what it took to decide


def test_the_same_call_finds_everything_done(out: Path, tmp_path: Path) -> None:
    first = cd.rethreshold(out, tmp_path / "new", stages=AFTER)
    before = content(tmp_path / "new")
    page = tmp_path / "new" / "report.html"
    written = page.stat().st_mtime_ns
    again = cd.rethreshold(out, tmp_path / "new", stages=AFTER)
    assert (first.earlier, again.earlier) == (0, 60)
    assert page.stat().st_mtime_ns == written
    page.unlink()
    cd.rethreshold(out, tmp_path / "new", stages=AFTER)
    assert page.exists()
    assert content(tmp_path / "new") == before
    with pytest.raises(cd.OutputError, match=r"sharpness|min was 250"):
        cd.rethreshold(out, tmp_path / "new", stages=[Filter("sharpness", min=251)])


def test_killed_it_goes_on(out: Path, tmp_path: Path) -> None:
    code = f"""
import time, curator_dali as cd
from tests.curation.test_rethreshold import AFTER
from curator_dali.outputs import PartWriter
commit = PartWriter.commit
def slowly(self, info=None):
    part = commit(self, info)
    print("part", flush=True)
    time.sleep(30)
    return part
PartWriter.commit = slowly
cd.rethreshold({str(out)!r}, {str(tmp_path / "new")!r}, stages=AFTER)
"""
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "part\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()
    assert len(Manifest.load(str(tmp_path / "new")).ranges()) == 1
    report = cd.rethreshold(out, tmp_path / "new", stages=AFTER)
    assert (report.earlier, report.complete) == (20, True)
    cd.rethreshold(out, tmp_path / "whole", stages=AFTER)
    assert content(tmp_path / "new") == content(tmp_path / "whole")


def test_stages_that_need_what_is_not_stored_are_named(out: Path, tmp_path: Path) -> None:
    def refused(match: str, *stages: Any) -> None:
        with pytest.raises(StageError, match=match):
            cd.rethreshold(out, tmp_path / "new", stages=list(stages))
        assert not (tmp_path / "new").exists()

    refused("Embed would have to look at the images again: that run had no such stage", cd.Embed("efficientnet-lite0"))
    refused(
        r"Filter\(aesthetic_score\) needs aesthetic_score, which the output does not store",
        Filter("aesthetic_score", min=5),
    )
    refused("Deduplicate needs pixel_hash", Deduplicate("pixels"))
    refused("Deduplicate needs dhash", Deduplicate(False, near=3, hash="dhash"))
    refused("needs embeddings", Deduplicate(False, similarity=0.9))
    refused(r"FirstOfItsLabel needs label", FirstOfItsLabel())
    refused("none of the stages decides", Quality())
    refused("stages is", *())
    for wrong in ({"shard_samples": 0}, {"shard_bytes": 0}, {"embeddings": "float64"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            cd.rethreshold(out, tmp_path / "limits", stages=AFTER, **wrong)
    assert not (tmp_path / "limits").exists()
    with pytest.raises(ValueError, match="give another folder"):
        cd.rethreshold(out, out, stages=AFTER)


def test_another_source_or_none_is_refused(shards: list[Path], out: Path, tmp_path: Path) -> None:
    with pytest.raises(cd.SourceError, match=r"is not the data set that .* was made of"):
        cd.rethreshold(out, tmp_path / "new", stages=AFTER, source=str(shards[0]))
    cd.curate({"a": b"x"}, tmp_path / "memory", stages=[Filter("width", min=2)], device="cpu")
    with pytest.raises(cd.SourceError, match="give source="):
        cd.rethreshold(tmp_path / "memory", tmp_path / "new", stages=[Filter("width", min=1)])
    report = cd.rethreshold(tmp_path / "memory", tmp_path / "new", stages=[Filter("width", min=1)], tars=False)
    assert (report.kept, report.num_failed) == (0, 1)


def test_what_was_dropped_before_it_was_scored_stays_dropped(
    shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = str(shards[0])
    before = [Filter("width", min=150), Quality(), Deduplicate("bytes")]
    first = cd.curate(source, tmp_path / "out", stages=before, **OPTIONS)
    stages = [Filter("sharpness", min=1), Deduplicate("bytes")]
    report = cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=stages)
    assert report.dropped["Filter(sharpness)"]["sharpness is missing"] == first.num_dropped > 0
    cd.rethreshold(tmp_path / "out", tmp_path / "two", stages=stages[1:])
    assert {row["reason"] for row in read_rows(tmp_path / "two") if row["status"] == "dropped"} == {
        "content_hash is missing"
    }
    assert "they stay dropped" in caplog.text


def test_from_the_command_line(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    assert main(["rethreshold", str(out), str(new), "--min", "sharpness=600", "--max", "brightness=0.5"]) == 0
    assert "sharpness < 600" in capsys.readouterr().out
    stages = Manifest.load(str(new)).run["settings"]["stages"]
    assert [(s["type"], s.get("field"), s.get("min"), s.get("max")) for s in stages] == [
        ("Deduplicate", None, None, None),
        ("Filter", "sharpness", 600, None),
        ("Filter", "brightness", None, 0.5),
    ]
    config = tmp_path / "new.toml"
    config.write_text('[[stages]]\ntype = "Filter"\nfield = "sharpness"\nmin = 250\n')
    assert (
        main(
            ["rethreshold", str(out), str(tmp_path / "two"), "--config", str(config), "--dedup", "none", "--near", "16"]
        )
        == 0
    )
    assert [s["type"] for s in Manifest.load(str(tmp_path / "two")).run["settings"]["stages"]] == [
        "Filter",
        "Deduplicate",
    ]
    capsys.readouterr()
    assert main(["duplicates", str(tmp_path / "two")]) == 0
    assert "pHash distance" in capsys.readouterr().out
    assert main(["duplicates", str(tmp_path / "two"), "--leaks", str(out), "--near", "4"]) == 0
    assert "are like one of" in capsys.readouterr().out
    assert main(["rethreshold", str(out), str(tmp_path / "three"), "--keep", "first"]) == 2
    assert "give --dedup" in capsys.readouterr().err
    alone = ["--executor", "local", "--num-workers", "2"]
    assert main(["rethreshold", str(out), str(tmp_path / "three"), *alone]) == 2
    assert "these are for --executor ray" in capsys.readouterr().err


def test_a_file_says_what_is_written_and_flags_over_it(
    out: Path, shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, new = tmp_path / "new.toml", tmp_path / "new"
    config.write_text('tars = false\nhtml = false\n\n[[stages]]\ntype = "Filter"\nfield = "sharpness"\nmin = 250\n')
    assert main(["rethreshold", str(out), str(new), "--config", str(config)]) == 0
    assert {path.suffix for path in new.iterdir() if path.is_file()} == {".parquet", ".json", ".md"}
    config.write_text(f"shard_samples = 3\nshard_bytes = 100_000\nsource = {[str(shard) for shard in shards]}\n")
    flags = ["--config", str(config), "--shard-samples", "4", "--no-html"]
    assert main(["rethreshold", str(out), str(tmp_path / "other"), *flags]) == 0  # the stages are those of `out`
    settings = Manifest.load(str(tmp_path / "other")).run["settings"]
    assert (settings["max_samples"], settings["max_bytes"], settings["tars"]) == (4, 100_000, True)
    assert [stage["type"] for stage in settings["stages"]] == ["Deduplicate", "Filter"]
    assert not (tmp_path / "other" / "report.html").exists()
    config.write_text('source = "elsewhere"\n')
    assert main(["rethreshold", str(out), str(tmp_path / "third"), "--config", str(config)]) == 2
    assert "elsewhere" in capsys.readouterr().err
    config.write_text('batch_size = 3\nout = "here"\n')
    assert main(["rethreshold", str(out), str(tmp_path / "third"), "--config", str(config)]) == 2
    assert "rethreshold takes no batch_size, out; it takes stages, executor" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_embeddings_from_the_command_line(tmp_path: Path) -> None:
    write_embedded(tmp_path / "out", np.eye(6, 4, dtype=np.float32))
    flags = ["--min", "index=2", "--no-tars", "--no-html"]
    config = tmp_path / "new.toml"
    config.write_text("embeddings = false\n")
    assert main(["rethreshold", str(tmp_path / "out"), str(tmp_path / "as"), *flags]) == 0
    assert main(["rethreshold", str(tmp_path / "out"), str(tmp_path / "half"), *flags, "--embeddings", "float16"]) == 0
    assert main(["rethreshold", str(tmp_path / "out"), str(tmp_path / "none"), *flags, "--config", str(config)]) == 0
    schemas = {name: RowFiles(str(tmp_path / name)).schema for name in ("as", "half", "none")}
    assert str(schemas["as"].field("embedding").type.value_type) == "float"
    assert str(schemas["half"].field("embedding").type.value_type) == "halffloat"
    assert "embedding" not in schemas["none"].names


def test_files_of_workers_of_a_killed_run_go(tmp_path: Path) -> None:
    write_embedded(tmp_path / "out", np.eye(6, 4, dtype=np.float32))
    left = tmp_path / "new" / "_work" / "0123" / "0.rows"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    report = cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[Filter("index", min=2)], tars=False, html=False)
    assert report.kept == 4
    assert not left.parents[1].exists()

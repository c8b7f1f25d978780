"""`curator-dali curate`, as a user meets it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curator_dali.cli import main
from curator_dali.outputs import Manifest
from tests import helpers
from tests.curation.helpers import content, read_rows

CPU = ["--device", "cpu"]


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["curate", *map(str, arguments), *CPU, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_flags_make_stages_in_a_sensible_order(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--quality", "--min", "sharpness=300", "--max", "brightness=0.6", "--min-size", "110"]
    out = tmp_path / "out"
    report = run_json(capsys, *shards, out, *flags, "--batch-size", 16, "--part-size", 32, "--shard-bytes", "0.1MB")
    assert (report["samples"], report["parts"]) == (60, 2)
    assert set(report["dropped"]) <= {"Filter(width)", "Filter(height)", "Filter(sharpness)", "Filter(brightness)"}
    assert report["kept"] == sum(row["status"] == "kept" for row in read_rows(out)) > 0
    assert report == json.loads((out / "report.json").read_text())


def test_the_table_says_what_happened(shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", str(shards[0]), str(tmp_path / "out"), "--quality", "--min", "sharpness=300", *CPU]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^in +20 +100\.0%  ", out, re.MULTILINE)
    assert re.search(r"^Filter\(sharpness\) +-\d+ +\d+\.\d%  sharpness < 300$", out, re.MULTILINE)
    assert re.search(r"^this run +20 images in [\d.]+ s: [\d,]+ a second$", out, re.MULTILINE)


def test_dry_run_prints_the_plan_and_writes_nothing(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["curate", str(shards[0]), str(out), "--min", "number=3", "--quality", *CPU, "--dry-run"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Quality +height, width +sharpness, brightness", printed, re.MULTILINE)
    assert re.search(r"^Filter\(number\) +number +-$", printed, re.MULTILINE)
    assert re.search(rf"^out +{out}, new$", printed, re.MULTILINE)
    assert not out.exists()
    plan = run_json(capsys, *arguments[1:3], "--quality", "--dry-run")
    assert plan["stages"] == [{"stage": "Quality", "reads": "height, width", "writes": plan["stages"][0]["writes"]}]
    run_json(capsys, *arguments[1:3], "--quality")
    assert main(["curate", str(shards[0]), str(out), "--quality", *CPU, "--dry-run"]) == 0
    assert "20 of 20 are done" in capsys.readouterr().out


def test_a_file_with_flags_over_it(shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "curate.toml"
    config.write_text(
        f'source = "{shards[0]}"\nout = "{tmp_path / "one"}"\npart_size = 10\n\n'
        '[[stages]]\ntype = "Filter"\nfield = "width"\nmin = 110\n'
    )
    one = run_json(capsys, "--config", config)
    assert (one["parts"], list(one["dropped"])) == (2, ["Filter(width)"])
    two = run_json(capsys, shards[1], tmp_path / "two", "--config", config, "--part-size", 5, "--quality", "--no-tars")
    assert (two["parts"], two["dropped"].keys()) == (4, {"Filter(width)"})
    assert "sharpness" in read_rows(tmp_path / "two")[0]
    assert not [name for name in content(tmp_path / "two") if name.endswith(".tar")]


def test_lists_and_facts(shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, shards[0], tmp_path / "all", "--info", "sha256, format")
    rows = read_rows(tmp_path / "all")
    (tmp_path / "ids.txt").write_text(f"{rows[3]['image_id']}\n")
    (tmp_path / "taken=down.csv").write_text(f"n,sha256\n1,{rows[5]['sha256']}\n")
    (tmp_path / "near.txt").write_text("0123456789abcdef\n")
    flags = ["--exclude", tmp_path / "ids.txt", "--exclude", f"sha256={tmp_path / 'taken=down.csv'}"]
    report = run_json(capsys, shards[0], tmp_path / "few", *flags, "--exclude", f"phash:2={tmp_path / 'near.txt'}")
    assert report["dropped"] == {
        "Exclude(image_id)": {"image_id is in ids.txt": 1},
        "Exclude(sha256)": {"sha256 is in taken=down.csv": 1},
    }
    assert main(["rethreshold", str(tmp_path / "all"), str(tmp_path / "new"), *map(str, flags), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == report["dropped"]
    report = run_json(capsys, shards[0], tmp_path / "one", "--include", tmp_path / "ids.txt")
    assert report["kept"] == 1
    assert main(["curate", str(shards[0]), str(tmp_path / "bad"), "--exclude", "phash:x=list.txt", *CPU]) == 2
    assert "'x' is no number of bits; write it as phash:4=list.txt" in capsys.readouterr().err


def test_limit_takes_the_first_samples(shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, *shards, tmp_path / "out", "--limit", 7)["samples"] == 7
    assert [row["index"] for row in read_rows(tmp_path / "out")] == list(range(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}"], "curate takes SRC and OUT, and got only"),
        ([], "give SRC OUT"),
        (["{}", "out", "--aesthetic-min", "5"], "put Embed before it"),
        (["{}", "out", "--min", "sharpness=5"], "put Quality before it"),
        (["{}", "out", "--embed", "/no/where"], "/no/where"),
        (["{}", "out", "--embeddings"], "put Embed among the stages"),
        (["nowhere", "out"], "nowhere"),
        (["{}", "out", "--config", "none.toml"], "none.toml"),
        (["{}", "out", "--max-error-rate", "2"], "max_error_rate"),
    ],
)
def test_users_errors_are_one_line(
    arguments: list[str],
    message: str,
    shards: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["curate", *(argument.format(shards[0]) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--quality", *CPU, "--batch-size", "4", "--part-size", "8"]
    command = [sys.executable, "-m", "curator_dali.cli", "curate", *map(str, shards * 10), str(out), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.parquet")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        printed, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, printed) == (130, "")
    assert re.search(r"interrupted: \d+ of 600 samples are done and stay in .*; the same call goes on from there", err)
    assert "Traceback" not in err
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(
    "arguments", [["--min", "sharpness"], ["--max", "a=b"], ["--shard-bytes", "big"], ["--shard-bytes", "0"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["curate", "a", "b", *arguments])
    assert exit_info.value.code == 2
    assert "usage: curator-dali" in capsys.readouterr().err


def test_sizes() -> None:
    from curator_dali.cli.common import size_in_bytes

    texts = {"1GB": 10**9, "64 MB": 64 * 10**6, "500": 500, "1.5k": 1500, "2MiB": 2 * 2**20}
    assert {text: size_in_bytes(text) for text in texts} == texts


@pytest.mark.parametrize(
    ("text", "meant"),
    [("all", True), ("photo,number", ["number", "photo"]), ("number=int64", {"number": "int64"})],
)
def test_fields_of_the_metadata_are_columns(
    text: str, meant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = helpers.photo_samples(helpers.load_photos(), 3)
    helpers.write_shards(tmp_path / "in", samples, 3)
    out = tmp_path / "out"
    main(["curate", str(tmp_path / "in"), str(out), *CPU, "--metadata", text, "--dry-run"])
    assert re.search("^columns .*, number", capsys.readouterr().out, re.MULTILINE)
    main(["curate", str(tmp_path / "in"), str(out), *CPU, "--no-tars", "--metadata", text])
    assert Manifest.load(str(out)).run["settings"]["metadata"] == meant
    table = pq.read_table(next(out.glob("*.parquet")))
    assert table["number"].to_pylist() == [0, 1, 2]
    assert ("photo" in table.column_names) == (text != "number=int64")
    assert (out / "report.html").exists()


@pytest.mark.parametrize("text", ["", "a,", "a=float64,b", "=string"])
def test_fields_that_are_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["curate", str(tmp_path), str(tmp_path / "out"), "--metadata", text])
    assert "are no fields; write all, caption,label or score=float64" in capsys.readouterr().err

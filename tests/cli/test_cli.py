"""The command line, as a user meets it: what it prints, its exit codes, and Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tarfile
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curator_dali import __version__
from curator_dali.cli import main
from curator_dali.loader.loader import ImageLoader
from tests.helpers import encode, write_tar

CLI = [sys.executable, "-m", "curator_dali.cli"]


def encoded(height: int, width: int, form: str = "JPEG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return encode(Image.fromarray(pixels).resize((width, height)), form)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    images = [(f"{number:03d}.jpg", encoded(20 + number, 50, seed=number)) for number in range(10)]
    others = [("png.png", encoded(7, 90, "PNG")), ("tif.tif", encoded(9, 9, "TIFF"))]
    return write_tar(tmp_path / "clean.tar", images + others)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    whole = encoded(64, 64)
    page = b"<html>404</html>"
    names = ("good.jpg", "cut.jpg", "empty.jpg", "page.jpg", "last.jpg")
    return write_tar(tmp_path / "broken.tar", zip(names, (whole, whole[:-100], b"", page, whole), strict=True))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_info_counts_from_headers(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second time from what was kept of the first
        code, survey = run_json(capsys, "info", clean)
        assert code == 0
        assert (survey["samples"], survey["shards"], survey["unreadable"]) == (12, 1, 0)
        assert survey["formats"] == {"jpeg": 10, "png": 1, "tiff": 1}
        assert survey["by_pillow"] == 1
        with tarfile.open(clean) as tar:
            assert survey["image_bytes"] == sum(member.size for member in tar)
        assert survey["height"] == {"minimum": 7, "median": 23, "maximum": 29}
        assert survey["width"] == {"minimum": 9, "median": 50, "maximum": 90}
        assert survey["pixels"] == sum(range(20, 30)) * 50 + 7 * 90 + 9 * 9


def test_info_for_people(broken: Path, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(broken), str(clean)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^samples +17 in 2 shards$", out, re.MULTILINE)
    assert re.search(r"^broken +3 have no readable header", out, re.MULTILINE)


def test_verify_clean(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(clean), "--device", "cpu"]) == 0
    assert "12 good, 0 broken of 12 decoded on cpu" in capsys.readouterr().out


def test_verify_names_what_is_broken(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bad.parquet"
    assert main(["verify", str(broken), "--device", "cpu", "--report", str(report)]) == 1
    out = capsys.readouterr().out
    for key, reason in (("cut", "truncated"), ("empty", "(0|no) bytes"), ("page", "not an image")):
        assert re.search(rf"^  {key} +broken.tar +.*{reason}", out, re.MULTILINE), out
        assert key == "page" or not re.search(rf"^  good.*{reason}", out)
    assert "2 good, 3 broken of 5" in out
    import pyarrow.parquet as pq

    assert not list(tmp_path.glob("*probe*"))
    rows = pq.read_table(report).to_pylist()
    assert [row["image_id"] for row in rows] == ["cut", "empty", "page"]
    assert all(row["shard"].endswith("broken.tar") for row in rows)


def test_verify_json(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bad.jsonl"
    code, result = run_json(capsys, "verify", broken, "--device", "cpu", "--batch-size", 2, "--report", report)
    assert code == 1
    assert (result["samples"], result["checked"], result["broken"], result["complete"]) == (5, 5, 3, True)
    assert sum(result["reasons"].values()) == 3
    assert result["errors"] == [json.loads(line) for line in report.read_text().splitlines()]


def test_verify_lists_twenty_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageLoader, "max_errors", 5)  # other passes keep only so many
    many = write_tar(tmp_path / "many.tar", [(f"{number:04d}.jpg", b"") for number in range(1234)])
    assert main(["verify", str(many), "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "the first 20 of 1,234" in out
    assert len(re.findall(r"^  \d{4} ", out, re.MULTILINE)) == 20
    assert re.search(r"^  1,234 +\S", out, re.MULTILINE)


def test_names_cannot_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tar(tmp_path / "names.tar", [("a\x1b[31mred.jpg", b"")])
    assert main(["verify", str(source), "--device", "cpu"]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_preview_draws_what_decodes(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert main(["preview", str(broken), "-o", str(out), "--device", "cpu"]) == 0
    assert "2 of 5 images; 3 on the way are broken" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 160 > sheet.height


def test_preview_draws_as_many_as_asked_for(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheets = []
    for name, shuffle in (("a.png", []), ("b.png", ["--shuffle", "1"]), ("c.png", ["--shuffle", "1"])):
        out = tmp_path / name
        assert (
            main(["preview", str(clean), "-o", str(out), "-n", "3", "--columns", "3", "--device", "cpu", *shuffle]) == 0
        )
        assert "3 of 12 images" in capsys.readouterr().out
        sheets.append(out.read_bytes())
    assert sheets[0] != sheets[1] == sheets[2]


def test_bench_measures_every_round(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run_json(capsys, "bench", clean, "--device", "cpu", "--rounds", 2, "--batch-size", 5, "--threads", 1)
    assert code == 0
    assert [one["samples"] for one in result["passes"]] == [12, 12, 12]
    low, high = result["spread"]
    assert 0 < low <= result["images_per_second"] <= high
    assert main(["bench", str(clean), "--device", "cpu", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^speed +[\d,]+ images/s, median of 1 pass$", printed, re.MULTILINE)
    assert re.search(r"^device +cpu, batches of 64$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "{}/nowhere"], "nowhere"),
        (["verify", "{}/clean.tar", "--device", "tpu"], "tpu"),
        (["verify", "{}/clean.tar", "--report", "{}/bad.csv"], "must end in .parquet"),
        (["verify", "{}/clean.tar", "--report", "{}/no/bad.jsonl"], "does not exist"),
        (["preview", "{}/clean.tar", "-o", "{}/sheet.txt"], "must end in .png"),
        (["preview", "{}/clean.tar", "-o", "{}/no/sheet.png"], "does not exist"),
        (["verify", "{}/clean.tar", "--device", "cuda:99"], "cuda:99"),
        (["demo", "--out", "{}"], "not empty"),
    ],
)
@pytest.mark.usefixtures("clean")
def test_users_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_debug_shows_the_traceback(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DALI_DEBUG", "1")
    with pytest.raises(ValueError, match="must end in"):
        main(["preview", str(clean), "-o", str(tmp_path / "sheet.txt")])


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["verify"], ["verify", "x", "--batch-size", "0"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: curator-dali" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"curator-dali {__version__}\n"


def test_process_exit_code_and_streams(broken: Path) -> None:
    done = subprocess.run([*CLI, "verify", str(broken), "--device", "cpu", "--json"], capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["broken"] == 3
    assert "Traceback" not in done.stderr


def test_ctrl_c_reports_what_was_seen(tmp_path: Path) -> None:
    image = encoded(1500, 1500)
    total = 500
    source = write_tar(tmp_path / "long.tar", [(f"{n}.jpg", image if n else b"") for n in range(total)])
    report = tmp_path / "bad.jsonl"
    command = [*CLI, "verify", str(source), "--device", "cpu", "--threads", "1", "--batch-size", "4", "--json"]
    ours, theirs = pty.openpty()  # a terminal, so that there is a progress bar to wait for
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    try:
        process = subprocess.Popen(
            [*command, "--report", str(report)], stdout=subprocess.PIPE, stderr=theirs, text=True
        )
        seen = ""
        deadline = time.monotonic() + 120
        while not re.search(rf"\b[1-9]\d*/{total}\b", seen):
            assert time.monotonic() < deadline, seen
            assert process.poll() is None, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 130
    result = json.loads(out)
    assert not result["complete"]
    assert 0 < result["checked"] < result["samples"] == total
    assert result["broken"] == 1
    assert json.loads(report.read_text())["image_id"] == "0"


def test_an_ascii_terminal_ends_nothing(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "写真.tar", [("猫.jpg", encoded(64, 64)), ("犬.jpg", b"<html>")])
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    commands = (["verify", str(tar)], 1, "\\u72ac"), (["info", "猫.tar"], 2, "nothing there")
    for command, code, says in commands:
        done = subprocess.run(
            [*CLI, *command], env={**os.environ, **ascii_only}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        assert says in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

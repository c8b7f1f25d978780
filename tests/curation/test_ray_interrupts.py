"""Ctrl-C while a Ray cluster curates: as in a terminal, every process of the group gets SIGINT."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from curator_dali.cli import main
from tests.account import account

pytest.importorskip("ray", reason="needs Ray: pip install 'curator-dali[ray]'")

ROOT = Path(__file__).parents[2]


def command(shards: list[Path], out: Path) -> list[str]:
    """600 samples in 75 parts."""
    flags = ["--quality", "--min", "sharpness=300", "--batch-size", "4", "--part-size", "8", "--threads", "1"]
    return ["curate", *map(str, shards * 10), str(out), *flags, "--device", "cpu"]


def on_ray(shards: list[Path], out: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [*command(shards, out), "--ray-address", "local", "--num-workers", "2", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "curator_dali.cli", *arguments],
        cwd=out.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives it
    )


def processes_in(folder: Path) -> list[str]:
    """Titles of the processes whose working directory is `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder):
                found.append((process / "cmdline").read_text().replace("\0", " ").strip())
        except OSError:  # it has ended, or is not ours
            continue
    return [title for title in found if title]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".tar", ".parquet")}


@pytest.mark.slow
def test_ctrl_c_ends_the_actors_and_says_how_to_go_on(shards: list[Path], tmp_path: Path) -> None:
    assert main(command(shards, tmp_path / "whole")) == 0
    expected = contents(tmp_path / "whole")
    out = tmp_path / "out"
    process = on_ray(shards, out)
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob("_manifest/parts/*"))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        assert any("ray::_Actor" in title for title in processes_in(tmp_path))
        os.killpg(process.pid, signal.SIGINT)
        printed, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, printed) == (130, "")
    assert "Traceback" not in err
    told = re.search(
        r"interrupted: (\d+) of 600 samples are done and stay in .*; the same call goes on from there", err
    )
    assert told, err
    done = int(told[1])
    assert 24 <= done < 600
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_in(tmp_path) == []
    left = contents(out)
    assert left.items() <= expected.items()  # what has its name is whole
    assert len(left) >= done / 8

    again = on_ray(shards, out, "--json")
    printed, err = again.communicate(timeout=180)
    assert again.returncode == 0, err
    report: dict[str, Any] = json.loads(printed)
    assert (report["samples"], report["earlier"]) == (600, done)
    assert contents(out) == expected
    assert account(str(out), tars=True).problems == []
    assert not list(out.rglob("*.partial"))

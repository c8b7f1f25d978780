"""The rehearsal of `make gpu-check`: the same code on the CPU backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_check import hostile
from tests.gpu_check.__main__ import SECTIONS
from tests.gpu_check.settings import ROOT
from tests.gpu_check.tracing import copied, in_kernels


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_rehearsal_passes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_check", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert list(found["sections"]) == ["tests", *SECTIONS]
    assert found["sections"]["hostile"]["same verdict"] == len(hostile.cases())
    rates = found["sections"]["sizes"]["rows"]["mix"]
    assert rates["curator_dali"]["rate"][0] > 0
    assert "| curator_dali |" in (tmp_path / "gpu-check.md").read_text()


def test_a_file_that_kills_the_process_is_named_and_the_rest_goes_on() -> None:
    """The child gets a name that makes it fail, as a decoder would that ends the process."""
    found = hostile.findings("cpu", ["jpeg cmyk", "no such file", "jpeg grey"])
    assert found["no such file"]["died"]
    assert found["jpeg cmyk"]["verdict"] == found["jpeg grey"]["verdict"] == "decoded"
    assert found["jpeg cmyk"]["max"] <= 1


def test_what_a_trace_says_of_the_device() -> None:
    """Events as torch's profiler writes them."""
    events = [
        {"cat": "kernel", "name": "sgemm", "dur": 30.0},
        {"cat": "kernel", "name": "resize", "dur": 10.5},
        {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "dur": 7.0},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "dur": 5.0, "args": {"bytes": 4000}},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "dur": 5.0, "args": {"bytes": 400}},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "dur": 5.0, "args": {"bytes": 20}},
        {"name": "process_name", "ph": "M"},
    ]
    assert copied(events, 2) == {"HtoD": 2200, "DtoH": 10}
    assert in_kernels(events, 2) == 20.2


def test_without_a_gpu_it_says_how_to_rehearse(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_check", "--device", "cuda:99", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "make gpu-check ARGS=--rehearse" in done.stderr

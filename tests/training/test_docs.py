"""docs/training.md: its diff of a loop and its table of options; and examples/train.py."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from curator_dali.loader.loader import ImageLoader
from curator_dali.torch import TorchImageLoader

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/training.md").read_text()
SMALL = {"=256": "=8", "range(90)": "range(2)", "224": "32"}


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> Path:
    """A folder with class folders in `train/`."""
    shutil.copytree(folder, tmp_path / "train")
    return tmp_path


def test_the_loop_of_the_diff_runs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
    code = "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("-"))
    for old, new in SMALL.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(data)
    steps: list[tuple[int, ...]] = []
    exec(compile(code, "docs/training.md", "exec"), {"step": lambda images, targets: steps.append(tuple(images.shape))})
    assert steps == [(8, 3, 32, 32)] * 10  # two epochs of five full steps


def test_what_the_diff_takes_away_is_python() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
    ast.parse("".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("+")))


def test_the_table_has_every_option_with_its_default() -> None:
    section = TEXT.partition("## Every option")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| *(.*?) *\|", section, re.MULTILINE)
    told = {name: ast.literal_eval(default.strip("`").replace(",", "")) for name, default in rows if default}
    both = inspect.signature(TorchImageLoader).parameters | inspect.signature(ImageLoader).parameters
    expected = {name: one.default for name, one in both.items() if one.kind is one.KEYWORD_ONLY}
    assert told == expected
    assert [name for name, default in rows if not default] == ["source"]


def run(arguments: list[str], folder: Path) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_the_example_runs_under_torchrun_and_resumes_alone(data: Path) -> None:
    (command,) = re.findall(r"```bash\n(torchrun .*)\n```", TEXT)
    _, *arguments = shlex.split(command.replace("examples/", f"{ROOT}/examples/"))
    small = ["--size", "16", "--batch-size", "4", "--epochs", "2"]
    launch = ["-m", "torch.distributed.run", "--standalone", *arguments, *small]
    assert run([*launch, "--max-steps", "4"], data).count("epoch 0, step 4: loss") == 1  # one of the two tells it
    state = torch.load(data / "checkpoint.pt")["loader"]
    assert (state["epoch"], state["position"]) == (0, 4 * 2 * 4)
    # 9 of 41 are left: two full steps; the others are the next epoch's
    run([str(ROOT / "examples/train.py"), "train/", "--classes", "3", *small, "--max-steps", "4"], data)
    state = torch.load(data / "checkpoint.pt")["loader"]
    assert (state["epoch"], state["position"]) == (1, 8)
    run([str(ROOT / "examples/train.py"), "train/", "--classes", "3", *small], data)
    state = torch.load(data / "checkpoint.pt")["loader"]
    assert (state["epoch"], state["position"]) == (2, 0)

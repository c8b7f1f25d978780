"""docs/training.md: its snippets in their order in one namespace, its table of options; and examples/train.py."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curator_dali.loader import ImageLoader
from curator_dali.torch import TorchImageLoader
from tests import helpers
from tests.training.conftest import COUNT

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/training.md").read_text()
SMALL = {
    "=256": "=8",
    "range(90)": "range(2)",
    "224": "32",
    "256)": "40)",
    "512 * 512": "64 * 64",
    "multiple=64": "multiple=8",
}


def snippets() -> list[str]:
    """The Python code; of the diff, what is new."""
    found = []
    for language, code in re.findall(r"```(python|diff)\n(.*?)```", TEXT, re.DOTALL):
        if language == "diff":
            code = "".join(line[1:] for line in code.splitlines(keepends=True) if not line.startswith("-"))
        found.append(code)
    return found


def make_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture
def data(folder: Path, photos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> Path:
    """A folder with what the snippets load."""
    for name in ("train", "val"):
        shutil.copytree(folder, tmp_path / name)
    animals = ["cat", "dog", "eel"]
    for seed, name in enumerate(("web", "clean")):
        samples = []
        for i, (_, pixels) in enumerate(helpers.crops(photos, 30, shortest=24, longest=64, seed=seed)):
            fields = {"animal": animals[i % 3], "width": pixels.shape[1], "height": pixels.shape[0]}
            members = {"jpg": helpers.encode(pixels), "cls": str(i % 3).encode(), "json": json.dumps(fields).encode()}
            samples.append((f"{i:03d}", members))
        helpers.write_shards(tmp_path / name, samples, per_shard=15)
    return tmp_path


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torchrun starts the first of one process."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
def test_the_snippets_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    steps: list[tuple[int, ...]] = []
    names: dict[str, Any] = {
        "step": lambda images, targets: steps.append(tuple(images.shape)),
        "make_model": make_model,
    }
    for code in snippets():
        if "import lightning" in code and not find_spec("lightning"):
            continue
        if "ray.train" in code:  # test_machines runs it, in a process of its own
            continue
        for old, new in SMALL.items():
            code = code.replace(old, new)
        try:
            exec(compile(code, "docs/training.md", "exec"), names)
        except Exception as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\nin this snippet of docs/training.md:\n{code}"
            ) from error
    # two epochs of five full steps, and one more at "Where the time goes"
    assert steps == [(8, 3, 32, 32)] * 15
    assert names["count"] == COUNT
    assert len(names["shapes"]) == 3


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

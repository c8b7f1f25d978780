"""The snippets of README.md and docs/*.md, as they stand, each in a process of its own, on what `make demo` leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from curator_dali import demo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SAMPLES = 48  # of the demo, whose 240 take the networks long
AT_ONCE = 2

# What a snippet has in it that this machine has not -> why it does not run here. Each must be in one snippet at least.
ELSEWHERE = {
    "nemo_curator": "NeMo Curator lives in an environment of its own: make test-nemo",
    "s3://bucket": "needs a store and a cluster; tests/curation/test_ray.py and tests/sources/test_s3.py run the like",
    "ray.train": "needs a cluster of 16 GPUs; tests/training/test_machines.py runs it on two workers",
    "pip install": "changes the environment",
    "git clone": "changes the environment",
    "make ": "the targets of the Makefile; CI runs them",
    "torchrun": "tests/training/test_docs.py runs it",
    "MODELS": "needs CLIP's weights; tests/cli/test_curate.py runs the flags",
}


class Snippet(NamedTuple):
    page: str
    line: int
    language: str
    code: str

    @property
    def why_not(self) -> str | None:
        return next((why for mark, why in ELSEWHERE.items() if mark in self.code), None)


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(python|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield Snippet(page.name, text[: match.start()].count("\n") + 2, match[1], match[2])


SNIPPETS = list(snippets())
RUN = [pytest.param(one, id=f"{one.page}:{one.line}") for one in SNIPPETS if one.why_not is None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make demo` leaves, but smaller."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SAMPLES", SAMPLES)
        list(demo.run(folder / "curator-dali-demo", device="cpu"))
    return folder


def run(snippet: Snippet, made: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a snippet in a copy of the demo's folder, as a user does who pastes it."""
    shutil.copytree(made, folder)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    command = bin_folder / "curator-dali"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m curator_dali.cli "$@"\n')
    command.chmod(0o755)
    program = [sys.executable, "-"] if snippet.language == "python" else ["bash", "-e"]
    path = os.pathsep.join([str(bin_folder), os.environ["PATH"]])
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    for name in ("RANK", "WORLD_SIZE"):
        env.pop(name, None)
    return subprocess.run(
        program, input=snippet.code, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Snippet, Future[subprocess.CompletedProcess[str]]]]:
    """The runs of all snippets that are to be tested, two at a time."""
    chosen = [
        item.callspec.params["snippet"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    ]
    root = tmp_path_factory.mktemp("snippets")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {one: pool.submit(run, one, made, root / f"{one.page}-{one.line}") for one in chosen}


@pytest.mark.slow
@pytest.mark.parametrize("snippet", RUN)
def test_it_runs_as_it_stands(snippet: Snippet, runs: dict[Snippet, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = runs[snippet].result()
    expected = 1 if "curator-dali verify" in snippet.code else 0  # which finds the demo's broken images
    assert done.returncode == expected, f"{snippet.page}, line {snippet.line}:\n{snippet.code}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr


def test_the_list_of_what_does_not_run_has_nothing_to_spare() -> None:
    for mark in ELSEWHERE:
        assert any(mark in one.code for one in SNIPPETS), f"no snippet has {mark!r}: take it from the list"
    assert len(RUN) > 20

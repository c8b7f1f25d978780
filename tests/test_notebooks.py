"""The notebooks run from top to bottom, and are kept with their outputs and of a bearable size."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def run() -> Any:
    pytest.importorskip("nbclient", reason="needs a kernel: pip install 'curator-dali[notebook]'")
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(cell: Any) -> list[list[str]]:
    """What a cell gives out; lines that are printed one after the other are one stream or several, by the clock."""
    found = [sorted(output.get("data", {"stream": ""})) for output in cell.get("outputs", [])]
    return [kind for kind, _ in groupby(found)]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(run: Any, path: Path, tmp_path: Path) -> None:
    kept = json.loads(path.read_text("utf-8"))
    made = run.execute(path, tmp_path)
    assert [cell["source"] for cell in made.cells] == ["".join(cell["source"]) for cell in kept["cells"]]
    for old, new in zip(kept["cells"], made.cells, strict=True):
        assert kinds(new) == kinds(old)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_with_outputs_of_a_bearable_size(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.encode()) < 2_000_000
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell["outputs"] for cell in cells)
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] in ("stream", "execute_result", "display_data")
        assert output.get("name") != "stderr", output
    assert not re.search(r"/(home|root|Users|tmp)/", text)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 4

"""Run the notebooks from top to bottom and keep their outputs: `python notebooks/run.py [NOTEBOOK ...]`.

Each runs in an empty folder, which the outputs call /data. What changes from run to run for no reason (times of
execution, the kernel's version) is left out of the file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
LARGEST = 2_000_000  # bytes of a file


def execute(path: Path, folder: Path) -> Any:
    """The notebook with its outputs; raises what a cell raised.

    Args:
        path: The notebook; not written to.
        folder: Where it runs.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main(names: list[str]) -> int:
    """Run the notebooks named, or all."""
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            text = nbformat.writes(execute(path, Path(folder))).replace(folder, "/data")
        if len(text) > LARGEST:
            raise ValueError(f"{path} would have {len(text):,} bytes; show fewer images (at most {LARGEST:,})")
        path.write_text(f"{text}\n", "utf-8")
        print(f"{path.name}: {len(text) / 1e3:,.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

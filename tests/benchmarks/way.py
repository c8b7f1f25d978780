"""Files of the package that one batch passes through: `python -m tests.benchmarks.way`.

A file counts once a function of it runs, in any thread. Neither imports count, nor what `dataclass` generates.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import curator_dali
from tests.helpers import load_photos, photo_samples, write_shards

PACKAGE = Path(curator_dali.__file__).parent
CASES = {"new": "without an index", "kept": "with a kept index"}


def import_package() -> None:
    """Import every module, so that afterwards no function runs on import."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "curator_dali.", onerror=lambda name: None):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # Ray or NeMo Curator is not installed
                importlib.import_module(module.name)


@contextmanager
def watching(found: set[str]) -> Iterator[None]:
    """Add the files of the package in which functions run, in this thread and in those that are started."""

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def show(title: str, files: set[str]) -> set[str]:
    names = {str(Path(file).relative_to(PACKAGE)) for file in files if Path(file).is_relative_to(PACKAGE)}
    print(f"  {title}: {len(names)} files\n    {' '.join(sorted(names))}")
    return names


def follow(case: str, shards: str) -> None:
    """Make a loader over `shards` and one batch; print the files of both."""
    import_package()
    construction: set[str] = set()
    taking: set[str] = set()
    with watching(construction):
        loader = curator_dali.ImageLoader(shards, batch_size=8)
    with watching(taking):
        batch = next(iter(loader))
    assert len(batch) == 8
    loader.close()
    print(f"one batch, {CASES[case]}")
    show("both", construction | taking)
    show("construction", construction)
    show("the pass", taking)


def main() -> None:
    if len(sys.argv) > 1:
        follow(sys.argv[1], sys.argv[2])
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder, "shards"), photo_samples(load_photos(), 32), per_shard=16)
        environment = os.environ | {"CURATOR_DALI_CACHE": str(Path(folder, "cache"))}
        for case in CASES:  # a process each, as functions remember what they have computed
            command = [sys.executable, "-m", "tests.benchmarks.way", case, str(Path(folder, "shards", "*.tar"))]
            subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()

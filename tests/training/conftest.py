"""A small labelled data set in class folders and in tars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import helpers

CLASSES = ["cats", "dogs", "eels"]
COUNT = 41


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> Path:
    """41 JPEGs of distinct shapes in three class folders. Not to be written to."""
    root = tmp_path_factory.mktemp("classes")
    for i, (_, pixels) in enumerate(helpers.crops(photos, COUNT, shortest=24, longest=64)):
        path = root / CLASSES[i % 3] / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(helpers.encode(pixels))
    return root


@pytest.fixture(scope="session")
def encoded(photos: dict[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """The same images by number."""
    return {
        f"{i:02d}": helpers.encode(pixels)
        for i, (_, pixels) in enumerate(helpers.crops(photos, COUNT, shortest=24, longest=64))
    }

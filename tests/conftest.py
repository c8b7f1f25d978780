"""Fixtures for every test, and the rule for those that need a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests import helpers
from tests.sources.web_server import Server

GPU_TESTS = Path(__file__).parent / "gpu"


@cache
def gpu_problem() -> str:
    """Why no GPU can be used here; empty where one can."""
    try:
        import cupy
        import torch

        cupy.zeros(1)
        return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device"
    except Exception as error:  # CuPy raises its own kinds, by what is missing
        return f"CuPy finds no CUDA device: {error}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if GPU_TESTS in item.path.parents:
            item.add_marker("gpu")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (problem := gpu_problem()):
        if os.environ.get("CURATOR_DALI_REQUIRE_GPU") == "1":
            pytest.fail(f"CURATOR_DALI_REQUIRE_GPU=1 promises a GPU, but {problem}", pytrace=False)
        pytest.skip(f"needs a GPU: {problem}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what the tests learn of their files (tar indexes, headers) out of the user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATOR_DALI_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def photos() -> dict[str, NDArray[np.uint8]]:
    """Name -> (H, W, 3) uint8, read-only: nine real photographs, 300 to 1411 pixels a side."""
    loaded = helpers.load_photos()
    for pixels in loaded.values():
        pixels.flags.writeable = False
    return loaded


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> list[Path]:
    """Three tars of 20 crops each, keys 000000 to 000059, with .jpg, .json, .txt and .cls. Not to be written to."""
    return helpers.write_shards(tmp_path_factory.mktemp("shards"), helpers.photo_samples(photos, 60), per_shard=20)


@pytest.fixture(scope="session")
def photo(photos: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """One real photograph, 451 x 300 pixels."""
    return Image.fromarray(photos["chelsea"])


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()

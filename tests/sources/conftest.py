"""Stores for the tests of sources: fsspec's in-memory filesystem, and a real HTTP server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import fsspec
import pytest

from tests.sources.web_server import Server


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

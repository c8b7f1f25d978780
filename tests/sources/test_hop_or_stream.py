"""Remote tars are hopped through or read through, as their store's round trip and bandwidth say."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator_dali.io import links
from curator_dali.io.links import Connections, Link, RemoteReader
from curator_dali.sources import open_source, tar_headers
from curator_dali.sources.tar_headers import scan_tar
from tests.helpers import write_tar
from tests.sources.store_server import SimulatedStore


@pytest.fixture(autouse=True)
def unknown_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_links", {})


def scans(path: Path, even: int) -> tuple[Any, Any]:
    """What a local scan finds, and what a scan of small windows, as of a remote file, finds."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    connections = Connections()
    try:
        reader = RemoteReader("s3://scans/a", lambda offset, length: os.pread(fd, length, offset), connections)
        with (
            patch.object(Link, "break_even", property(lambda _: even)),
            patch.multiple(tar_headers, _HOP=1024, _FIRST_PIECE=2048, _PIECES=(2048, 8192), SAMPLE=2048),
        ):
            remote = scan_tar(reader, size, remote=reader)
        reader.close()
        return scan_tar(lambda offset, length: os.pread(fd, length, offset), size), remote
    finally:
        connections.close()
        os.close(fd)


SIZES = st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 40_000), st.sampled_from([0, 511, 512, 513])))
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])  # 0, 1, 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIZES, FORMATS, st.sampled_from([0, 700, 5000, 1 << 40]), st.integers(0, 2000), st.integers(-1, 50_000))
def test_a_remote_scan_finds_what_a_local_one_does(
    tmp_path: Path, sizes: list[int], form: int, even: int, cut: int, damaged: int
) -> None:
    members = [
        (f"{'long' * 40 * (n % 5 == 3 and form > 0)}{n}.jpg", bytes([n % 256]) * size) for n, size in enumerate(sizes)
    ]
    path = write_tar(tmp_path / "a.tar", members, format=form)
    data = bytearray(path.read_bytes())
    if 0 <= damaged < len(data) and damaged >= 512:
        data[damaged] ^= 0xFF
    path.write_bytes(data[: len(data) - cut] if len(data) - cut >= 512 else data)
    local, remote = scans(path, even)
    assert remote == local


@pytest.mark.parametrize(("size", "least", "most"), [(8_000_000, 0.0, 0.35), (30_000, 0.99, 1.01)])
def test_what_is_read_follows_from_the_members_sizes(tmp_path: Path, size: int, least: float, most: float) -> None:
    count = max(3, 3_000_000 // size)
    for shard in range(3):
        members = [(f"{shard}-{n}.jpg", bytes([n % 256]) * size) for n in range(count)]
        write_tar(tmp_path / f"{shard}.tar", members)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    with SimulatedStore(tmp_path, delay=0.03, rate=100e6) as store:
        assert len(open_source(f"{store.url}/{{0..2}}.tar", index="none")) == 3 * count
        read = store.total()
    assert least <= read.bytes / total <= most
    assert read.most <= 16


def test_one_large_tar_is_read_by_several_requests_at_a_time(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{n}.jpg", bytes([n % 256]) * 50_000) for n in range(1000)])
    with SimulatedStore(tmp_path, delay=0.01, rate=30e6) as store:
        len(open_source(f"{store.url}/a.tar", index="none"))
        read = store.total()
    assert 4 <= read.most <= 16
    assert read.bytes <= 1.01 * (tmp_path / "a.tar").stat().st_size

"""Pieces of files in memory: found whole or not at all, and bounded."""

from __future__ import annotations

import pickle

import fsspec
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.io import Storage
from curator_dali.io.pieces import Pieces

DATA = bytes(range(256)) * 4


@given(
    pieces=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300)), max_size=8),
    start=st.integers(0, 1000),
    length=st.integers(1, 200),
)
def test_a_range_is_found_as_it_was_or_not(pieces: list[tuple[int, int]], start: int, length: int) -> None:
    held = Pieces(1 << 20)
    for offset, size in pieces:
        held.put("a", offset, DATA[offset : offset + size])
    found = held.find("a", start, start + length)
    assert found is None or found == DATA[start : start + length]
    if any(offset <= start and start + length <= min(offset + size, len(DATA)) for offset, size in pieces[-1:]):
        assert len(pieces) > 1 or found is not None
    assert held.find("b", start, start + length) is None
    assert held.nbytes == sum(len(DATA[offset : offset + size]) for offset, size in {o: max(
        (p for p in pieces if p[0] == o), key=lambda p: p[1]) for o, _ in pieces}.values())  # fmt: skip


def test_neighbours_are_joined_and_the_oldest_file_goes() -> None:
    held = Pieces(600)
    for offset in (0, 200, 100):
        held.put("a", offset, DATA[offset : offset + 101])
    assert held.find("a", 50, 300) == DATA[50:300]
    assert held.find("a", 50, 302) is None
    held.put("b", 0, DATA[:400])
    assert held.find("a", 50, 60) is None
    assert held.nbytes == 400
    held.put("b", 400, DATA[400:1024])  # the only file stays, whatever its size
    assert held.find("b", 0, 1024) == DATA
    held.forget("b")
    assert held.nbytes == 0


def test_a_reader_keeps_what_it_read(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/a.bin", DATA)
    url = "memory://a.bin"
    storage = pickle.loads(pickle.dumps(Storage()))
    read = storage.reader(url, keep=True)
    assert read(0, 500) == DATA[:500]
    assert read(500, 5000) == DATA[500:]
    memory.rm("/a.bin")
    assert storage.cat([(url, 490, 520)]) == [DATA[490:520]]
    assert read(10, 20) == DATA[10:30]
    storage.forget(url)
    assert isinstance(storage.cat([(url, 490, 520)])[0], FileNotFoundError)

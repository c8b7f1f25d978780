"""Indexes that other tools left beside tars: members are asked for many at once, and nothing else changes."""

from __future__ import annotations

import json
import pickle
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pytest

from curator_dali.io import Storage
from curator_dali.sources import TarSource, open_source
from curator_dali.sources.foreign import ForeignIndexes, parse_idx
from tests.helpers import write_tar
from tests.sources.store_server import SimulatedStore

COUNT, SIZE = 24, 3_000_000


def make_tar(path: Path, seed: int = 0, size: int = SIZE) -> list[tuple[str, int, int]]:
    """Write a tar of large members and small ones: (name, offset, size) of each."""
    members = []
    for n in range(COUNT):
        members += [(f"{n:02}.jpg", bytes([n, seed]) * (size // 2)), (f"{n:02}.json", b'{"n": %d}' % n)]
    write_tar(path, members, format=tarfile.PAX_FORMAT)
    with tarfile.open(path) as tar:
        return [(member.name, member.offset_data, member.size) for member in tar]


def write_idx(path: Path, members: list[tuple[str, int, int]], version: str = "v1.2") -> None:
    """Write a file as `wds2idx` of DALI does."""
    lines = [f"{version} {COUNT}"]
    for image, text in zip(members[::2], members[1::2], strict=True):
        words = [(name.partition(".")[2], offset, size, name) for name, offset, size in (image, text)]
        lines.append(" ".join(" ".join(map(str, some[: 4 if version == "v1.2" else 3])) for some in words))
    path.write_text("\n".join(lines) + "\n")


def write_energon(root: Path, tars: dict[str, list[tuple[str, int, int]]], parts: bool) -> None:
    """Write `.nv-meta` as Energon does; earlier versions had no table of parts."""
    (root / ".nv-meta").mkdir()
    (root / ".nv-meta" / ".info.json").write_text(json.dumps({"shard_counts": dict.fromkeys(tars, COUNT)}))
    database = sqlite3.connect(root / ".nv-meta" / "index.sqlite")
    database.execute("CREATE TABLE samples (tar_file_id, sample_key, sample_index, byte_offset, byte_size)")
    if parts:
        names = "tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size"
        database.execute(f"CREATE TABLE sample_parts ({names})")
    for tar, members in enumerate(tars.values()):
        for number, ((name, offset, _), (_, end, size)) in enumerate(zip(members[::2], members[1::2], strict=True)):
            row = (tar, name[:2], number, offset - 512, end + size - offset + 512)
            database.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", row)
        for number, (name, offset, size) in enumerate(members if parts else ()):
            database.execute(
                "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", (tar, number // 2, name[3:], offset, size)
            )
    database.commit()
    database.close()


def test_files_of_wds2idx(tmp_path: Path) -> None:
    members = make_tar(tmp_path / "a.tar", size=100)
    for version in ("v1.2", "v1.1"):
        write_idx(tmp_path / "a.idx", members, version)
        assert parse_idx((tmp_path / "a.idx").read_bytes()).tolist() == [offset + size for _, offset, size in members]
    for data in (b"", b"v9 1\njpg 0 1 a.jpg\n", b"v1.2 1\njpg 0 1 a b.jpg\n", b"v1.2 1\njpg x 1 a.jpg\n", b"\xff\x00"):
        with pytest.raises(ValueError, match=r"begins with|no members|invalid literal"):
            parse_idx(data)


@pytest.mark.parametrize("kind", ["wds2idx", "energon", "energon without parts", "wrong", "damaged"])
def test_headers_are_asked_for_many_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "s").mkdir()
    tars = {f"s/{n}.tar": make_tar(tmp_path / f"s/{n}.tar", n) for n in range(2)}
    plain = TarSource([tmp_path / name for name in tars], index="none")
    if kind.startswith("energon"):
        write_energon(tmp_path, tars, parts=kind == "energon")
    for name, members in tars.items() if not kind.startswith("energon") else ():
        wrong = [(member, offset + 7 * size // 3, size) for member, offset, size in members]
        write_idx((tmp_path / name).with_suffix(".idx"), wrong if kind == "wrong" else members)
        if kind == "damaged":
            (tmp_path / name).with_suffix(".idx").write_bytes(b"v1.2 3\njpg 0")
    with SimulatedStore(tmp_path, delay=0.03, rate=30e6) as store:
        source = open_source(f"{store.url}/s/{{0..1}}.tar", index="none")
        assert len(source) == 2 * COUNT
        found = store.total()
        assert found.bytes < 0.5 * 2 * COUNT * SIZE
        assert source.fingerprint == plain.fingerprint
        assert source.read_ids(np.arange(len(source))).to_pylist() == plain.read_ids(np.arange(len(plain))).to_pylist()
        if kind not in ("wrong", "damaged"):
            assert found.most >= 6  # requests at the same time; two tars are hopped through by two


def test_nothing_is_found_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with SimulatedStore(tmp_path) as store:
        indexes = ForeignIndexes(Storage())
        for _ in range(3):
            assert indexes.find(f"{store.url}/s/a.tar").tolist() == []
        assert store.total().requests == 3  # two folders that may have Energon's, and one file of wds2idx
        write_idx(tmp_path / "s/a.idx", make_tar(tmp_path / "s/a.tar", size=100))
        again = pickle.loads(pickle.dumps(indexes))
        assert len(again.find(f"{store.url}/s/a.tar")) == 2 * COUNT
        assert again.find(f"{store.url}/s/a.tar?signature=1").tolist() == []

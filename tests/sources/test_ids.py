"""`read_ids`: the ids of samples, without their images, equal to those that `read` gives."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curator_dali as cd
from curator_dali.sources import ParquetSource, Source, TarSource
from curator_dali.sources.subset import Without
from tests.helpers import encode, write_tar

IMAGE = encode(np.zeros((4, 4, 3), np.uint8))
KEYS = ["a", "b/c", "ü", "日本/語", "x" * 90, "e\u0301", "a b", "🐈‍⬛/7", "0007", "b"]


def make_tars(folder: Path) -> Source:
    members = [(f"{key}.jpg", IMAGE) for key in KEYS] + [("a.jpg", IMAGE), ("only.json", b"{}")]
    first = write_tar(folder / "0.tar", members, format=1)
    ascii_only = write_tar(folder / "1.tar", [(f"{n:04d}.png", IMAGE) for n in range(5)])
    empty = write_tar(folder / "2.tar", [])
    return TarSource([str(first), str(ascii_only), str(empty)], index="none")


def make_folder(folder: Path) -> Source:
    for name in ["a.jpg", "a.png", "ü/b.jpg", "ü/c d.jpg", "x.y.webp"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(IMAGE)
    return cd.FolderSource(folder)


def make_parquet(ids: Any, folder: Path, **options: Any) -> Source:
    columns = {"jpg": pa.array([IMAGE] * 12)} | ({} if ids is None else {"key": ids})
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=5)
    pq.write_table(pa.table(columns).slice(0, 4), folder / "b.parquet", row_group_size=3)
    return ParquetSource([str(folder / "a.parquet"), str(folder / "b.parquet")])


def make_structs(folder: Path) -> Source:
    paths = ["a.jpg", None, "d/b.png", "", ".jpg", "c"]
    images = [{"bytes": IMAGE, "path": path} for path in paths] + [None]
    pq.write_table(pa.table({"image": images}), folder / "a.parquet", row_group_size=3)
    return ParquetSource(str(folder / "a.parquet"))


def make_mixed_structs(folder: Path) -> Source:
    images = [{"bytes": IMAGE, "path": f"{n}.jpg"} for n in range(6)]
    ids = ["x", None, "", "y", None, "z"]
    pq.write_table(pa.table({"image": images, "id": ids}), folder / "a.parquet", row_group_size=4)
    return ParquetSource(str(folder / "a.parquet"))


class Plain(Source):
    """A source of somebody's own, which knows nothing of `read_ids`."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        return "plain"

    def read(self, indices: Any, *, members: bool = False) -> Any:
        return self.source.read(indices, members=members)


MEMORY = cd.MemorySource(dict.fromkeys(KEYS, IMAGE))
BYTES = pa.array([b"\xff\x00", b"a"] * 6)
MAKERS: dict[str, Callable[[Path], Source]] = {
    "tars": make_tars,
    "folder": make_folder,
    "parquet": lambda folder: make_parquet(pa.array([f"k{n}ü" for n in range(12)]), folder),
    "parquet-rows": lambda folder: make_parquet(None, folder),
    "parquet-integers": lambda folder: make_parquet(pa.array([*range(11), None]), folder),
    "parquet-all-integers": lambda folder: make_parquet(pa.array(range(-3, 9), pa.int16()), folder),
    "parquet-floats": lambda folder: make_parquet(pa.array([0.5, 1.0, float("nan"), None] * 3), folder),
    "parquet-bytes": lambda folder: make_parquet(BYTES, folder),
    "parquet-large": lambda folder: make_parquet(pa.array(["a", "b", None] * 4, pa.large_string()), folder),
    "parquet-no-text": lambda folder: make_parquet(BYTES.view(pa.string()), folder),
    "parquet-structs": make_structs,
    "parquet-mixed": make_mixed_structs,
    "memory": lambda folder: MEMORY,
    "subset": lambda folder: cd.Subset(MEMORY, [7, 1, 1, 3]),
    "slice": lambda folder: cd.Subset(make_tars(folder), slice(9, None, 2)),
    "without": lambda folder: Without(MEMORY, {2: "broken"}),
    "mixture": lambda folder: cd.Mixture({"m": MEMORY, "s": cd.Subset(MEMORY, slice(3)), "t": make_tars(folder)}),
    "own": lambda folder: Plain(cd.MemorySource([IMAGE] * 700)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_ids_are_those_of_the_samples(tmp_path: Path, kind: str) -> None:
    source = MAKERS[kind](tmp_path)

    @settings(deadline=None)
    @given(st.lists(st.integers(0, len(source) - 1), max_size=40))
    def check(indices: list[int]) -> None:
        ids = source.read_ids(np.array(indices, np.int64))
        assert ids.type == pa.large_string()
        ids.validate(full=True)
        assert ids.to_pylist() == [item.image_id for item in source.read(np.array(indices, np.int64)).objects]

    check()
    every = np.arange(len(source))
    assert source.read_ids(every).to_pylist() == [item.image_id for item in source.read(every).objects]
    again = pickle.loads(pickle.dumps(source))
    assert again.read_ids(every).equals(source.read_ids(every))


def test_an_index_outside_is_refused(tmp_path: Path) -> None:
    for source in (make_tars(tmp_path), cd.Subset(MEMORY, slice(2))):
        with pytest.raises(IndexError):
            source.read_ids(np.array([len(source)]))


def test_no_image_is_read(tmp_path: Path) -> None:
    source = make_tars(tmp_path)
    source.read_ids(np.arange(1))  # the index is in memory now
    (tmp_path / "0.tar").unlink()
    assert source.read_ids(np.arange(3)).to_pylist() == KEYS[:3]


def test_ids_that_cannot_be_read_now_are_an_error(tmp_path: Path) -> None:
    tars, parquet = make_tars(tmp_path), make_parquet(None, tmp_path)
    tars.close()
    for name in ("0.tar", "a.parquet"):
        (tmp_path / name).unlink()
    with pytest.raises(cd.SourceError, match=r"0.tar cannot be read now: FileNotFoundError"):
        tars.read_ids(np.arange(len(tars)))
    assert tars.read_ids(np.array([len(tars) - 1])).to_pylist() == ["0004"]
    with pytest.raises(cd.SourceError, match=r"a.parquet cannot be read now: FileNotFoundError"):
        parquet.read_ids(np.arange(len(parquet)))
    (tmp_path / "1.tar").write_bytes((tmp_path / "2.tar").read_bytes())
    tars.close()
    with pytest.raises(cd.SourceError, match=r"1.tar changed after it was indexed"):
        tars.read_ids(np.array([len(tars) - 1]))


def test_a_damaged_row_group_has_ids_of_rows(tmp_path: Path) -> None:
    source = make_parquet(pa.array([f"key-{n}" for n in range(12)]), tmp_path)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(1).data_page_offset
    data[at : at + 20] = bytes(20)
    (tmp_path / "a.parquet").write_bytes(data)
    source = ParquetSource(str(tmp_path / "a.parquet"))
    assert source.read_ids(np.array([0, 6, 11])).to_pylist() == ["key-0", "a-6", "key-11"]


def test_a_join_is_not_made_of_what_cannot_be_read_now(tmp_path: Path) -> None:
    source = make_tars(tmp_path)
    source.close()
    hidden = (tmp_path / "0.tar").rename(tmp_path / "hidden")
    table = pa.table({"id": KEYS, "n": range(len(KEYS))})
    for on in ("id", ("number", "n")):
        with pytest.raises(cd.SourceError, match="cannot be read now"):
            source.join(table, on=on)
    hidden.rename(tmp_path / "0.tar")
    assert getattr(source.join(table, on="id"), "matched") == len(KEYS) + 1  # noqa: B009

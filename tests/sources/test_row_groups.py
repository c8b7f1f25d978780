"""Parquet files that were made to fill the memory, or to take for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali import ImageLoader
from curator_dali.errors import SourceError
from curator_dali.sources import FolderSource, ParquetSource
from curator_dali.sources import row_groups as module
from curator_dali.sources.row_groups import RowGroupTooLarge, check_sizes
from tests.helpers import encode

PHOTO = encode(np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8))
FIX = "write the file anew in smaller row groups"


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def repeated(value: bytes, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], pa.binary()))


@pytest.fixture(params=["page", "dictionary", "caption"])
def bomb(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file of some kB that unpacks to 3 GiB or, as one page, to 192 MiB."""
    if request.param == "page":
        columns: dict[str, Any] = {"jpg": [PHOTO, bytes(192 << 20), PHOTO]}
    elif request.param == "dictionary":
        columns = {"jpg": repeated(bytes(1 << 20), 3000)}
    else:
        columns = {
            "jpg": [PHOTO] * 3000,
            "caption": repeated(bytes(1 << 20), 3000).cast(pa.dictionary(pa.int32(), pa.string())),
        }
    path = write(tmp_path / "bomb.parquet", columns, compression="zstd", store_schema=False)
    assert Path(path).stat().st_size < 50_000
    return path


@pytest.mark.timeout(60)
def test_a_small_file_that_unpacks_to_very_much(bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKED_LIMIT", 64 << 20)
    good = write(tmp_path / "good.parquet", {"jpg": [PHOTO, PHOTO]})
    before = pa.total_allocated_bytes()
    source = ParquetSource([bomb, good])
    for _ in range(2):
        batch = source.read(np.array([0, 1, len(source) - 1]))
        assert sorted(batch.errors) == [0, 1]
        assert "unpacks to more than the limit of 67,108,864 bytes" in batch.errors[0]
        assert FIX in batch.errors[0]
        assert batch.unread == set()
        assert bytes(batch.images[2]) == PHOTO
    assert pa.total_allocated_bytes() - before < 1 << 20
    with ImageLoader(source, device="cpu") as loader:
        assert sum(map(len, loader)) == 2


def test_honest_files_that_pack_well_are_read(tmp_path: Path) -> None:
    photos = repeated(PHOTO, 500)
    path = write(tmp_path / "a.parquet", {"jpg": photos, "caption": ["the same"] * 500}, store_schema=False)
    batch = ParquetSource(path).read(np.arange(500), members=True)
    assert batch.errors == {}
    assert {bytes(image) for image in batch.images} == {PHOTO}
    assert {item.metadata["caption"] for item in batch.objects} == {"the same"}


def varint(number: int) -> bytes:
    """A number as Thrift's compact protocol has it: zigzag, seven bits a byte."""
    number, found = number << 1, bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def forge(path: str, size: int, rows: int) -> None:
    """Let a footer say another size and number of rows of its only row group."""
    data, group = Path(path).read_bytes(), pq.read_metadata(path).row_group(0)
    length = int.from_bytes(data[-8:-4], "little")
    footer, body = data[-8 - length : -8], data[: -8 - length]
    said, says = (
        (b"\x16" + varint(a) + b"\x16" + varint(b)) for a, b in ((group.total_byte_size, group.num_rows), (size, rows))
    )
    assert footer.count(said) == 1
    footer = footer.replace(said, says)
    Path(path).write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize(
    ("size", "rows", "message"),
    [
        (1 << 40, 3, f"forged.parquet: .*unpacks to 1,099,511,627,776 bytes by the footer.*{FIX}"),
        (100, 1 << 40, "forged.parquet: damaged: its row groups have 1,099,511,627,776 rows, and the file 3"),
        (1, 3, ""),
    ],
)
def test_a_forged_footer(tmp_path: Path, size: int, rows: int, message: str) -> None:
    path = write(tmp_path / "forged.parquet", {"jpg": [PHOTO] * 3})
    forge(path, size, rows)
    if message:
        with pytest.raises(SourceError, match=message):
            ParquetSource(path)
    else:
        assert ParquetSource(path).read(np.arange(3)).errors == {}


def test_a_footer_that_says_very_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, sizes in (([1], [1 << 40]), ([1 << 40], [0]), ([1, 1 << 31], [100, 100])):
        with pytest.raises(RowGroupTooLarge, match=FIX):
            check_sizes(rows, sizes)
    check_sizes([], [])
    check_sizes([10_000] * 3, [4 << 30] * 3)  # as img2dataset may have them
    monkeypatch.setattr(module, "_UNPACKED_LIMIT", 1 << 10)
    path = write(tmp_path / "a.parquet", {"jpg": [PHOTO] * 2000})
    with pytest.raises(SourceError, match=rf"a\.parquet: .*unpacks to 16,000 bytes by the footer.*{FIX}"):
        ParquetSource(path)


@pytest.mark.timeout(60)
def test_very_many_row_groups_and_columns(tmp_path: Path) -> None:
    groups = write(tmp_path / "groups.parquet", {"jpg": [PHOTO] * 10_000}, row_group_size=1)
    columns = write(tmp_path / "columns.parquet", {"jpg": [PHOTO] * 3, **{f"c{n}": [n] * 3 for n in range(10_000)}})
    source = ParquetSource([groups, columns])
    assert len(source.shard_sizes) == 10_001
    batch = source.read(np.array([0, 9_999, 10_002]))
    assert batch.errors == {}
    assert batch.objects[2].metadata == {f"c{n}": n for n in range(10_000)}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("depth", [90, 1000])
def test_a_schema_that_is_nested_deep(tmp_path: Path, depth: int) -> None:
    kind = pa.int32()
    for _ in range(depth):
        kind = pa.struct([("a", kind)])
    path = write(tmp_path / "deep.parquet", {"jpg": [PHOTO] * 2, "deep": pa.nulls(2, kind)})
    if depth == 1000:
        with pytest.raises(SourceError, match=r"deep\.parquet: .*too deeply nested"):
            ParquetSource(path)
    else:
        assert ParquetSource(path).read(np.arange(2), members=True).errors == {}


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    for name in ("jpg", "caption"):
        arrays = [pa.array([PHOTO]), pa.array(["text"]), pa.array([PHOTO] if name == "jpg" else ["text"])]
        pq.write_table(pa.table(arrays, names=["jpg", "caption", name]), tmp_path / "two.parquet")
        with pytest.raises(SourceError, match=rf"two\.parquet has several columns of the name '{name}'"):
            ParquetSource(str(tmp_path / "two.parquet"))


@pytest.mark.timeout(60)
def test_metadata_of_a_folder_that_unpacks_to_very_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKED_LIMIT", 64 << 20)
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    table = {"file_name": ["a.jpg"] * 3000, "caption": repeated(bytes(1 << 20), 3000)}
    write(tmp_path / "metadata.parquet", table, compression="zstd", store_schema=False)
    with pytest.raises(SourceError, match=rf"metadata\.parquet is damaged: .*{FIX}"):
        FolderSource(str(tmp_path))


def test_a_damaged_footer_never_ends_the_process(tmp_path: Path) -> None:
    """Each byte of a footer is another one in turn: the file is refused, or its rows are read or are errors."""
    path = write(tmp_path / "a.parquet", {"jpg": [PHOTO] * 3, "caption": ["a", None, "b"]})
    code = """if True:
        import logging, sys
        from pathlib import Path
        import numpy as np
        from curator_dali.errors import SourceError
        from curator_dali.sources import FolderSource, ParquetSource
        logging.disable(logging.CRITICAL)
        path = Path(sys.argv[1])
        data = path.read_bytes()
        counts = [0, 0, 0]
        for at in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data) - 8):
            path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1:])
            try:
                source = ParquetSource(str(path))
                batch = source.read(np.arange(min(len(source), 3)), members=True)
                counts[1 if batch.errors else 0] += 1
            except SourceError as error:
                assert str(path) in str(error)
                counts[2] += 1
        print(*counts)
    """
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert min(map(int, done.stdout.split())) > 0

"""Tables beside a data set: one content, whatever holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from curator_dali.errors import SourceError
from curator_dali.io import open_table

ROWS = [{"id": f"k{n}", "n": n, "x": n / 4, "flag": n % 2 == 0, "text": f"Nr. {n}, grün"} for n in range(10)]
TABLE = pa.Table.from_pylist(ROWS)


def read(table: Any, columns: list[str] | None = None) -> list[dict[str, Any]]:
    return [row for block in open_table(table).blocks(columns) for row in block.to_pylist()]


def write_all(folder: Path) -> list[Path]:
    pq.write_table(TABLE, folder / "a.parquet", row_group_size=3)
    pa.feather.write_feather(TABLE, folder / "a.feather", chunksize=4)
    with pa.ipc.new_stream(str(folder / "a.arrow"), TABLE.schema) as writer:
        writer.write_table(TABLE)
    TABLE.to_pandas().to_csv(folder / "a.csv", index=False)
    TABLE.to_pandas().to_csv(folder / "a.tsv", index=False, sep="\t", encoding="utf-16")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return sorted(folder.iterdir())


def test_every_kind(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    assert len(paths) == 6
    for table in (*paths, TABLE, TABLE.to_pandas()):
        assert read(table) == ROWS, table
        assert read(table, ["n", "id"]) == [{"n": row["n"], "id": row["id"]} for row in ROWS]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    for start in (0, 4):
        pq.write_table(TABLE.slice(start, 4), tmp_path / f"{start}.parquet")
    for table in (str(tmp_path / "*.parquet"), [tmp_path / "0.parquet", tmp_path / "4.parquet"]):
        assert read(table) == ROWS[:8]
    opened = open_table(str(tmp_path / "*.parquet"))
    assert opened.name == "0.parquet and 1 more"
    pq.write_table(TABLE.select(["id"]), tmp_path / "4.parquet")
    with pytest.raises(SourceError, match=r"4\.parquet has no column 'n'; it has id"):
        read(str(tmp_path / "*.parquet"))


def test_versions_follow_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE, path)
    before = open_table(path).version
    assert open_table(path).version == before
    pq.write_table(TABLE.slice(1), path)
    assert open_table(path).version != before


def test_urls(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path in write_all(tmp_path):
        fs.pipe_file(f"/tables/{path.name}", path.read_bytes())
        assert read(f"memory://tables/{path.name}") == ROWS
    assert read("memory://tables/*.parquet") == ROWS
    fs.rm("/tables", recursive=True)


def test_blocks_are_bounded() -> None:
    blocks = list(open_table(pa.table({"n": np.arange(200_000)})).blocks())
    assert [len(block) for block in blocks] == [65_536] * 3 + [200_000 - 3 * 65_536]


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "a.csv").write_text("a,b\n1\n")
    (tmp_path / "a.xlsx").write_text("a")
    for name, reason in (
        ("a.parquet", "cannot read the table"),
        ("a.csv", "cannot read the table"),
        ("a.xlsx", "cannot read"),
    ):
        with pytest.raises(SourceError, match=rf"{reason}.*{name}"):
            open_table(tmp_path / name)
    for wrong in (7, [], str(tmp_path / "no" / "*.csv"), str(tmp_path / "none.parquet")):
        with pytest.raises(SourceError):
            open_table(wrong)
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="several columns 'a'"):
        open_table(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="has no column 'z'; it has a"):
        read(pd.DataFrame({"a": [1]}), ["z"])

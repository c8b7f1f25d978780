"""`MappedRows`: rows of an Arrow file come out as Arrow itself has them, type by type."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.sources import rows
from curator_dali.sources.rows import HeldRows, MappedRows, chunk_rows

COLUMNS = {
    **{f"i{bits}": (pa.from_numpy_dtype(f"int{bits}"), [-1, 2, 3]) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": (pa.from_numpy_dtype(f"uint{bits}"), [0, 2, 2**bits - 1]) for bits in (8, 16, 32, 64)},
    "half": (pa.float16(), [0.5, float("inf"), 1.0]),
    "float": (pa.float32(), [0.1, float("inf"), -0.0]),
    "double": (pa.float64(), [0.1, 1e300, 3.0]),
    "bool": (pa.bool_(), [True, False, True]),
    "text": (pa.string(), ["", "ü🐈", "x" * 9000]),
    "long": (pa.large_string(), ["", "ü🐈", "b"]),
    "view": (pa.string_view(), ["", "ü🐈", "b" * 40]),
    "raw": (pa.binary(), [b"", b"\xff", b"b"]),
    "words": (pa.list_(pa.string()), [[], ["a", None], ["b"]]),
    "nested": (pa.struct({"x": pa.list_(pa.int8())}), [{"x": []}, {"x": [1]}, {"x": None}]),
    "map": (pa.map_(pa.string(), pa.int8()), [[], [("a", 1)], [("b", 2)]]),
    "category": (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"]),
    "day": (pa.date32(), [date(2020, 2, 29), date(1, 1, 1), date(9999, 1, 1)]),
    "time": (pa.timestamp("us", "UTC"), [datetime(2020, 1, 1), datetime(1, 1, 1), datetime(9998, 1, 1)]),
    "span": (pa.duration("s"), [timedelta(0), timedelta(1), timedelta(-1)]),
    "decimal": (pa.decimal128(9, 2), [Decimal("0.10"), Decimal("1.00"), Decimal("-2.50")]),
    "nothing": (pa.null(), [None, None, None]),
}


def table_of(holes: str) -> pa.Table:
    """Rows of every type; some, all or none of the values are null."""
    columns = {}
    for name, (kind, values) in COLUMNS.items():
        empty = {"none": [], "some": [1], "all": [0, 1, 2]}[holes]
        columns[name] = pa.array([None if n in empty else value for n, value in enumerate(values)], kind)
    return pa.table(columns)


def batches(table: pa.Table) -> Iterator[Any]:
    return iter(table.to_batches())


@pytest.mark.parametrize("holes", ["none", "some", "all"])
@pytest.mark.parametrize("held", [True, False])
def test_values_are_those_of_arrow(holes: str, held: bool) -> None:
    table = table_of(holes)
    if held:  # in the midst of larger buffers
        table = pa.concat_tables([table, table, table]).combine_chunks().slice(3, 3)
        found: MappedRows = HeldRows("", table.to_batches(), table.column_names)
    else:
        found = MappedRows(f"test_rows {holes}", partial(batches, table), table.column_names)
    for instance in (found, pickle.loads(pickle.dumps(found))):
        for number, expected in enumerate(table.to_pylist()):
            row = instance.row(number)
            assert row == expected
            assert {name: type(value) for name, value in row.items()} == {n: type(v) for n, v in expected.items()}


def test_values_that_python_has_not_are_texts() -> None:
    bad = pa.array([b"\xff\x00a"]).view(pa.string())
    far = pa.array([863_000_000_000], pa.timestamp("s"))
    batch = pa.RecordBatch.from_arrays([bad, far, pa.array([1])], names=["bad", "far", "n"])
    row = HeldRows("", [batch], ["bad", "far", "n"]).row(0)
    assert row["n"] == 1
    assert row["bad"] == "\\xff\x00a"
    assert row["far"].startswith("29317-05-19")


@given(st.lists(st.integers(0, 30), max_size=12), st.randoms())
def test_chunks_hold_all_rows_in_order(sizes: list[int], random: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_CHUNK_ROWS", 16)
        values = np.arange(sum(sizes))
        parts = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
        given_batches = [pa.RecordBatch.from_arrays([pa.array(part)], names=["n"]) for part in parts]
        chunks = list(chunk_rows(given_batches))
        assert [len(chunk) for chunk in chunks[:-1]] == [16] * (len(chunks) - 1)
        assert [n for chunk in chunks for n in chunk.column("n").to_pylist()] == values.tolist()
        found = HeldRows("", given_batches, ["n"])
        assert found.count() == len(values)
        wanted = np.array(sorted(random.sample(range(len(values)), len(values) // 2)), np.int64)
        assert found.take("n", wanted).to_pylist() == wanted.tolist()
        assert [found.row(int(n)) for n in wanted] == [{"n": int(n)} for n in wanted]
        assert [n for block in found.blocks("n") for n in block.to_pylist()] == values.tolist()


def test_an_interrupt_leaves_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path))

    def stop() -> Iterator[Any]:
        yield from table_of("none").to_batches()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MappedRows("interrupted", stop, ["i8"]).row(0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

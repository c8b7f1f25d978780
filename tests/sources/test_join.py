"""`Source.join`: columns of a table as fields of the samples that its keys name."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import curator_dali as cd
from curator_dali.sources import Join, Source, reopen, rows
from tests.helpers import encode
from tests.sources.web_server import Server

IMAGE = encode(np.full((8, 8, 3), 90, np.uint8))
TABLE = pa.table({"id": [f"{n:06d}" for n in range(5, 70)], "note": [f"n{n}" for n in range(5, 70)]})


@pytest.fixture
def tars(shards: list[Path]) -> Source:
    """Samples 000000 to 000059."""
    return cd.open_source([*map(str, shards)])


def items(source: Source, indices: Any = None) -> list[cd.ImageObject]:
    return source.read(np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)).objects


def notes(source: Source, field: str = "note") -> list[Any]:
    return [item.metadata.get(field) for item in items(source)]


def joined(source: Source, *args: Any, **options: Any) -> Join:
    found = source.join(*args, **options)
    assert isinstance(found, Join)
    return found


def counts(source: Join) -> tuple[int, int, int, int]:
    return source.matched, source.unmatched, source.repeated, source.unused


def write(kind: str, table: pa.Table, path: Path) -> Any:
    """The table as a file, or in memory."""
    if kind == "parquet":
        pq.write_table(table, path / "t.parquet", row_group_size=7)
    elif kind == "csv":
        table.to_pandas().to_csv(path / "t.csv", index=False)
    elif kind == "jsonl":
        (path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path / "t.feather")
    elif kind == "arrow":
        with pa.OSFile(str(path / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif kind == "pandas":
        return table.to_pandas()
    elif kind == "frame":
        return _Frame(table)
    elif kind == "table":
        return table
    return path / f"t.{kind}"


class _Frame:
    """A frame of a library that has Arrow's C interface, as polars."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


KINDS = ["parquet", "csv", "jsonl", "feather", "arrow", "pandas", "frame", "table"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_become_fields(tars: Source, tmp_path: Path, kind: str, caplog: Any) -> None:
    # the ids are text in a CSV, too, as they have zeros in front
    caplog.set_level(logging.INFO)
    source = joined(tars, write(kind, TABLE, tmp_path), on="id")
    assert len(source) == 60
    assert notes(source) == [None] * 5 + [f"n{n}" for n in range(5, 60)]
    assert "note" not in items(source, [0])[0].metadata
    assert counts(source) == (55, 5, 0, 10)
    assert "55 samples have a row, 5 have none, 0 have several; rows without a sample: 10" in caplog.text
    for item, own in zip(items(source), items(tars), strict=True):
        assert {**own.metadata, **item.metadata} == item.metadata
        assert (item.image_id, item.image_path) == (own.image_id, own.image_path)
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint
    assert notes(again) == notes(source)
    assert counts(again) == counts(source)


def test_lists_globs_and_urls(tars: Source, tmp_path: Path, memory: Any, server: Server) -> None:
    for number in range(3):
        pq.write_table(TABLE.slice(20 * number, 20), tmp_path / f"{number}.parquet")
    expected = notes(tars.join(TABLE.slice(0, 60), on="id"))
    data = (tmp_path / "0.parquet").read_bytes()
    server.files["/0.parquet"] = data
    memory.pipe("/t/0.parquet", data)
    for place in (str(tmp_path / "*.parquet"), [tmp_path / f"{n}.parquet" for n in range(3)]):
        assert notes(tars.join(place, on="id")) == expected
    for url in (f"{server.url}/0.parquet", "memory://t/0.parquet"):
        assert notes(tars.join(url, on="id"))[:25] == expected[:25]


KEYS = st.sampled_from(["a", "b/c", "ü", "", "日本", "0", "00", "x" * 5000])


@settings(deadline=None)  # each example writes and maps a file
@given(
    st.lists(KEYS, min_size=1, max_size=12),
    st.lists(st.none() | KEYS, max_size=12),
    st.sampled_from(["keep", "drop"]),
    st.sampled_from(["first", "drop"]),
)
def test_as_a_dict_would_have_it(ids: list[str], keys: list[str | None], missing: Any, repeated: Any) -> None:
    source = cd.Subset(_NAMED, [_IDS.index(key) for key in ids])
    table = pa.table({"key": pa.array(keys, pa.string()), "n": pa.array(range(len(keys)), pa.int64())})
    result = joined(source, table, on="key", missing=missing, repeated=repeated)
    times = Counter(keys)
    first = {key: number for number, key in reversed([*enumerate(keys)])}
    kept = [
        key for key in ids if not (missing == "drop" and not times[key]) and not (repeated == "drop" and times[key] > 1)
    ]
    assert [(item.image_id, item.metadata.get("n")) for item in items(result)] == [
        (key, first.get(key)) for key in kept
    ]
    assert result.read_ids(np.arange(len(result))).to_pylist() == kept
    there = [key for key in ids if times[key]]
    assert counts(result) == (
        len(there),
        len(ids) - len(there),
        sum(times[key] > 1 for key in ids),
        len(keys) - len(set(there)),
    )
    assert result.shard_sizes.sum() == len(kept)


_IDS = ["a", "b/c", "ü", "", "日本", "0", "00", "x" * 5000]
_NAMED = cd.MemorySource(dict.fromkeys(_IDS, IMAGE))


def test_values_of_every_type(tmp_path: Path) -> None:
    source = cd.MemorySource({"a": IMAGE, "b": IMAGE}, metadata={"a": {"caption": "old", "own": 1}})
    values: dict[str, Any] = {
        "caption": "new ü", "number": 7, "real": 0.5, "flag": True, "nothing": None, "words": ["a", None],
        "nested": {"x": {"y": [1, 2]}}, "day": date(2020, 2, 29), "raw": b"\xff\0", "time": datetime(2020, 1, 1, 3),
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([{"id": "a", **values}]), tmp_path / "t.parquet")
    (one, other) = items(source.join(tmp_path / "t.parquet", on="id"))
    assert one.metadata == {"own": 1, **values}
    assert other.metadata == {}


def test_text_of_json_lines_stays_text(tmp_path: Path) -> None:
    values = {"day": "2020-01-01", "inner": {"time": "2020-01-01T10:00:00Z", "days": ["2020-01-01"]}, "n": 2.0, "i": 3}
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "a", **values}) + "\n\n")
    (item,) = items(cd.MemorySource({"a": IMAGE}).join(tmp_path / "t.jsonl", on="id"))
    assert item.metadata == values
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(cd.SourceError, match=r"none.jsonl has no column 'id'"):
        cd.MemorySource({"a": IMAGE}).join(tmp_path / "none.jsonl", on="id")


def test_a_date_that_python_has_not_is_a_text() -> None:
    far = pa.array([863_000_000_000], pa.timestamp("s"))
    (item,) = items(cd.MemorySource({"a": IMAGE}).join(pa.table({"id": ["a"], "far": far, "n": [3]}), on="id"))
    assert item.metadata["n"] == 3
    assert item.metadata["far"].startswith("29317-")


@pytest.mark.parametrize(
    "keys", [pa.array([1, 3, None]), pa.array([1, 3, 300], pa.uint16()), pa.array(["1", "3", None]).dictionary_encode()]
)
def test_whole_numbers_are_compared_as_text(keys: Any) -> None:
    source = cd.MemorySource([IMAGE] * 4)
    result = source.join(pa.table({"k": keys, "n": [10, 30, 99]}), on="k")
    assert notes(result, "n") == [None, 10, None, 30]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {"on": "key"}, "the table has no column 'key'; it has id, note"),
        (TABLE, {"on": "id", "columns": ["nope"]}, "no column 'nope'"),
        (TABLE, {"on": "id", "columns": []}, "columns is empty"),
        (pa.table({"id": [1.0]}), {"on": "id"}, "are double, and keys are text or whole numbers"),
        (TABLE, {"on": "id", "missing": "refuse"}, r"5 samples of 60 have no row in the table, such as '000000', "),
        (
            pa.concat_tables([TABLE, TABLE.slice(3, 2)]),
            {"on": "id", "repeated": "refuse"},
            "2 samples of 60 have several rows in the table, such as '000008', '000009'",
        ),
        (TABLE, {"on": "id", "missing": "no"}, 'missing is \'no\'; allowed: "keep", "drop", "refuse"'),
        ("nowhere.parquet", {"on": "id"}, "no table there"),
        (7, {"on": "id"}, "cannot open 7 as a table"),
    ],
)  # fmt: skip
def test_a_wrong_join_is_refused_in_words(tars: Source, table: Any, options: Any, message: str) -> None:
    with pytest.raises((cd.SourceError, ValueError), match=message):
        tars.join(table, **options)


def test_keys_that_match_nothing_are_told(tars: Source, caplog: Any) -> None:
    tars.join(pa.table({"id": ["a.jpg"], "n": [1]}), on="id")
    assert "Samples have keys such as '000000', '000001', '000002'; rows: 'a.jpg'" in caplog.text


def test_an_empty_table_and_an_empty_source(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "t.parquet")
    for table in (TABLE.slice(0, 0), tmp_path / "t.parquet"):
        assert notes(cd.MemorySource([IMAGE] * 2).join(table, on="id")) == [None, None]
        assert len(cd.MemorySource([IMAGE] * 2).join(table, on="id", missing="drop")) == 0
        assert len(cd.MemorySource([]).join(table, on="id")) == 0


def test_other_keys(tars: Source, shards: list[Path]) -> None:
    by_field = joined(tars, pa.table({"n": [7, 9], "extra": ["seven", "nine"]}), on=("number", "n"))
    assert [item.image_id for item in items(by_field) if "extra" in item.metadata] == ["000007", "000009"]
    assert items(by_field, [7])[0].metadata["number"] == 7
    path = f"tar://000021.jpg::{shards[1]}"
    by_path = joined(tars, pa.table({"p": [path], "extra": [1]}), on=("image_path", "p"), missing="drop")
    assert [item.image_id for item in items(by_path)] == ["000021"]
    by_name = joined(tars, pa.table({"id": ["000003"], "extra": [1]}), on=("image_id", "id"), missing="drop")
    assert [item.image_id for item in items(by_name)] == ["000003"]
    assert by_name.unmatched == 59


def test_some_columns(tars: Source) -> None:
    table = TABLE.append_column("more", pa.array(range(65)))
    assert items(tars.join(table, on="id", columns=["more"]), [5])[0].metadata["more"] == 0
    assert "note" not in items(tars.join(table, on="id", columns=["more"]), [5])[0].metadata
    assert items(tars.join(table, on="id", columns=["id"]), [5])[0].metadata["id"] == "000005"


def test_a_second_opening_reads_no_table(tars: Source, tmp_path: Path, monkeypatch: Any) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    first = tars.join(tmp_path / "t.parquet", on="id")
    expected = notes(first)

    def refuse(*args: Any) -> Any:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "write_chunks", refuse)
        patch.setattr("curator_dali.sources.join._read_keys", refuse)
        assert notes(tars.join(tmp_path / "t.parquet", on="id")) == expected
    again = pickle.dumps(first)
    assert len(again) < 30_000
    changed = TABLE.set_column(1, "note", pa.array([f"m{n}" for n in range(65)]))
    pq.write_table(changed, tmp_path / "t.parquet")
    other = tars.join(tmp_path / "t.parquet", on="id")
    assert notes(other)[5] == "m0"
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "cache"))
    renewed = pickle.loads(pickle.dumps(other))
    renewed.close()
    assert notes(renewed) == notes(other)


def test_a_table_that_changed_is_not_taken_for_the_one_that_was_joined(
    tars: Source, tmp_path: Path, monkeypatch: Any
) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    source = tars.join(tmp_path / "t.parquet", on="id")
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "cache"))
    pq.write_table(TABLE.slice(1), tmp_path / "t.parquet")
    elsewhere = pickle.loads(pickle.dumps(source))
    with pytest.raises(cd.SourceError, match=r"t.parquet has changed since it was joined: join it again"):
        items(elsewhere)[9].metadata  # noqa: B018


def test_without_a_cache_folder(tars: Source, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "file" / "cache"))
    source = cd.Subset(tars, slice(3, 33)).join(tmp_path / "t.parquet", on="id")
    assert notes(source) == [None, None] + [f"n{n}" for n in range(5, 33)]
    assert "they are gathered again each time" in caplog.text


@pytest.mark.parametrize(
    ("ending", "zeros"), [(".arrow", False), (".keys", False), (".matches", False), (".matches", True)]
)
def test_a_cut_file_in_the_cache_is_made_again(
    tars: Source, tmp_path: Path, monkeypatch: Any, ending: str, zeros: bool
) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "cache"))
    expected = notes(tars.join(tmp_path / "t.parquet", on="id"))
    (file,) = (tmp_path / "cache" / "rows").rglob(f"*{ending}")
    size = file.stat().st_size
    os.truncate(file, size // 2)
    if zeros:
        os.truncate(file, size)
    if ending == ".keys":
        next((tmp_path / "cache" / "rows").rglob("*.matches")).unlink()
    assert notes(tars.join(tmp_path / "t.parquet", on="id")) == expected


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_keys_that_change_where_the_fingerprint_does_not(tmp_path: Path, kind: str) -> None:
    """Files of equal names and sizes are the same data set, and other keys in them have other rows."""
    rows = pa.table({"url": ["u1", "u2", "u3"], "x": [1, 2, 3]})

    def make(keys: list[str]) -> Source:
        if kind == "folder":
            for number in range(3):
                (tmp_path / f"{number}.png").write_bytes(IMAGE)
            lines = [f"{number}.png,{key}\n" for number, key in enumerate(keys)]
            (tmp_path / "metadata.csv").write_text("file_name,u\n" + "".join(lines))
            return cd.open_source(tmp_path)
        pq.write_table(pa.table({"key": keys, "u": keys, "png": [IMAGE] * 3}), tmp_path / "a.parquet")
        return cd.open_source(tmp_path / "a.parquet")

    first = make(["u1", "u2", "u3"])
    assert notes(first.join(rows, ("u", "url"), missing="refuse"), "x") == [1, 2, 3]
    second = make(["u3", "u2", "u1"])
    assert second.fingerprint == first.fingerprint
    assert notes(second.join(rows, ("u", "url")), "x") == [3, 2, 1]
    if kind == "parquet":
        assert notes(second.join(rows, "url"), "x") == [3, 2, 1]
    with pytest.raises(cd.SourceError, match="3 samples of 3 have no row"):
        make(["u9", "u9", "u9"]).join(rows, ("u", "url"), missing="refuse")


def test_a_table_in_memory_is_known_by_its_values_and_types(tars: Source) -> None:
    numbers = pa.array(range(65), pa.int64())
    table = TABLE.append_column("w", numbers)
    other = TABLE.append_column("w", numbers.view(pa.timestamp("us")))
    first = tars.join(table, "id")
    assert first.fingerprint != tars.join(other, "id").fingerprint
    pieces = pa.concat_tables([table.slice(0, 9), table.slice(9)])
    assert first.fingerprint == tars.join(pieces, "id").fingerprint


def test_null_and_empty_keys_and_halves_of_surrogates() -> None:
    source = cd.MemorySource([IMAGE] * 3, [{"u": ""}, {"u": None}, {"u": "\udcff"}])
    table = pa.table({"l": [None] * 40 + ["", "\\xff"], "x": range(42)})
    found = joined(source, table, ("u", "l"))
    assert notes(found, "x")[:2] == [40, None]
    assert found.repeated == 0
    with pytest.raises(cd.SourceError, match="no sample of 'memory' has a field 'v' to join by"):
        source.join(table, ("v", "l"))


def test_a_mixture_with_weights_is_refused(tars: Source) -> None:
    mixture = cd.Mixture({"a": tars, "b": cd.MemorySource({"x": IMAGE})}, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="is a Mixture with weights, which a join would lose"):
        mixture.join(TABLE, "id")


def test_fingerprint(tars: Source, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    (tmp_path / "copy").mkdir()
    pq.write_table(TABLE, tmp_path / "copy" / "renamed.parquet")
    make: Callable[..., Join] = lambda path, **options: joined(tars, path, on="id", **options)  # noqa: E731
    first = make(tmp_path / "t.parquet")
    assert first.fingerprint == make(tmp_path / "copy" / "renamed.parquet").fingerprint
    assert first.fingerprint != make(tmp_path / "t.parquet", missing="drop").fingerprint
    assert first.fingerprint != make(tmp_path / "t.parquet", columns=["id"]).fingerprint
    assert first.fingerprint != tars.fingerprint
    pq.write_table(TABLE.slice(0, 9), tmp_path / "t.parquet")
    assert first.fingerprint != make(tmp_path / "t.parquet").fingerprint
    assert make(TABLE).fingerprint == make(TABLE.slice(0)).fingerprint != make(TABLE.slice(1)).fingerprint


def test_it_opens_again(tars: Source, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(TABLE, "t.parquet")
    source = tars.join("t.parquet", on="id", missing="drop").join("t.parquet", on=("note", "note"), columns=["id"])
    monkeypatch.chdir("/")
    origin = json.loads(json.dumps(source.origin))
    again = reopen(origin)
    assert again.fingerprint == source.fingerprint
    assert [item.metadata for item in items(again)] == [item.metadata for item in items(source)]
    part = cd.Subset(source, slice(5, 9))
    assert reopen(part.origin or {}).fingerprint == part.fingerprint
    assert tars.join(TABLE, on="id").origin is None


def test_what_the_whole_knows_is_forwarded(tars: Source, tmp_path: Path) -> None:
    source = tars.join(TABLE, on="id", missing="drop")
    indices = np.array([3, 50, 0])
    assert source.image_sizes(indices).tolist() == tars.image_sizes(indices + 5).tolist()
    assert source.shard_sizes.tolist() == [15, 20, 20]
    assert source.locations == tars.locations
    assert [*source.shard_records] == [*tars.shard_records]
    with cd.ImageLoader(source, batch_size=8, device="cpu", shuffle=3) as loader:
        found = {item.image_id: item.metadata["note"] for batch in loader for item in batch.data}
    assert found == {f"{n:06d}": f"n{n}" for n in range(5, 60)}
    assert (tars.headers(np.arange(5, 60))["codec"] != 0).all()
    assert source.fields is None
    whole = cd.MemorySource([IMAGE])
    assert whole.fields is None
    pq.write_table(pa.table({"jpg": [IMAGE], "key": ["a"], "n": [1.5]}), tmp_path / "data.parquet")
    parquet = cd.open_source(tmp_path / "data.parquet")
    added = pa.table({"key": ["a"], "n": ["text"], "flag": [True], "raw": [b"a"]})
    assert parquet.join(added, on="key").fields == {"key": "string", "n": "string", "flag": "bool", "raw": "string"}


def test_labels_of_a_table_have_no_class_names(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(IMAGE)
    folder = cd.open_source(tmp_path)
    labels = pa.table({"id": ["cat/1", "dog/1"], "label": [4, 5], "note": ["a", "b"]})
    assert folder.join(labels, on="id", columns=["note"]).class_names == ["cat", "dog"]
    assert folder.join(labels, on="id").class_names == []
    assert notes(folder.join(labels, on="id"), "label") == [4, 5]


def test_workers_of_a_data_loader(tars: Source, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    for table in (tmp_path / "t.parquet", TABLE):
        source = tars.join(table, on="id")
        workers: Any = DataLoader(source, 16, num_workers=2, collate_fn=_same, multiprocessing_context="spawn")  # type: ignore[arg-type]
        assert [item.metadata.get("note") for batch in workers for item in batch.objects] == notes(source)


def _same(batch: Any) -> Any:
    return batch


def test_a_curation_writes_the_new_fields(tars: Source, tmp_path: Path) -> None:
    captions = pa.table({"id": TABLE["id"], "caption": TABLE["note"], "weight": np.arange(65) / 2})
    pq.write_table(captions, tmp_path / "t.parquet")
    source = tars.join(tmp_path / "t.parquet", on="id", missing="drop")
    stages = [cd.Filter("weight", min=10)]
    cd.curate(source, tmp_path / "out", stages=stages, device="cpu", html=False)
    written = cd.open_source(tmp_path / "out")
    assert notes(written, "caption") == [f"n{n}" for n in range(25, 60)]
    assert notes(written, "weight") == [n / 2 for n in range(20, 55)]
    assert notes(written, "number") == [*range(25, 60)]
    view = cd.View(tmp_path / "out")
    assert notes(view, "caption") == notes(written, "caption")
    assert isinstance(view.source, Join)
    more = view.join(pa.table({"id": ["000030"], "split": ["test"]}), on="id", missing="drop")
    assert [(item.image_id, item.metadata["split"], item.metadata["weight"]) for item in items(more)] == [
        ("000030", "test", 12.5)
    ]


def test_joins_mix(tars: Source) -> None:
    mixture = cd.Mixture({"a": tars.join(TABLE, on="id"), "b": tars.join(TABLE, on="id", missing="drop")})
    assert notes(mixture)[5] == notes(mixture)[60] == "n5"
    assert mixture.read_ids(np.array([60, 5])).to_pylist() == ["000005", "000005"]


def test_many_rows_in_another_order(tmp_path: Path) -> None:
    """More rows than a chunk has, and keys that lie in all of them."""
    count = 150_000
    order = np.random.default_rng(0).permutation(count)
    table = pa.table({"id": order, "twice": order * 2})
    pq.write_table(table, tmp_path / "t.parquet")
    source = cd.MemorySource({str(n): IMAGE for n in range(0, 2 * count, 97)})
    for place in (table, tmp_path / "t.parquet"):
        result = joined(source, place, on="id")
        assert notes(result, "twice") == [2 * n if n < count else None for n in range(0, 2 * count, 97)]


def test_pandas_with_an_index(tars: Source) -> None:
    frame = pd.DataFrame({"id": ["000001"], "n": [1]}, index=["x"])
    (item,) = items(tars.join(frame, on="id", missing="drop"))
    assert item.metadata["n"] == 1
    assert "__index_level_0__" not in item.metadata

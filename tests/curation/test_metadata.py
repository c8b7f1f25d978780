"""Fields of the metadata whose type differs between samples, or that appear late: nothing is silent, no run ends."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.curation.config import read_config
from curator_dali.curation.fields import add_misfits, field_types, to_column
from curator_dali.errors import StageError
from curator_dali.sources import MemorySource, ParquetSource, open_source
from curator_dali.stages import Deduplicate, Filter
from tests import helpers
from tests.curation.helpers import FirstOfItsLabel, read_rows

OPTIONS: dict[str, Any] = {"device": "cpu", "html": False, "tars": False, "part_size": 100}


@pytest.fixture(scope="module")
def image(photos: dict[str, NDArray[np.uint8]]) -> bytes:
    return helpers.encode(photos["chelsea"][:16, :16])


def write(path: Path, image: bytes, values: list[dict[str, Any]]) -> str:
    members = []
    for number, fields in enumerate(values):
        members += [(f"{number:05d}.jpg", image), (f"{number:05d}.json", json.dumps(fields).encode())]
    return str(helpers.write_tar(path, members))


def kept(source: Any, out: Path, *stages: Any, **options: Any) -> list[int]:
    cd.curate(source, out, stages=list(stages), **OPTIONS, **options)
    return [row["index"] for row in read_rows(out) if row["status"] == "kept"]


@pytest.mark.parametrize("early", [{"score": 1}, {"score": None}, {}, {"score": 2.5}, {"score": "n/a"}])
@pytest.mark.parametrize("conditions", [{"min": 0.7}, {"max": 0.8}, {"equals": 0.75}])
def test_numbers_that_come_late(
    early: dict[str, Any], conditions: dict[str, float], image: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tar", image, [early] * 300 + [{"score": 0.75}] * 100)
    found = kept(path, tmp_path / "out", Filter("score", **conditions))  # type: ignore[arg-type]
    assert [index for index in found if index >= 300] == list(range(300, 400))
    assert (0 in found) == (early.get("score") in (1, 2.5) and "min" in conditions)


@pytest.mark.parametrize("early", [{"flag": None}, {}, {"flag": "unknown"}])
def test_truth_values_and_texts_that_come_late(early: dict[str, Any], image: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", image, [early] * 300 + [{"flag": True}, {"flag": False}] * 50)
    assert kept(path, tmp_path / "out", Filter("flag", equals=True)) == list(range(300, 400, 2))
    path = write(tmp_path / "b.tar", image, [{}] * 300 + [{"name": "a"}, {"name": "b"}] * 50)
    assert kept(path, tmp_path / "names", Filter("name", equals="b")) == list(range(301, 400, 2))


@pytest.mark.parametrize("kind", ["streaming", "global"])
def test_misfits_are_told_in_the_reason_and_once_at_the_end(
    kind: str, image: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = ["0.75", [1], True, 10**400, {"a": 1}]
    values = (
        [{"score": 1.5, "n": 0}] * 200 + [{"score": value, "n": 0} for value in odd] + [{"score": None, "n": 0}, {}]
    )
    values += [{"score": 0.5, "n": 1}] * 100
    path = write(tmp_path / "a.tar", image, values)
    stages = [Filter("score", min=1), *([FirstOfItsLabel("n")] if kind == "global" else [])]
    say = "5 values of 'score' are of another type than its column, as '0.75', and counted as missing"
    for _ in range(2):  # the second run has nothing to do, and says so too
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            report = cd.curate(path, tmp_path / "out", stages=stages, **OPTIONS)
        assert caplog.text.count("counted as missing") == 1
        assert say in caplog.text
    reasons = [row["reason"] for row in read_rows(tmp_path / "out")][200:208]
    assert reasons[:3] == [f"score is {value}, not a number" for value in ("'0.75'", "[1]", "True")]
    assert reasons[4:] == ["score is {'a': 1}, not a number", *["score is missing"] * 2, "score 0.5 < 1"]
    kinds = report.dropped["Filter(score)"]
    assert kinds["score < 1"] == 100
    assert kinds["score is not a number"] + kinds["score is missing"] == 7
    missing = cd.curate(path, tmp_path / "keep", stages=[Filter("score", min=1, missing="keep")], **OPTIONS)
    assert missing.kept == 207


def test_misfits_of_other_types(image: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values: list[dict[str, Any]] = [{"flag": True} for _ in range(900)]
    values[501] = {"flag": 0.75}  # not among the samples looked at
    path = write(tmp_path / "a.tar", image, values)
    assert len(kept(path, tmp_path / "out", Filter("flag", equals=True))) == 899
    assert read_rows(tmp_path / "out")[501]["reason"] == "flag is 0.75, of another type than its column"
    assert "1 values of 'flag'" in caplog.text


def test_a_field_that_nobody_has_is_refused_before_work(image: bytes, tmp_path: Path) -> None:
    rare = [{"other": 1}] * 1000
    rare[577] = {"scores": 0.5}
    path = write(tmp_path / "a.tar", image, rare)
    say = r"reads 'scores', which no earlier stage writes.*256 samples were looked at.*metadata=\{'score': 'float64'\}"
    with pytest.raises(StageError, match=say):
        kept(path, tmp_path / "out", Filter("scores", min=0.1))
    assert not (tmp_path / "out").exists()
    assert kept(path, tmp_path / "out", Filter("scores", min=0.1), metadata={"scores": "float64"}) == [577]
    with pytest.raises(cd.OutputError, match=r"settings.metadata"):
        kept(path, tmp_path / "out", Filter("scores", min=0.1), metadata={"scores": "int64"})
    with pytest.raises(ValueError, match=r"metadata\['a'\] is 'int'; allowed: bool, int64, float64, string"):
        kept(path, tmp_path / "new", Filter("a", min=0.1), metadata={"a": "int"})
    with pytest.raises(ValueError, match="metadata is 'a'; allowed: fields"):
        kept(path, tmp_path / "new", Filter("a", min=0.1), metadata="a")


def test_texts_that_are_compared_with_a_number_are_refused_before_work(image: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", image, [{"caption": "a cat", "best": "high"}] * 20 + [{"width": "a text"}])
    for stage in (
        Filter("caption", min=5),
        Filter("caption", equals=5),
        Deduplicate("bytes", keep="best", score="best"),
    ):
        with pytest.raises(StageError, match=r"is a text in the samples looked at, as '(a cat|high)'"):
            kept(path, tmp_path / "out", stage)
    assert not (tmp_path / "out").exists()
    assert kept(path, tmp_path / "out", Filter("width", min=5), Filter("caption", equals="a cat")) == [*range(20)]
    assert kept(path, tmp_path / "all", Filter("caption", min=5), metadata={"caption": "float64"}) == []
    for source, field in ((path, "image_id"), (path, "caption")):
        with pytest.raises(StageError, match=r"compares with a number, and .* is a text"):
            kept(source, tmp_path / "new", Filter(field, max=5), metadata={"caption": "string"})
    with pytest.raises(StageError, match="compares with a number, and 'caption' is a text"):
        cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[Filter("caption", min=5)], tars=False)
    assert not (tmp_path / "new").exists()


def test_types_of_a_schema(image: bytes, tmp_path: Path) -> None:
    big = 2**53 + 1
    rows = {
        "jpg": [image] * 300, "key": [str(n) for n in range(300)], "id": [None] * 290 + [big] * 10,
        "ratio": [None] * 299 + [0.5], "cost": pa.array([Decimal("1.5")] * 300), "ok": [None] * 299 + [True],
        "text": [None] * 299 + ["x"], "list": [[1]] * 300, "unsigned": pa.array([2**64 - 1] * 300, pa.uint64()),
    }  # fmt: skip
    for name, columns in {"a": rows, "b": {**rows, "id": [0.5] * 300}}.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=50)
    source = open_source(str(tmp_path / "a.parquet"))
    kinds = {
        "key": "string", "id": "int64", "ratio": "float64", "cost": "float64", "ok": "bool", "text": "string",
        "list": "string", "unsigned": "float64",
    }  # fmt: skip
    assert source.fields == kinds
    assert cd.Subset(source, slice(3)).fields == kinds
    assert ParquetSource([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]).fields == kinds | {"id": "float64"}
    assert cd.Mixture({"x": source, "y": source}).fields == kinds | {"source": "string"}
    assert cd.Mixture({"x": source, "y": MemorySource([image])}).fields is None
    assert kept(source, tmp_path / "id", Filter("id", equals=big)) == list(range(290, 300))
    assert read_rows(tmp_path / "id")[299]["id"] == big  # exact: as the schema has it
    for field, condition in {"ratio": {"min": 0.1}, "ok": {"equals": True}, "text": {"equals": "x"}}.items():
        assert kept(source, tmp_path / field, Filter(field, **condition)) == [299]  # type: ignore[arg-type]
    assert len(kept(source, tmp_path / "cost", Filter("cost", min=1.4), Filter("unsigned", min=1))) == 300
    with pytest.raises(StageError, match="'text' is a text in the samples looked at"):
        kept(source, tmp_path / "bad", Filter("text", min=1))


def test_numpy_and_other_numbers_in_memory(image: bytes, tmp_path: Path) -> None:
    values: list[Any] = [np.float32(0.5), np.int64(2), Decimal("1.5"), 3, np.bool_(True), float("nan"), float("inf")]
    source = MemorySource([image] * 7, [{"a": value} for value in values])
    assert kept(source, tmp_path / "out", Filter("a", min=1)) == [1, 2, 3, 6]
    assert [row["a"] for row in read_rows(tmp_path / "out")][:4] == [0.5, 2.0, 1.5, 3.0]
    assert field_types(source, []) == {"a": "string"}  # of several types
    assert field_types(source, [Filter("a", max=1)]) == {"a": "float64"}
    assert field_types(MemorySource([]), [Filter("a", max=1)]) == {}


def test_whole_numbers_read_as_such_in_reasons(image: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", image, [{"likes": 1234567}, {"likes": 3}, {"likes": 2.5}])
    assert kept(path, tmp_path / "out", Filter("likes", min=3, max=1000)) == [1]
    reasons = [row["reason"] for row in read_rows(tmp_path / "out")]
    assert reasons == ["likes 1234567 > 1000", None, "likes 2.5 < 3"]


def test_values_to_a_column() -> None:
    values = np.array([None, True, 3, 2.5, 3.0, "x", 2**63, np.nan], object)
    wanted: dict[str, tuple[list[Any], list[int]]] = {
        "bool": ([None, True, None, None, None, None, None, None], [2, 3, 4, 5, 6, 7]),
        "int64": ([None, None, 3, None, 3, None, None, None], [1, 3, 5, 6, 7]),
        "string": ([None, "true", "3", "2.5", "3.0", "x", str(2**63), "NaN"], []),
    }
    for kind, (column, odd) in wanted.items():
        found, misfits = to_column(values, kind)
        assert (found.tolist(), misfits.tolist()) == (column, odd)
    found, misfits = to_column(values, "float64")
    assert np.array_equal(found, [np.nan, np.nan, 3, 2.5, 3, np.nan, 2.0**63, np.nan], equal_nan=True)
    assert misfits.tolist() == [1, 5]
    total: Any = {"a": (1, "x")}
    add_misfits(total, {"a": [2, "y"], "b": [3, "z"]})
    assert total == {"a": (3, "x"), "b": (3, "z")}


def test_in_a_file(image: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('source = "a.tar"\nout = "out"\n[metadata]\nscore = "float64"\n')
    assert read_config(tmp_path / "a.toml")["metadata"] == {"score": "float64"}


def test_parts_of_one_run_have_one_type(image: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", image, [{"n": n} for n in range(200)] + [{"n": n / 2} for n in range(200)])
    assert kept(path, tmp_path / "whole", Filter("n", min=50)) == [*range(50, 200), *range(300, 400)]
    assert {str(pq.read_schema(file).field("n").type) for file in (tmp_path / "whole").glob("*.parquet")} == {"double"}


def test_values_of_mixed_types_are_compared_by_what_they_are(image: bytes, tmp_path: Path) -> None:
    values: list[Any] = [1, "a", None, 2, "1", [3]]
    path = write(tmp_path / "a.tar", image, [{"x": value} for value in values])
    assert kept(path, tmp_path / "out", Filter("x", equals=(1, "a"))) == [0, 1, 4]
    assert kept(path, tmp_path / "list", Filter("x", equals="[3]")) == [5]


def test_a_date_in_a_column_of_texts_stands_as_in_the_sidecar(image: bytes, tmp_path: Path) -> None:
    days = pa.array([0, 1], pa.timestamp("s"))
    pq.write_table(pa.table({"jpg": [image, image], "day": days}), tmp_path / "a.parquet")
    wanted = Filter("day", equals="1970-01-01T00:00:01")
    assert kept(str(tmp_path / "a.parquet"), tmp_path / "out", wanted) == [1]


def test_a_text_wanted_of_numbers_is_refused_before_work(image: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", image, [{"n": 5}] * 3)
    for stage in (Filter("n", equals="5"), Filter("width", equals="16")):
        with pytest.raises(StageError, match=r"compares with a text, and .* is a number"):
            cd.curate(path, tmp_path / "out", stages=[stage], **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_fields_that_no_stage_reads_are_columns_of_the_type_that_is_given(image: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", image, [{"score": 1, "rare": 2}] * 3)
    types = {"rare": "float64", "none": "string"}
    cd.curate(path, tmp_path / "out", stages=[Filter("score", min=0)], metadata=types, **OPTIONS)
    assert [(row["score"], row["rare"], row["none"]) for row in read_rows(tmp_path / "out")] == [(1.0, 2.0, None)] * 3

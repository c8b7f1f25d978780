"""One pass over the rows: what is picked depends on the rows and the seed alone; kinds are those that were counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curator_dali.outputs import RowFiles
from curator_dali.report.report import Report
from curator_dali.report.scan import OTHERS, Scan, find_kinds, priority, scan, thresholds
from curator_dali.stages import Filter
from tests.curation.helpers import read_rows
from tests.report.makers import plain


@pytest.fixture(scope="module")
def outputs(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same in one part and in many."""
    folder = tmp_path_factory.mktemp("outputs")
    for name, size in (("one", 60), ("many", 7)):
        plain(list(map(str, shards)), folder / name, part_size=size, html=False)
    return folder / "one", folder / "many"


def look(out: Path, seed: int = 0, **more: int) -> Scan:
    files = RowFiles(str(out))
    return scan(files, len(files), Report.load(out).dropped, seed=seed, **more)


def picked(found: Scan) -> dict[tuple[str, str, str], list[int]]:
    return {key: [row["index"] for row in rows] for key, rows in found.samples.items()}


def test_what_is_picked_does_not_depend_on_the_parts(outputs: tuple[Path, Path]) -> None:
    one, many = (picked(look(out, each=3, kept=5)) for out in outputs)
    assert one == many
    assert [len(rows) for rows in one.values()] == [2, 3, 5]
    assert picked(look(outputs[0], seed=1, each=3, kept=5)) != one


def test_kinds_are_those_of_the_counts(outputs: tuple[Path, Path]) -> None:
    report = Report.load(outputs[0])
    counted = Counter(key[1:] for key, rows in look(outputs[0], each=100).samples.items() for _ in rows if key[1])
    assert counted == {(stage, kind): n for stage, kinds in report.dropped.items() for kind, n in kinds.items()}


def test_scores_are_of_all_rows_that_have_one(outputs: tuple[Path, Path]) -> None:
    found = look(outputs[1])
    rows = read_rows(outputs[1])
    scores = found.scores
    assert set(scores) == {
        "width",
        "height",
        "sharpness",
        "brightness",
        "contrast",
        "entropy",
        "aspect_ratio",
        "pixels",
    }
    for name, histogram in scores.items():
        assert histogram.total == sum(row[name] is not None for row in rows) > 0


def test_a_stage_with_very_many_kinds_has_a_rest(tmp_path: Path, photos: dict[str, np.ndarray]) -> None:
    from curator_dali.curation import curate
    from curator_dali.sources import MemorySource
    from tests.report.makers import Every, jpegs

    out = tmp_path / "out"
    curate(MemorySource(jpegs(photos, 4) * 25), out, stages=[Every()], device="cpu", html=False)
    found = scan(RowFiles(str(out)), 100, {}, each=2)
    assert len(found.samples) == 65
    assert len(found.samples["dropped", "Every", OTHERS]) == 2


def test_priorities_are_spread_and_depend_on_the_seed() -> None:
    values = priority(np.arange(10_000), 0)
    assert len(np.unique(values)) == 10_000
    assert abs(values.astype(np.float64).mean() / 2**64 - 0.5) < 0.02
    assert not np.array_equal(values, priority(np.arange(10_000), 1))


def block(**columns: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(values, pa.string()) for name, values in columns.items()})


def test_kinds_are_those_that_were_written() -> None:
    column = [None, "anything", "truncated"]
    rows = block(status=["kept", "dropped", "failed"], stage=[None, "Own", "decode"], reason_kind=column)
    assert find_kinds(rows, {"Own": ["else"]}).to_pylist() == column


@pytest.mark.parametrize(
    ("status", "stage", "reason", "kind"),
    [
        ("dropped", "Own", "the colour is gone", "the colour is gone"),
        ("dropped", "Own", "colour red is grey", "colour is grey"),
        ("dropped", "Filter(tag)", "tag 2 fails isfinite()", "tag fails isfinite()"),
        ("dropped", "Filter(tag) #2", "tag 2 < 3", "tag < 3"),
        ("dropped", "Deduplicate", "duplicate of a (cosine 0.973)", "duplicate: cosine >= 0.95"),
        ("dropped", "Deduplicate", "duplicate of b in out (pHash distance 2)", "duplicate: pHash distance <= 6"),
        ("dropped", "Deduplicate", "duplicate of c (same bytes)", "duplicate: same bytes"),
        ("dropped", "Only", "dog", "cat"),
        ("dropped", "elsewhere", "so it is", "so it is"),
        ("failed", "decode", "cannot be decoded: odd", "cannot be decoded"),
        ("kept", None, None, None),
    ],
)
def test_kinds_of_earlier_outputs_are_guessed(
    status: str, stage: str | None, reason: str | None, kind: str | None
) -> None:
    counted = {
        "Own": ["too dark", "colour is grey"],
        "Filter(tag)": ["tag fails isfinite()", "tag is missing"],
        "Filter(tag) #2": ["tag < 3", "tag > 9"],
        "Deduplicate": ["duplicate: same bytes", "duplicate: pHash distance <= 6", "duplicate: cosine >= 0.95"],
        "Only": ["cat"],
    }
    assert find_kinds(block(status=[status], stage=[stage], reason=[reason]), counted).to_pylist() == [kind]


def test_thresholds_of_several_filters_are_the_strictest() -> None:
    filters = [Filter("a", min=1), Filter("a", min=2, max=9), Filter("b", equals="x")]
    assert thresholds({"stages": [stage.settings for stage in filters]}) == {"a": (2, 9), "b": (None, None)}

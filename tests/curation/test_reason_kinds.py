"""`reason_kind`: a column of every output, and what its counts are taken from."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.batch.batch import ImageBatch
from curator_dali.outputs import Manifest, RowFiles
from curator_dali.report import find_kinds
from curator_dali.stages import Deduplicate, Filter, GlobalSelector, Quality, Scored, ScoredRows, Selector, Stage
from curator_dali.stages.base import Reason
from tests import before, helpers
from tests.curation.helpers import FirstOfItsLabel, cheap_stages, read_rows

OPTIONS: dict[str, Any] = {"device": "cpu", "batch_size": 16, "part_size": 20, "html": False}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> list[str]:
    """40 crops, 20 of them again, and three files that are no images."""
    samples = helpers.photo_samples(photos, 40)
    bad = [(f"bad-{n}", {"jpg": data}) for n, data in enumerate((b"", b"<html>404</html>", samples[3][1]["jpg"][:900]))]
    again = [(f"again-{key}", members) for key, members in samples[:20]]
    folder = tmp_path_factory.mktemp("kinds")
    return [str(path) for path in helpers.write_shards(folder, [*samples, *again, *bad], per_shard=20)]


def count_kinds(out: Path) -> dict[str, Any]:
    """What the rows say, as a report counts it."""
    found: dict[str, Any] = {"dropped": {}, "failed": {}}
    rows = read_rows(out)
    for row in rows:
        assert (row["reason_kind"] is None) == (row["reason"] is None) == (row["status"] == "kept")
    counted = Counter((row["status"], row["stage"], row["reason_kind"]) for row in rows if row["status"] != "kept")
    for (status, stage, kind), count in counted.items():
        (found[status].setdefault(stage, {}) if status == "dropped" else found[status])[kind] = count
    return found


@dataclass(frozen=True)
class Plain(Selector):
    """A user's own: reasons are plain texts, and their own kinds."""

    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        index = batch.columns["index"]
        return np.array([f"index {n}" if n % 30 == 0 else None for n in index.tolist()], object)


@dataclass(frozen=True)
class Named(Plain):
    """A user's own, which says the kind of its reasons itself."""

    def kind(self, reason: str) -> str:
        return "a multiple of 30"


@dataclass(frozen=True)
class Undecodable(Plain):
    """A user's own, whose texts are no UTF-8."""

    called: str = "Undecodable"

    @property
    def name(self) -> str:
        return self.called

    def kind(self, reason: str) -> str:
        return "\ud800"


STAGES: list[list[Stage]] = [
    cheap_stages(),
    [Filter("width", min=110), FirstOfItsLabel(), Quality(), Filter("sharpness", min=300)],
    [Quality(), Filter("sharpness", min=300), Deduplicate(near=16)],
    [Plain()],
    [Named()],
    [Undecodable()],
]


@pytest.mark.parametrize("stages", STAGES)
def test_rows_records_and_reports_count_the_same(stages: list[Stage], shards: list[str], tmp_path: Path) -> None:
    report = cd.curate(shards, tmp_path / "out", stages=stages, **OPTIONS)
    assert RowFiles(str(tmp_path / "out")).schema.names[5:9] == ["status", "stage", "reason", "reason_kind"]
    found = count_kinds(tmp_path / "out")
    assert report.num_failed == 3
    assert found["failed"] == dict(report.failed)
    assert found["dropped"] == {stage: dict(kinds) for stage, kinds in report.dropped.items()}
    records = [part.info["dropped"] for part in Manifest.load(str(tmp_path / "out")).parts()]
    assert {kind for record in records for kinds in record.values() for kind in kinds} == {
        kind for kinds in found["dropped"].values() for kind in kinds
    }


def test_kinds_have_nothing_of_one_image(shards: list[str], tmp_path: Path) -> None:
    stages = [Quality(), Filter("sharpness", min=300), Deduplicate(False, near=16), Deduplicate("bytes")]
    cd.curate(shards, tmp_path / "out", stages=stages[:3], **OPTIONS)
    found = count_kinds(tmp_path / "out")
    assert set(found["dropped"]["Filter(sharpness)"]) == {"sharpness < 300"}
    assert set(found["dropped"]["Deduplicate"]) == {"duplicate: pHash distance <= 16"}
    cd.curate(shards, tmp_path / "bytes", stages=stages[3:], **OPTIONS)
    assert count_kinds(tmp_path / "bytes")["dropped"] == {"Deduplicate": {"duplicate: same bytes": 20}}
    report = cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[Filter("sharpness", max=500)], html=False)
    assert count_kinds(tmp_path / "new")["dropped"] == {"Filter(sharpness)": {"sharpness > 500": report.num_dropped}}
    assert count_kinds(tmp_path / "new")["failed"] == found["failed"]
    cd.curate(shards, tmp_path / "own", stages=[Named()], **OPTIONS)
    assert count_kinds(tmp_path / "own")["dropped"] == {"Named": {"a multiple of 30": 2}}


def test_samples_are_found_by_texts_that_are_no_utf8(shards: list[str], tmp_path: Path) -> None:
    report = cd.curate(shards, tmp_path / "out", stages=[Undecodable()], **OPTIONS)
    assert dict(report.dropped) == {"Undecodable": {"\\ud800": 2}}
    assert len(report.dropped("\\ud800").load(images=False)) == 2
    rows = pa.RecordBatch.from_pydict({"status": ["dropped"], "stage": ["Undecodable"], "reason": ["index 30"]})
    assert find_kinds(rows, {"Undecodable": ["\ud800"]}).to_pylist() == ["\\ud800"]  # as earlier versions counted
    named = cd.curate(shards, tmp_path / "named", stages=[Undecodable("caf\udce9")], **OPTIONS)
    assert len(named.dropped("caf\udce9").load(images=False)) == 2


def test_a_reason_is_a_text_that_travels() -> None:
    reason = Reason("width 3 < 5", "width < 5")
    assert (reason, reason.kind, str(reason)) == ("width 3 < 5", "width < 5", "width 3 < 5")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(reason, protocol))
        assert (type(again), again, again.kind) == (Reason, reason, reason.kind)
    assert Plain().kind("any text") == FirstOfItsLabel.__mro__[1].kind(FirstOfItsLabel(), "any text") == "any text"
    assert Plain().kind(reason) == "width < 5"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Outputs of an earlier version."""
    return before.unpack_before(tmp_path / "old")


def test_an_output_that_an_earlier_version_began_goes_on_as_it_was(old: Path) -> None:
    out = old / "outputs" / "default"
    report = before.curate(old, "default", out)
    assert all("reason_kind" not in row for row in read_rows(out))
    fresh = before.curate(old, "default", old / "fresh")
    assert (report.dropped, report.failed) == (fresh.dropped, fresh.failed)
    assert all("reason_kind" in row for row in read_rows(old / "fresh"))


def test_scores_of_an_earlier_version_are_decided_on_with_the_kinds_of_their_record(old: Path) -> None:
    out = old / "outputs" / "global"
    assert list((out / "_scored").glob("*.parquet"))
    report = before.curate(old, "global", out)
    fresh = before.curate(old, "global", old / "fresh")
    assert (report.dropped, report.failed) == (fresh.dropped, fresh.failed)
    assert count_kinds(out) == count_kinds(old / "fresh")


def test_kinds_of_scores_of_an_earlier_version_are_found_among_several(shards: list[str], tmp_path: Path) -> None:
    stages = [Filter("width", min=150, max=200), Quality(), Deduplicate(near=4)]
    fresh = cd.curate(shards, tmp_path / "fresh", stages=stages, **OPTIONS)
    assert set(fresh.dropped["Filter(width)"]) == {"width < 150", "width > 200"}
    stopped = patch("curator_dali.curation.run.decide", side_effect=RuntimeError("stop here"))
    with stopped, pytest.raises(RuntimeError, match="stop here"):
        cd.curate(shards, tmp_path / "out", stages=stages, **OPTIONS)
    for path in (tmp_path / "out" / "_scored").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["reason_kind"]), path)
    assert cd.curate(shards, tmp_path / "out", stages=stages, **OPTIONS).dropped == fresh.dropped


def test_a_finished_output_of_an_earlier_version_is_decided_anew(old: Path) -> None:
    out = old / "outputs" / "finished"
    assert "reason_kind" not in RowFiles(str(out)).schema.names
    cd.rethreshold(out, old / "new", stages=[Filter("brightness", min=0.25), Deduplicate(near=4)], html=False)
    found = count_kinds(old / "new")
    assert set(found["dropped"]) == {"Filter(brightness)", "Deduplicate"}
    assert set(found["dropped"]["Filter(brightness)"]) == {"brightness < 0.25"}
    assert found["failed"] == dict(cd.Report.load(out).failed)


@dataclass(frozen=True)
class FewestPixels(GlobalSelector):
    """A user's own, which decides by a column that it writes itself, and by one that an image may lack."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(["encoded", "width", "height"])

    @property
    def writes(self) -> Mapping[str, str]:
        return {"area": "int64", "bonus": "float64"}

    @property
    def needs(self) -> tuple[str, ...]:
        return ("area", "bonus")

    @property
    def optional(self) -> frozenset[str]:
        return frozenset(["bonus"])

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        batch.columns["area"] = batch.columns["width"].astype(np.int64) * batch.columns["height"]
        batch.columns["bonus"] = np.full(len(batch), np.nan)
        return batch

    def decide(self, scored: ScoredRows) -> tuple[NDArray[np.object_], Mapping[str, NDArray[Any]]]:
        area = scored.column("area")
        assert len(area) == len(scored) == len(scored.column("bonus"))
        return np.array([None if value == area.min() else "larger" for value in area.tolist()], object), {}


def test_a_stage_that_names_its_needs_decides_from_an_output(shards: list[str], tmp_path: Path) -> None:
    first = cd.curate(shards, tmp_path / "out", stages=[Filter("width", min=110), FewestPixels()], **OPTIONS)
    again = cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[FewestPixels()], html=False)
    assert again.kept == first.kept > 0
    assert again.dropped["FewestPixels"]["area is missing"] == sum(first.dropped["Filter(width)"].values())
    assert Scored is ScoredRows

"""`report.kept`, `report.dropped(...)` and `report.failed(...)`: numbers as before, and what they count."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.batch.batch import ImageBatch
from curator_dali.outputs import RowFiles
from curator_dali.report.report import Report
from curator_dali.report.scan import scan
from curator_dali.report.selection import Counts
from curator_dali.stages import Selector
from tests.curation.helpers import read_rows
from tests.report.makers import jpegs, plain
from tests.view.test_html import harmless


@pytest.fixture(scope="module")
def report(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return plain(f"{shards[0].parent}/*.tar", tmp_path_factory.mktemp("selection") / "out", part_size=25, html=False)


def even(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Drops every odd number."""
    return values.astype(int) % 2 == 0


@dataclass(frozen=True)
class Fives(Selector):
    """Drops all, for a reason with a number that its kind leaves out."""

    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        return np.array([f"{item.image_id} is not five" for item in batch.data], object)

    def kind(self, reason: str) -> str:
        return "not five"


def rows_of(report: Report, **wanted: object) -> list[dict[str, object]]:
    rows = read_rows(Path(report.out))
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_numbers_stay_numbers(report: Report) -> None:
    assert report.kept == len(rows_of(report, status="kept"))
    assert f"{report.kept:,}" == f"{int(report.kept)}"
    assert repr(report.dropped) == repr(dict(report.dropped))
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert len(again.dropped("sharpness")) == len(report.dropped("sharpness"))
    plain_json = json.loads(json.dumps(report.as_dict()))
    assert plain_json["kept"] == report.kept
    assert plain_json["dropped"] == report.dropped


def test_loaded_from_the_folder_it_is_the_same(report: Report) -> None:
    loaded = Report.load(report.out)
    assert (loaded.samples, loaded.kept, loaded.dropped, loaded.failed) == (
        report.samples, report.kept, report.dropped, report.failed
    )  # fmt: skip
    assert list(loaded.stages) == list(report.stages)
    assert (loaded.source, loaded.device, loaded.complete) == (report.source, "cpu", True)


@pytest.mark.parametrize("which", ["sharpness", "Filter(sharpness)", "sharpness < 300"])
def test_by_field_stage_or_reason(report: Report, which: str) -> None:
    chosen = report.dropped(which)
    expected = rows_of(report, stage="Filter(sharpness)")
    assert len(chosen) == len(expected) > 0
    assert sorted(chosen.to_table()["index"].to_pylist()) == [row["index"] for row in expected]
    assert chosen.to_pandas()["reason"].tolist() == [row["reason"] for row in expected]
    assert "embedding" not in chosen.to_table().column_names


def test_what_there_is_not_is_named(report: Report) -> None:
    with pytest.raises(KeyError, match=r"dropped by 'sharpnes'; there are Filter\(sharpness\), .*sharpness < 300"):
        report.dropped("sharpnes")
    with pytest.raises(KeyError, match="there are no reasons"):
        report.failed("truncated")
    with pytest.raises(KeyError, match="no column 'beauty'; it has image_id"):
        report.kept.show(sort_by="beauty")


def test_a_sheet_in_the_order_of_a_score(report: Report) -> None:
    sheet = report.dropped("sharpness").show(4, sort_by="sharpness")
    expected = sorted(rows_of(report, stage="Filter(sharpness)"), key=lambda row: float(str(row["sharpness"])))
    text = sheet._repr_html_()
    harmless(text)
    assert re.findall(r'class="cd-id" title="([^"]*)"', text) == [row["image_id"] for row in expected[:4]]
    assert text.count("<img") == 4
    assert str(expected[0]["reason"]).replace("<", "&lt;") in text
    assert "not shown" in text
    first = expected[0]
    assert repr(sheet).splitlines()[1] == "  {image_id}  {width} × {height} · {reason}".format(**first)
    assert "<img" in report.kept()._repr_html_()


def test_a_batch_of_them_has_pixels_columns_and_metadata(report: Report) -> None:
    batch = report.kept().load(5, sort_by="brightness", descending=True, device="cpu")
    expected = sorted(rows_of(report, status="kept"), key=lambda row: -float(str(row["brightness"])))[:5]
    assert [item.image_id for item in batch] == [row["image_id"] for row in expected]
    assert batch.columns["sharpness"].tolist() == [row["sharpness"] for row in expected]
    assert [image.shape[:2] for image in batch.images] == [(row["height"], row["width"]) for row in expected]
    assert all("caption" in item.metadata for item in batch)
    bare = report.dropped().load(images=False)
    assert (len(bare), bare.images) == (report.num_dropped, None)
    assert bare.validate()


def test_a_choice_by_chance_is_the_same_every_time(report: Report) -> None:
    first, again, other = (
        report.kept().load(6, images=False, seed=seed).columns["index"].tolist() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first == sorted(first)


def test_reasons_of_stages_that_cannot_be_made_again(photos: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = cd.MemorySource({f"{n}": data for n, data in enumerate(jpegs(photos, 12))})
    stages = [cd.Quality(), cd.Filter("sharpness", where=even), cd.Filter("sharpness", min=300), Fives()]
    report = cd.curate(source, tmp_path / "out", stages=stages, device="cpu", html=False)
    assert set(report.dropped) == {"Filter(sharpness)", "Filter(sharpness) #2", "Fives"}
    for stage, kinds in report.dropped.items():
        for kind, count in kinds.items():
            chosen = report.dropped(kind)
            assert len(chosen) == count
            assert chosen.to_table()["stage"].to_pylist() == [stage] * count


def test_failed_ones_say_why(photos: dict[str, np.ndarray], tmp_path: Path) -> None:
    images = {"good": jpegs(photos, 1)[0], "short": jpegs(photos, 1)[0][:-200], "page": b"<html>"}
    report = plain(cd.MemorySource(images), tmp_path / "out", html=False)
    assert len(report.failed()) == 2
    assert report.failed("truncated").to_table()["image_id"].to_pylist() == ["short"]
    assert "not an image" in report.failed.show()._repr_html_()
    # the data set was an object: it has to be given
    assert "Without pictures" in report.dropped.show()._repr_html_()
    assert "<img" in report.dropped(source=cd.MemorySource(images)).show()._repr_html_()


def test_of_nothing(tmp_path: Path) -> None:
    report = plain(cd.MemorySource([]), tmp_path / "out", html=False)
    for chosen in (report.kept(), report.dropped(), report.failed()):
        assert (len(chosen), len(chosen.load()), "0 images" in repr(chosen.show())) == (0, 0, True)


def test_embeddings_come_along(shards: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    stages = [cd.Embed("efficientnet-lite0"), cd.Filter("width", min=110)]
    report = cd.curate(
        cd.Subset(cd.open_source(str(shards[0])), slice(6)),
        tmp_path / "out",
        stages=stages,
        device="cpu",
        embeddings=True,
    )
    batch = report.kept().load(images=False)
    assert batch.embeddings is not None
    assert batch.embeddings.shape == (report.kept, 1280)
    assert np.allclose(np.linalg.norm(batch.embeddings, axis=1), 1, atol=1e-3)


def test_kinds_come_from_their_column(report: Report, tmp_path: Path) -> None:
    """The text of a reason is not looked at."""
    out = tmp_path / "out"
    shutil.copytree(report.out, out)
    for file in out.glob("*.parquet"):
        table = pq.read_table(file)
        stages = table["stage"].to_pylist()
        kinds = pa.array([None if stage is None else f"by {stage}" for stage in stages], pa.string())
        if "reason_kind" in table.column_names:
            table = table.drop_columns("reason_kind")
        table = table.add_column(table.column_names.index("reason") + 1, "reason_kind", kinds)
        table = table.set_column(table.column_names.index("reason"), "reason", pa.array(["x"] * len(stages)))
        pq.write_table(table, file)
    counts = Counts({"Filter(sharpness)": {"by Filter(sharpness)": 3}}).of(str(out), "dropped")
    expected = [row["index"] for row in rows_of(report, stage="Filter(sharpness)")]
    assert sorted(counts("by Filter(sharpness)").to_table()["index"].to_pylist()) == expected
    files = RowFiles(str(out))
    found = scan(files, len(files), {})
    assert {key[2] for key in found.samples} == {"", "by Filter(sharpness)", "by Filter(brightness)"}
    assert "reason_kind" not in {*found.scores, *found.classes}

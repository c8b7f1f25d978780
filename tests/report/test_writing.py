"""`report.html`: what is on it, without which it is made as well, and that nothing on it is anything but text."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.curation import curate
from curator_dali.errors import OutputError, SourceError
from curator_dali.report.page import write_report
from curator_dali.sources import MemorySource
from curator_dali.stages import Filter
from tests.helpers import encode
from tests.report.makers import Every, jpegs, plain
from tests.view.test_html import Reader, harmless


@pytest.fixture(scope="module")
def out(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain output. Not to be written to."""
    folder = tmp_path_factory.mktemp("plain")
    plain(f"{shards[0].parent}/*.tar", folder / "out")
    return folder / "out"


def read(out: Path) -> tuple[str, Reader]:
    text = (out / "report.html").read_text("utf-8")
    return text, harmless(text)


def words(found: Reader) -> str:
    return " ".join(" ".join(found.texts).split())


def test_every_curation_leaves_one_and_it_says_what_happened(out: Path) -> None:
    text, found = read(out)
    report = cd.Report.load(out)
    seen = words(found)
    assert len(text.encode()) < 2_000_000
    assert f"samples in {report.samples} kept {report.kept} " in seen
    assert f"dropped {report.num_dropped} " in seen
    for stage, kinds in report.dropped.items():
        for kind, count in kinds.items():
            assert f"{stage} {kind} −{count}" in seen
    assert {name for name in report.stages if name not in seen} == set()
    assert "MB" not in seen
    assert found.tags[0] == ("html", {"lang": "en"})


def test_headings_anchors_and_alternative_texts(out: Path) -> None:
    text, found = read(out)
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    links = [str(attributes["href"])[1:] for tag, attributes in found.tags if tag == "a"]
    assert links == [attributes["id"] for tag, attributes in found.tags if tag == "section"]
    assert {"flow", "scores", "kept", "dropped", "throughput", "lineage"} == set(links)
    for tag, attributes in found.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    assert "<script" not in text


def test_thresholds_are_drawn(out: Path) -> None:
    text, _ = read(out)
    charts = dict(re.findall(r"(?s)<figure><h3>(\w+)</h3>(.*?)</figure>", text))
    assert list(charts)[:2] == ["sharpness", "brightness"]
    for name, chart in charts.items():
        assert chart.count('class="cd-t"') == (name in ("sharpness", "brightness"))
        assert ("cd-o" in chart) == (name in ("sharpness", "brightness"))
    assert "kept: at least 300" in charts["sharpness"]


def test_it_is_the_same_every_time(out: Path, tmp_path: Path) -> None:
    first, second = (Path(write_report(out, to=tmp_path / name, device="cpu")) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().count("<img") == (out / "report.html").read_text().count("<img") > 20


def test_markup_is_text_wherever_it_comes_from(hostile: Path) -> None:
    _, found = read(hostile)
    report = cd.Report.load(hostile)
    seen = words(found)
    assert (report.num_failed, report.num_dropped > 3) == (2, True)
    assert "3 groups of 6 images" in seen
    assert "document.title='hit'" in seen
    marks = re.findall(r'class="cd-mark cd-(\w+)"', (hostile / "report.html").read_text())
    assert marks == ["kept", "dropped"] * 3


def test_no_pictures_of_a_data_set_that_is_gone(shards: list[Path], tmp_path: Path) -> None:
    moved = Path(shutil.copy(shards[0], tmp_path / "a.tar"))
    out = tmp_path / "out"
    plain(str(moved), out)
    assert "<img" in (out / "report.html").read_text()
    moved.rename(tmp_path / "b.tar")
    write_report(out, device="cpu")
    text, found = read(out)
    assert "<img" not in text
    assert "Without pictures: the data set of" in words(found)
    assert "no picture" in words(found)
    with pytest.raises(SourceError, match="is not the data set"):
        write_report(out, source=str(shards[1]), device="cpu")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "b.tar", tmp_path / "elsewhere" / "a.tar")
    write_report(out, source=str(tmp_path / "elsewhere" / "a.tar"), device="cpu")
    assert "<img" in (out / "report.html").read_text()


def test_an_object_can_be_given_as_the_data_set(hostile: Path, photos: dict[str, np.ndarray], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(hostile, copy)
    write_report(copy)
    assert "<img" not in (copy / "report.html").read_text()
    source, out = MemorySource(jpegs(photos, 3)), tmp_path / "memory"
    curate(source, out, stages=[], device="cpu", html=False)
    write_report(out, source=source, device="cpu")
    assert (out / "report.html").read_text().count("<img") == 3
    assert source.read(np.arange(3)).errors == {}  # still open


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one(count: int, photos: dict[str, np.ndarray], tmp_path: Path) -> None:
    plain(MemorySource(jpegs(photos, count)), tmp_path / "out")
    text, found = read(tmp_path / "out")
    assert f"samples in {count} " in words(found)
    assert text.count("<img") == count


def test_everything_dropped_for_a_hundred_reasons(photos: dict[str, np.ndarray], tmp_path: Path) -> None:
    out = tmp_path / "out"
    curate(MemorySource(jpegs(photos, 10) * 20), out, stages=[Every()], device="cpu")
    text, found = read(out)
    seen = words(found)
    assert "88 other reasons" in seen
    assert re.search(r"\d+ more reasons not shown", seen)
    assert 24 <= text.count("<img") <= 24 * 12
    assert 'id="kept"' not in text
    assert len(text.encode()) < 2_000_000


def test_pictures_that_hardly_compress_stay_within_two_megabytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [encode(random.integers(0, 255, (168, 400, 3), np.uint8), quality=60) for _ in range(4)]
    curate(MemorySource(images * 80), tmp_path / "out", stages=[Every(24)], device="cpu")
    assert (tmp_path / "out" / "report.html").read_text().count("<img") == 24 * 12
    assert (tmp_path / "out" / "report.html").stat().st_size < 2_000_000


def test_it_can_be_left_out_and_is_not_made_again_for_nothing(shards: list[Path], tmp_path: Path) -> None:
    plain(str(shards[0]), tmp_path / "without", html=False)
    assert not (tmp_path / "without" / "report.html").exists()
    plain(str(shards[0]), tmp_path / "with")
    page = tmp_path / "with" / "report.html"
    page.write_text("mine")
    plain(str(shards[0]), tmp_path / "with")
    assert page.read_text() == "mine"
    page.unlink()
    plain(str(shards[0]), tmp_path / "with")
    assert page.exists()


def test_a_report_that_cannot_be_written_fails_no_curation(
    shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if Pillow was not installed
    report = plain(str(shards[0]), tmp_path / "out")
    assert report.complete
    assert "report.html could not be written: " in caplog.text
    assert not (tmp_path / "out" / "report.html").exists()


def test_what_is_no_output_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no output of a curation"):
        write_report(tmp_path)


def test_an_unfinished_output_says_so(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain(str(shards[0]), out, part_size=10)
    (out / "_manifest" / "parts" / "000000000010-000000000020.json").unlink()
    (out / "report.json").unlink()  # a killed run has none
    write_report(out, device="cpu")
    seen = words(read(out)[1])
    assert "Not complete: 10 samples of 20 are missing." in seen
    assert "samples in 10 " in seen


def test_rethreshold_leaves_one_too(out: Path, tmp_path: Path) -> None:
    report = cd.rethreshold(out, tmp_path / "new", stages=[Filter("sharpness", min=600)])
    seen = words(read(tmp_path / "new")[1])
    assert f"Filter(sharpness) sharpness < 600 −{report.num_dropped}" in seen
    assert "<img" in (tmp_path / "new" / "report.html").read_text()


def test_command_line(shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["curate", str(shards[0]), str(tmp_path / "out"), "--quality", "--device", "cpu", "--no-html"]
    assert main(arguments) == 0
    assert not (tmp_path / "out" / "report.html").exists()
    assert main(["report", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'out' / 'report.html'}\n")
    assert main(["report", str(tmp_path / "out"), "-o", str(tmp_path / "x.html"), "--device", "cpu"]) == 0
    assert (tmp_path / "x.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()
    assert main(["report", str(tmp_path), "--device", "cpu"]) == 2
    assert "no output of a curation" in capsys.readouterr().err

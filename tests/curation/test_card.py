"""The dataset card of an output, and Hugging Face's `datasets` reading by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.report.page import CARD
from curator_dali.sources import MemorySource
from curator_dali.stages import Deduplicate, Filter, Quality
from tests import helpers
from tests.curation.helpers import content, read_members, read_rows

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load_dataset` of a folder, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    return lambda *args, **options: datasets.load_dataset(*args, cache_dir=str(tmp_path / "cache"), **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    helpers.write_shards(folder, helpers.photo_samples(photos, 30), per_shard=10)
    return folder


def run(source: Any, out: Any, **options: Any) -> cd.Report:
    stages = [Quality(), Filter("width", min=60), Deduplicate(near=4)]
    return cd.curate(source, out, stages=stages, device="cpu", part_size=10, html=False, **options)


def configs(text: str) -> list[dict[str, Any]]:
    head = text.split("---\n")[1]
    found: list[dict[str, Any]] = yaml.safe_load(head)["configs"]
    return found


def test_load_dataset_reads_the_tars_of_an_output(shards: Path, tmp_path: Path, load: Load) -> None:
    out = tmp_path / "out"
    report = run(str(shards), out)
    assert 0 < int(report.kept) <= 30
    loaded = load(str(out))["train"]
    members = read_members(out)
    assert len(loaded) == int(report.kept) == len(members)
    for row in loaded:
        ((_, found),) = ((name, found) for name, found in members.items() if name[1] == row["__key__"])
        assert row["curation.json"] == json.loads(found["curation.json"])
        assert row["jpg"].size == (row["curation.json"]["width"], row["curation.json"]["height"])
    rows = load("parquet", data_files=str(out / "*.parquet"))["train"]
    assert [row["phash"] for row in rows] == [row["phash"] for row in read_rows(out)]
    again = tmp_path / "again"
    cd.rethreshold(out, again, stages=[Filter("width", min=120), Deduplicate(near=4)], html=False)
    assert (again / CARD).read_bytes() == (out / CARD).read_bytes()
    assert len(load(str(again))["train"]) == len(read_members(again))


def test_load_dataset_reads_the_rows_where_there_are_no_tars(shards: Path, tmp_path: Path, load: Load) -> None:
    run(str(shards), tmp_path / "no-tars", tars=False)
    cd.curate(str(shards), tmp_path / "nothing", stages=[Filter("width", min=10_000)], device="cpu")  # nothing is kept
    for name in ("no-tars", "nothing"):
        loaded = load(str(tmp_path / name))["train"]
        assert [row["image_id"] for row in loaded] == [row["image_id"] for row in read_rows(tmp_path / name)]


def test_what_is_not_known_of_the_first_images_does_not_stop_load_dataset(
    tmp_path: Path, photos: dict[str, NDArray[np.uint8]], load: Load
) -> None:
    blank = [helpers.encode(np.full((50 + n, 60, 3), 255, np.uint8)) for n in range(7)]
    found = [helpers.encode(photos[name][:90, :120]) for name in ("coffee", "china")]
    run(blank + found, tmp_path / "out")
    members = [json.loads(found["curation.json"]) for found in read_members(tmp_path / "out").values()]
    assert ["phash" in about for about in members] == [not about["phash_blank"] for about in members]
    assert None not in {value for about in members for value in about.values()}
    assert len(load(str(tmp_path / "out"))["train"]) == len(members)


def test_load_dataset_reads_what_only_some_samples_have(
    tmp_path: Path, photos: dict[str, NDArray[np.uint8]], load: Load
) -> None:
    """Another format than the first images', captions of every second one, and fields that are late or of two types."""
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(16):
        pixels = photos["coffee"][n * 4 : n * 4 + 90, :120]
        (folder / f"{n:02}.{'jpg' if n < 8 else 'png'}").write_bytes(helpers.encode(pixels, "JPEG" if n < 8 else "PNG"))
        about = {"score": n if n < 8 else str(n)} if n else {"score": None, "first": True}
        (folder / f"{n:02}.json").write_text(json.dumps(about))
        if n % 2:
            (folder / f"{n:02}.txt").write_text(f"caption {n}")
    for tars in (True, False):
        cd.curate(folder, tmp_path / f"{tars}", stages=[Quality()], device="cpu", part_size=4, html=False, tars=tars)
    cd.rethreshold(tmp_path / "True", tmp_path / "new", stages=[Filter("width", min=1)], html=False)
    for out in ("True", "new"):
        loaded = load(str(tmp_path / out))["train"]
        assert loaded.column_names == ["jpg", "png", "json", "txt", "curation.json", "__key__", "__url__"]
        for n, row in enumerate(loaded):
            assert [row["jpg"] is None, row["png"] is None] == [n >= 8, n < 8]
            assert row["txt"] == (f"caption {n}" if n % 2 else None)
            assert row["json"]["score"] == ((n if n < 8 else str(n)) if n else None)
            assert row["curation.json"]["image_id"] == f"{n:02}"
        assert len(list(load(str(tmp_path / out), streaming=True)["train"])) == 16
    assert len(load(str(tmp_path / "False"))["train"]) == 16


@pytest.mark.parametrize(
    ("other", "told"), [("txt", True), ("png", True), ("npy", False), ("jpg.gz", False), ("", False)]
)
def test_a_card_tells_types_where_samples_differ_and_all_are_known(other: str, told: bool, tmp_path: Path) -> None:
    members = [(f"{n}.jpg", helpers.encode(np.full((60, 60 + n, 3), 9, np.uint8))) for n in range(3)]
    members += [(f"2.{other}", b"data")] if other else []
    out = tmp_path / "out"
    run(str(helpers.write_tar(tmp_path / "a.tar", members)), out)
    written = (out / CARD).read_bytes()
    assert ("dataset_info" in written.decode()) is told
    for own in (written, written.replace(b"train", b"test"), written + b"More of mine."):
        (out / CARD).write_bytes(own)
        run(str(tmp_path / "a.tar"), out)
        assert (out / CARD).read_bytes() == own


CARD_OF_EARLIER_VERSIONS = """\
---
configs:
- config_name: samples
  data_files:
  - split: train
    path: "*.tar"
---

# An output of curator_dali

`load_dataset("parquet", data_files="PATH/*.parquet")` reads a row for every sample: what became of it, why, and its
scores. `load_dataset("PATH")` reads the samples that were kept, from the tars.
"""


def test_a_card_of_earlier_versions_is_known(tmp_path: Path) -> None:
    """It is brought up to date, as it is nobody's own."""
    members = [(f"{n}.jpg", helpers.encode(np.full((60, 60 + n, 3), 9, np.uint8))) for n in range(3)]
    out = tmp_path / "out"
    run(str(helpers.write_tar(tmp_path / "a.tar", members)), out)
    assert (out / CARD).read_text() == CARD_OF_EARLIER_VERSIONS
    helpers.write_tar(tmp_path / "b.tar", [*members, ("2.txt", b"a caption")])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / CARD).write_text(CARD_OF_EARLIER_VERSIONS)
    run(str(tmp_path / "b.tar"), tmp_path / "new")
    assert "dataset_info" in (tmp_path / "new" / CARD).read_text()


def test_a_card_of_the_users_own_stays(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for own in (b"# Mine", None, b""):
        out.mkdir(exist_ok=True)
        if own is not None:
            (out / CARD).write_bytes(own)
            run(str(shards), out)
            assert (out / CARD).read_bytes() == own
        else:
            (out / CARD).unlink()
            run(str(shards), out)
            ours = (out / CARD).read_bytes()
            (out / CARD).write_bytes(ours + b"More of mine.")
            run(str(shards), out)
            assert (out / CARD).read_bytes() == ours + b"More of mine."
    (tmp_path / "folder" / CARD).mkdir(parents=True)
    assert run(str(shards), tmp_path / "folder").complete


def test_an_output_is_read_and_gone_on_with_as_ever_beside_its_card(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    report = run(str(shards), out)
    before = content(out)
    caplog.clear()
    with cd.ImageLoader(str(out), device="cpu") as loader:
        assert sum(map(len, loader)) == int(report.kept)
    assert not caplog.records
    run(str(shards), out)
    assert content(out) == before
    cd.write_index(out)


def test_a_remote_output_has_a_card(shards: Path) -> None:
    fs = fsspec.filesystem("memory")
    run(str(shards), "memory://card/out")
    (config,) = configs(fs.cat_file("/card/out/README.md").decode())
    assert config == {"config_name": "samples", "data_files": [{"split": "train", "path": "*.tar"}]}
    fs.rm("/card", recursive=True)


def test_an_output_of_nothing_has_no_card(tmp_path: Path) -> None:
    run(MemorySource({}), tmp_path / "out")
    assert not (tmp_path / "out" / CARD).exists()

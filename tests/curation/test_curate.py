"""`curate`: what is kept is kept as it was, and every sample is accounted for exactly once."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import curator_dali as cd
from curator_dali.batch.batch import ImageBatch
from curator_dali.curation import Curation
from curator_dali.errors import StageError
from curator_dali.outputs import Manifest
from curator_dali.sources import MemorySource, open_source
from curator_dali.stages import Embed, Filter, Quality, Stage
from tests import formats, helpers
from tests.account import account
from tests.curation.helpers import Size, Spy, cheap_stages, content, read_members, read_rows, samples_of
from tests.stages.helpers import BlindEncoder, ColourEncoder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, photo: Image.Image) -> dict[str, Any]:
    """Source -> what to open: every format and every defect, in tars and files; keys that repeat and mislead."""
    root = tmp_path_factory.mktemp("hostile")
    good, bad = formats.good_files(photo), formats.bad_files(photo)
    everything = [*good.items(), *((name, data) for name, (data, _) in bad.items())]
    members = []
    for number, (name, data) in enumerate(everything):
        key = f"{number % 40:03d}"  # repeats from the 40th on: in another shard
        members.append((f"{key}.jpg", data))
        members.append((f"{key}.json", json.dumps({"name": name, "number": number}).encode()))
        if number % 3 == 0:
            members.append((f"{key}.left.txt", b"any other member"))
    members += [("no-image.txt", b"alone"), ("deep/er/x.jpg", good["png"]), ("same.jpg", good["bmp"])]
    helpers.write_tar(root / "tars" / "0.tar", members[:80])
    helpers.write_tar(root / "tars" / "1.tar", [*members[80:], ("same.png", good["png"])])
    folder = root / "folder"
    for name, data in {
        "a.jpg": good["jpeg 4:2:0"], "a.png": good["png"], "a_jpg.bmp": good["bmp"], "my.holiday.jpg": good["png"],
        "my.cat.jpg": good["bmp"], "sub/a.jpg": bad["text"][0], "sub/b.jpg": b"", "sub/ä ö.webp": good["webp"],
    }.items():  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "a.txt").write_text("beside")
    memory = {name: data for name, (data, _) in bad.items()} | {"good": good["gif"], "last": good["tiff"]}
    return {"tars": str(root / "tars"), "folder": str(folder), "memory": MemorySource(memory)}


@pytest.mark.parametrize("kind", ["tars", "folder", "memory"])
@pytest.mark.parametrize("part_size", [16, 1000])
def test_every_sample_is_kept_dropped_or_failed_and_kept_bytes_are_the_inputs(
    hostile: dict[str, Any], kind: str, part_size: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stages = [Filter("height", min=40), Quality(), Filter("contrast", min=0.05)]
    report = cd.curate(hostile[kind], out, stages=stages, device="cpu", batch_size=8, part_size=part_size)
    source = open_source(hostile[kind])
    rows = read_rows(out)
    assert [row["index"] for row in rows] == list(range(len(source)))  # each once, in the source's order
    counts = Counter(row["status"] for row in rows)
    assert set(counts) <= {"kept", "dropped", "failed"}
    assert (report.samples, report.kept) == (len(source), counts["kept"])
    assert (report.num_dropped, report.num_failed) == (counts["dropped"], counts["failed"])
    assert counts["kept"] > 0 < counts["failed"]

    with cd.ImageLoader(hostile[kind], device="cpu", batch_size=8) as loader:
        decoded = {item.image_path for batch in loader for item in batch.data}
        errors = {error.index: error.reason for error in loader.errors}
    kept = read_members(out)
    by_status: dict[str, list[dict[str, Any]]] = {}
    for row, (index, path, members) in zip(rows, samples_of(source), strict=True):
        assert row["image_path"] == path
        by_status.setdefault(row["status"], []).append(row)
        if row["status"] == "failed":
            assert row["reason"] == errors.pop(index)
            assert row["stage"] == "decode"
            assert row["sharpness"] is None
            continue
        assert path in decoded
        assert row["width"] > 0
        if row["status"] == "kept":
            assert row["stage"] is row["reason"] is None
            written = kept.pop((row["tar"], row["key"]))
            about = json.loads(written.pop("curation.json"))
            assert written == members
            assert about["image_id"] == row["image_id"]
            assert about["sharpness"] == pytest.approx(row["sharpness"])
        else:
            assert row["tar"] is None
            assert row["stage"] in ("Filter(height)", "Filter(contrast)")
            assert (row["sharpness"] is None) == (row["stage"] == "Filter(height)")  # what was known by then
    assert not kept  # and nothing else was written
    account(str(out), tars=True).check()
    assert not errors
    assert len(open_source(str(out / "*.tar"))) == counts["kept"]  # as any reader of tars sees it


def test_scores_are_those_of_the_stages_on_the_loaders_images(shards: list[Path], tmp_path: Path) -> None:
    encoder = ColourEncoder()
    stages = [Embed(encoder), Quality()]
    cd.curate(str(shards[0].parent), tmp_path / "out", stages=stages, device="cpu", batch_size=7, embeddings=True)
    rows = read_rows(tmp_path / "out")
    views = (encoder.view, Quality.VIEW)
    with cd.ImageLoader(str(shards[0].parent), device="cpu", transforms=None, views=views, batch_size=64) as loader:
        (batch,) = loader
    for stage in stages:
        batch = stage(batch)
    assert [row["image_id"] for row in rows] == [item.image_id for item in batch.data]
    for name in Quality().writes:
        assert [row[name] for row in rows] == batch.columns[name].tolist()
    assert np.array([row["embedding"] for row in rows], np.float32) == pytest.approx(batch.embeddings, abs=1e-6)


def test_embeddings_of_dropped_images_are_kept_from_the_last_model_on(shards: list[Path], tmp_path: Path) -> None:
    stages = [Filter("width", min=110), Embed(ColourEncoder()), Quality(), Filter("sharpness", min=300)]
    options: dict[str, Any] = {"device": "cpu", "batch_size": 16, "embeddings": "float16", "tars": False}
    report = cd.curate(str(shards[0]), tmp_path / "out", stages=stages, **options)
    rows = read_rows(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))
    by_stage = {row["stage"] for row in rows}
    assert by_stage == {None, "Filter(width)", "Filter(sharpness)"}
    for row in rows:
        assert (row["embedding"] is None) == (row["stage"] == "Filter(width)")
        assert row["embedding"] is None or np.linalg.norm(np.array(row["embedding"], float)) == pytest.approx(
            1, abs=1e-2
        )
    assert report.dropped["Filter(width)"] == {"width < 110": sum(row["stage"] == "Filter(width)" for row in rows)}


def test_embeddings_of_an_earlier_model_are_not_taken_for_the_last_ones(shards: list[Path], tmp_path: Path) -> None:
    stages = [Embed(ColourEncoder()), Quality(), Filter("sharpness", min=300), Embed(BlindEncoder())]
    cd.curate(str(shards[0]), tmp_path / "out", stages=stages, device="cpu", embeddings=True)
    rows = read_rows(tmp_path / "out")
    assert {row["status"] for row in rows} == {"kept", "dropped"}
    for row in rows:
        assert (row["embedding"] is None) == (row["status"] == "dropped")
        assert row["embedding"] is None or len(row["embedding"]) == BlindEncoder.dim


@pytest.mark.parametrize("tars", [True, False])
def test_a_stage_may_look_at_the_original_bytes(shards: list[Path], tmp_path: Path, tars: bool) -> None:
    cd.curate(str(shards[0]), tmp_path / "out", stages=[Size(), Filter("bytes", min=9000)], device="cpu", tars=tars)
    sizes = [len(members["jpg"]) for _, _, members in samples_of(open_source(str(shards[0])))]
    rows = read_rows(tmp_path / "out")
    assert [row["bytes"] for row in rows] == sizes
    assert len(read_members(tmp_path / "out")) == (sum(size >= 9000 for size in sizes) if tars else 0)


def test_columns_of_the_metadata(photo: Image.Image, tmp_path: Path) -> None:
    data = formats.save(photo.resize((64, 48)), "JPEG")
    likes: list[Any] = [3, None, 2.5, "many", True, 10**30]
    source = MemorySource([data] * 6, [{"likes": value, "tags": ["a", number]} for number, value in enumerate(likes)])
    stages = [Filter("tags", where=_names_no_5), Filter("likes", equals=["3", "true"])]
    cd.curate(source, tmp_path / "out", stages=stages, device="cpu")
    rows = read_rows(tmp_path / "out")
    assert [row["likes"] for row in rows] == ["3", None, "2.5", "many", "true", str(10**30)]  # of several types: texts
    assert rows[2]["tags"] == '["a", 2]'
    assert [row["status"] for row in rows] == ["kept", "dropped", "dropped", "dropped", "kept", "dropped"]
    assert rows[1]["reason"] == "likes is missing"
    assert rows[5]["reason"] == "tags '[\"a\", 5]' fails _names_no_5()"


def _names_no_5(values: np.ndarray) -> np.ndarray:
    return np.array(["5" not in value for value in values], bool)


def test_a_field_keeps_its_type(shards: list[Path], tmp_path: Path) -> None:
    stages = [Filter("number", min=5), Filter("caption", where=_any)]
    report = cd.curate(str(shards[0]), tmp_path / "out", stages=stages, device="cpu")
    rows = read_rows(tmp_path / "out")
    assert [row["number"] for row in rows] == list(range(20))
    assert rows[6]["caption"].startswith("a crop of")
    assert rows[4]["caption"] is not None  # read for the batch, before anybody was dropped
    assert report.dropped == {"Filter(number)": {"number < 5": 5}}


def _any(values: np.ndarray) -> np.ndarray:
    return np.ones(len(values), bool)


def test_without_stages_what_decodes_is_kept(hostile: dict[str, Any], tmp_path: Path) -> None:
    report = cd.curate(hostile["folder"], tmp_path / "out", stages=[], device="cpu")
    assert (report.samples, report.kept, report.num_failed) == (8, 6, 2)


def test_no_samples_at_all(tmp_path: Path) -> None:
    for _ in range(2):
        report = cd.curate(MemorySource([]), tmp_path / "out", stages=[Quality()], device="cpu")
        assert (report.samples, report.kept, report.complete) == (0, 0, True)
    assert str(report)


def test_one_sample_and_only_bad_ones(photo: Image.Image, tmp_path: Path) -> None:
    one = cd.curate([formats.save(photo, "PNG")], tmp_path / "one", stages=[Quality()], device="cpu")
    assert (one.samples, one.kept) == (1, 1)
    bad = cd.curate([b"", b"text"] * 20, tmp_path / "bad", stages=[Quality()], device="cpu", batch_size=8, part_size=10)
    assert (bad.samples, bad.num_failed, bad.parts) == (40, 40, 4)
    assert bad.failed == {"the image has no bytes": 20, "not an image": 20}
    with pytest.raises(cd.TooManyErrors, match="max_error_rate"):
        cd.curate([b""] * 200, tmp_path / "end", stages=[], device="cpu", max_error_rate=0.5)


def test_shards_by_count_and_by_size(shards: list[Path], tmp_path: Path) -> None:
    cd.curate(str(shards[0]), tmp_path / "count", stages=[], device="cpu", shard_samples=6)
    assert sorted(Counter(tar for tar, _ in read_members(tmp_path / "count")).values()) == [2, 6, 6, 6]
    cd.curate(str(shards[0]), tmp_path / "size", stages=[], device="cpu", shard_bytes=100_000)
    assert len(list((tmp_path / "size").glob("*.tar"))) > 1
    assert all(path.stat().st_size <= 100_000 + 10_240 for path in (tmp_path / "size").glob("*.tar"))


def test_results_do_not_depend_on_batches_and_parts(shards: list[Path], tmp_path: Path) -> None:
    rows = []
    for name, options in {"a": {"batch_size": 7, "part_size": 60}, "b": {"batch_size": 64, "part_size": 11}}.items():
        cd.curate(list(map(str, shards)), tmp_path / name, stages=cheap_stages(), device="cpu", **options)
        rows.append([{k: v for k, v in row.items() if k != "tar"} for row in read_rows(tmp_path / name)])
    assert rows[0] == rows[1]


def test_a_second_call_has_nothing_to_do(shards: list[Path], tmp_path: Path) -> None:
    seen: list[int] = []

    def run() -> cd.Report:
        stages = [*cheap_stages(), Spy(_Teller(seen))]
        return cd.curate(str(shards[0]), tmp_path / "out", stages=stages, device="cpu", batch_size=8, part_size=8)

    first = run()
    before, batches = content(tmp_path / "out"), len(seen)
    again = run()
    assert batches == len(seen) > 0
    assert content(tmp_path / "out") == before
    assert (again.earlier, again.samples, again.kept) == (20, 20, first.kept)
    assert again.dropped == first.dropped
    assert json.loads((tmp_path / "out" / "report.json").read_text())["earlier"] == 20


class _Teller:
    """A function of a batch that counts its images; named, so that a second run finds the same settings."""

    name = "teller"

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def __call__(self, batch: ImageBatch) -> None:
        self.seen.append(len(batch))


def test_other_settings_in_the_same_folder_are_refused_by_name(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    cd.curate(str(shards[0]), out, stages=[Filter("width", min=100)], device="cpu")
    for source, stages, options, what in (
        (shards[0], [Filter("width", min=101)], {}, r"settings.stages\[0\].min was 100 and is now 101"),
        (shards[0], [Filter("width", min=100)], {"embeddings": False, "tars": False}, "settings.tars was True"),
        (shards[0], [], {}, "settings.stages"),
        (shards[1], [Filter("width", min=100)], {}, "source was"),
    ):
        with pytest.raises(cd.OutputError, match=what):
            cd.curate(str(source), out, stages=stages, device="cpu", **options)
    report = cd.curate(str(shards[0]), out, stages=[Filter("width", min=100)], device="cpu", batch_size=3, part_size=2)
    assert report.earlier == 20  # how it is done is no setting


def test_progress_counts_every_sample(shards: list[Path], tmp_path: Path) -> None:
    counts: list[int] = []
    with Curation(list(map(str, shards)), tmp_path / "out", stages=cheap_stages(), device="cpu", batch_size=9) as run:
        assert run.work == (0, 60)
        run.run(counts.append)
        assert run.work == (60, 60)
    assert sum(counts) == 60
    assert max(counts) <= 9


def test_views_go_when_nobody_looks_at_them_any_more(shards: list[Path], tmp_path: Path) -> None:
    seen: list[set[Any]] = []
    encoder = ColourEncoder()

    def tell(batch: ImageBatch) -> None:
        assert batch.images is None
        seen.append(set(batch.views))

    stages = [Quality(), Spy(tell), Embed(encoder), Filter("width", min=110), Spy(tell)]
    cd.curate(str(shards[0]), tmp_path / "out", stages=stages, device="cpu", batch_size=20)
    assert seen == [{encoder.view}, set()]  # so that the filter had no pixels to copy


def test_a_stage_that_loses_images_is_refused(shards: list[Path], tmp_path: Path) -> None:
    class Losing(Stage):
        def __call__(self, batch: ImageBatch) -> ImageBatch:
            return batch[1:]

    with pytest.raises(StageError, match=r"Losing gave back 19 of 20 images.*must be a Selector"):
        cd.curate(str(shards[0]), tmp_path / "out", stages=[Losing()], device="cpu", batch_size=20)
    assert not content(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "64"}, "batch_size is '64'"),
        ({"part_size": -1}, "part_size is -1"),
        ({"shard_bytes": 0}, "shard_bytes is 0"),
        ({"embeddings": "float64"}, "embeddings is 'float64'"),
        ({"embeddings": True}, "put Embed among the stages"),
        ({"max_error_rate": 2}, "max_error_rate is 2"),
        ({"executor": "dask"}, "executor is 'dask'"),
        ({"stages": [Filter("nsfw_score", max=1)]}, "put NSFW before it"),
        ({"stages": Quality()}, "allowed: a list of stages"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    options: dict[str, Any], message: str, shards: list[Path], tmp_path: Path
) -> None:
    arguments = {"stages": [Quality()], "device": "cpu", **options}
    with pytest.raises((ValueError, cd.CuratorDaliError), match=message):
        cd.curate(str(shards[0]), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_worker_travels_and_does_a_part_as_anybody_else_would(shards: list[Path], tmp_path: Path) -> None:
    stages = [Embed("efficientnet-lite0"), *cheap_stages()]
    options: dict[str, Any] = {"stages": stages, "device": "cpu", "batch_size": 4, "part_size": 10, "embeddings": True}
    cd.curate(str(shards[0]), tmp_path / "here", **options)
    with Curation(str(shards[0]), tmp_path / "there", **options) as run:
        arguments = {"source": run.source.fingerprint, "samples": 20, "settings": run.settings, "lineage": run.lineage}
        with Manifest.open(str(tmp_path / "there"), **arguments) as manifest:
            worker = run.worker(manifest)
            travelled = pickle.loads(pickle.dumps(worker))  # as to another machine: without weights and locks
            parts: list[Any] = []
            for part in [(10, 20), (0, 10)]:
                travelled.run([part], parts.append, lambda count: None)
            travelled.close()
    assert [(part.start, part.stop) for part in parts] == [(10, 20), (0, 10)]
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_out_may_be_far_away(shards: list[Path]) -> None:
    import fsspec

    out = "memory://curated/here"
    first = cd.curate(str(shards[0]), out, stages=cheap_stages(), device="cpu", part_size=8)
    fs = fsspec.filesystem("memory")
    names = {path.rpartition("/")[2] for path in fs.find("/curated/here")}
    assert sum(name.endswith(".parquet") for name in names) == 3
    assert "report.json" in names
    again = cd.curate(str(shards[0]), out, stages=cheap_stages(), device="cpu", part_size=8)
    assert (again.earlier, again.kept) == (20, first.kept)
    fs.rm("/curated", recursive=True)


def test_subset_is_curated_as_any_source(shards: list[Path], tmp_path: Path) -> None:
    source = cd.Subset(open_source(str(shards[0])), slice(3, 13))
    report = cd.curate(source, tmp_path / "out", stages=[], device="cpu")
    assert report.kept == 10
    assert [row["image_id"] for row in read_rows(tmp_path / "out")] == [f"{n:06d}" for n in range(3, 13)]

"""Inside NeMo Curator: its batches, its stages and its executors, for real. `make test-nemo` has what it takes."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import curator_dali as cd
from curator_dali.errors import StageError
from curator_dali.stages import GlobalSelector
from tests import helpers
from tests.nemo_layout import CLIP, write_models

pytest.importorskip("nemo_curator", reason="NeMo Curator is not installed: run `make test-nemo`", exc_type=ImportError)

from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.file_partitioning import FilePartitioningStage
from nemo_curator.stages.image.deduplication.removal import ImageDuplicatesRemovalStage
from nemo_curator.stages.image.filters import ImageAestheticFilterStage, ImageNSFWFilterStage
from nemo_curator.stages.image.io.image_writer import ImageWriterStage
from nemo_curator.tasks import FileGroupTask
from nemo_curator.tasks import ImageBatch as NemoImageBatch
from nemo_curator.tasks import ImageObject as NemoImageObject

from curator_dali.nemo import (
    DROPPED,
    ERRORS,
    DaliCurationStage,
    DaliImageReaderStage,
    SplitFilesStage,
    from_nemo,
    to_nemo,
)

BAD = {"000005": b"<html>404</html>", "000031": b""}  # what stands in for the image of these


@pytest.fixture(scope="module")
def samples(photos: dict[str, NDArray[np.uint8]]) -> list[Any]:
    made = helpers.photo_samples(photos, 40)
    return [(key, {**members, "jpg": BAD.get(key, members["jpg"])}) for key, members in made]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, samples: list[Any]) -> list[Path]:
    """Two tars of 20 samples, of which two have images that are none."""
    return helpers.write_shards(tmp_path_factory.mktemp("damaged"), samples, per_shard=20)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def duplicates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Parquet file that NeMo Curator's deduplication leaves."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("duplicates")
    pq.write_table(pa.table({"id": ["000002", "000021"]}), folder / "duplicates.parquet")
    return folder


def task_of(*files: Path | str, **reader_config: Any) -> FileGroupTask:
    return FileGroupTask(dataset_name="photos", data=[str(file) for file in files], reader_config=reader_config)


def ids(batches: list[Any]) -> list[str]:
    return [item.image_id for batch in batches for item in batch.data]


def told(batches: list[Any], name: str = ERRORS) -> list[str]:
    return [row["image_id"] for batch in batches for row in batch._metadata.get(name, [])]


def stages_of(models: Path) -> list[Any]:
    return [cd.Embed(models / CLIP), cd.Aesthetic(models), cd.NSFW(models)]


def reader(**options: Any) -> DaliImageReaderStage:
    return DaliImageReaderStage(**{"device": "cpu", "num_threads": 1, "dali_batch_size": 8, **options})


class TestConversions:
    def batch(self, shards: list[Path], **options: Any) -> cd.ImageBatch:
        with cd.ImageLoader(shards, batch_size=12, device="cpu", num_threads=1, **options) as loader:
            batch = next(iter(loader))
        rng = np.random.default_rng(0)
        batch.embeddings = rng.normal(size=(12, 6)).astype(np.float32)
        batch.columns |= {
            "aesthetic_score": np.linspace(1, 9, 12, dtype=np.float32),
            "sharpness": np.array([np.nan, *rng.normal(size=11)], np.float32),
            "hash": rng.integers(2**63, 2**64, 12, np.uint64),
            "tag": np.array(["cat", None] * 6, object),
        }
        batch._metadata["run"] = 7
        return batch

    @pytest.mark.parametrize("transforms", [(), cd.transforms.clip(64)])
    def test_nothing_is_lost(self, shards: list[Path], transforms: Any) -> None:
        batch = self.batch(shards, transforms=transforms)
        theirs = to_nemo(batch)
        assert theirs.task_id == batch.task_id
        assert [item.aesthetic_score for item in theirs.data] == batch.columns["aesthetic_score"].tolist()
        theirs = pickle.loads(pickle.dumps(theirs))  # as it travels to another worker
        again = from_nemo(theirs, device="cpu")
        assert (again.task_id, again.dataset_name, again._metadata) == (batch.task_id, batch.dataset_name, {"run": 7})
        for ours, back in zip(batch, again, strict=True):
            assert (back.image_id, back.image_path, back.metadata) == (ours.image_id, ours.image_path, ours.metadata)
        for before, after in zip(batch.images, again.images, strict=True):
            np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(batch.embeddings, again.embeddings)
        assert set(again.columns) == set(batch.columns)
        for name, values in batch.columns.items():
            assert again.columns[name].dtype == values.dtype, name
            np.testing.assert_array_equal(again.columns[name], values, err_msg=name)

    def test_pixels_are_not_copied_on_the_way(self, shards: list[Path]) -> None:
        batch = self.batch(shards)
        theirs = to_nemo(batch)
        assert all(
            np.shares_memory(item.image_data, image) for item, image in zip(theirs.data, batch.images, strict=True)
        )

    def test_rows_stay_aligned_when_their_stage_drops_and_rescores(self, shards: list[Path]) -> None:
        batch = self.batch(shards)
        theirs = to_nemo(batch)
        theirs.data = theirs.data[::3]
        for item in theirs.data:
            item.aesthetic_score = 0.25
        again = from_nemo(theirs)
        assert again.images is None
        np.testing.assert_array_equal(again.columns["hash"], batch.columns["hash"][::3])
        assert again.values("aesthetic_score").tolist() == [0.25] * 4

    def test_their_own_batches(self) -> None:
        pixels = np.zeros((4, 5, 3), np.uint8)
        data = [NemoImageObject("/a.jpg", "a", {"k": 1}, pixels), NemoImageObject("/b.jpg", "b", nsfw_score=0.5)]
        batch = from_nemo(NemoImageBatch(dataset_name="d", data=data))
        assert [(item.image_path, item.image_id, item.metadata) for item in batch] == [
            ("/a.jpg", "a", {"k": 1}),
            ("/b.jpg", "b", {}),
        ]
        assert batch[0].image_data is pixels
        assert batch.columns == {}
        assert batch.values("nsfw_score").tolist() == pytest.approx([np.nan, 0.5], nan_ok=True)
        back = to_nemo(batch)
        assert [item.image_data is None for item in back.data] == [False, True]
        assert len(from_nemo(NemoImageBatch(dataset_name="d"))) == 0

    def test_a_taken_name_is_refused(self) -> None:
        batch = cd.ImageBatch(
            data=[cd.ImageObject("/a.jpg", "a", {"curator_dali": 1})], columns={"width": np.array([3], np.int32)}
        )
        with pytest.raises(ValueError, match="'curator_dali'"):
            to_nemo(batch)


class TestReader:
    def test_keys_captions_metadata_and_pixels(self, damaged: list[Path], samples: list[Any]) -> None:
        found = {item.image_id: item for batch in reader().process(task_of(*damaged)) for item in batch.data}
        for key, members in samples:
            if key in BAD:
                assert key not in found
                continue
            item = found[key]
            assert item.metadata["caption"] == members["txt"].decode()
            assert item.metadata["label"] == int(members["cls"])
            assert item.image_path.startswith(f"tar://{key}.jpg::")
            np.testing.assert_array_equal(item.image_data, np.asarray(Image.open(io.BytesIO(members["jpg"]))))

    def test_a_bad_image_or_file_costs_only_itself(self, damaged: list[Path], tmp_path: Path) -> None:
        (tmp_path / "no.tar").write_bytes(b"x" * 2000)
        batches = reader().process(task_of(damaged[0], tmp_path / "no.tar", tmp_path / "gone.tar", damaged[1]))
        assert ids(batches) == [f"{n:06d}" for n in range(40) if f"{n:06d}" not in BAD]
        assert told(batches) == ["000005", "", "", "000031"]
        reasons = [row["reason"] for batch in batches for row in batch._metadata.get(ERRORS, [])]
        assert "404" in reasons[0]
        assert "not a tar" in reasons[1]
        assert "nothing there" in reasons[2]

    def test_a_task_of_nothing_but_faults_still_accounts_for_them(self, tmp_path: Path) -> None:
        shard = helpers.write_tar(tmp_path / "0.tar", [("a.jpg", b"no"), ("b.jpg", b"")])
        (batch,) = reader().process(task_of(shard))
        assert batch.data == []
        assert told([batch]) == ["a", "b"]

    def test_raise(self, damaged: list[Path], tmp_path: Path) -> None:
        with pytest.raises(cd.ImageError, match="000005"):
            reader(on_error="raise").process(task_of(*damaged))
        with pytest.raises(cd.SourceError, match=r"gone\.tar"):
            reader(on_error="raise").process(task_of(tmp_path / "gone.tar"))

    def test_as_their_reader_on_files_without_fault(self, shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        import nvidia.dali
        from nemo_curator.stages.image.io.image_reader import ImageReaderStage

        define = nvidia.dali.pipeline_def  # its pipeline asks for the first GPU whether there is one or not
        monkeypatch.setattr(nvidia.dali, "pipeline_def", lambda **options: define(**{**options, "device_id": None}))
        theirs = ImageReaderStage(dali_batch_size=8, num_threads=1).process(task_of(shards[0]))
        ours = reader().process(task_of(shards[0]))
        assert [len(batch.data) for batch in ours] == [len(batch.data) for batch in theirs]
        for a, b in zip((i for x in ours for i in x.data), (i for x in theirs for i in x.data), strict=True):
            np.testing.assert_array_equal(a.image_data, b.image_data)

    def test_stream_gives_the_first_batch_before_the_last_is_read(self, shards: list[Path]) -> None:
        stage = reader()
        stream = stage.stream(task_of(*shards))
        assert ids([next(stream)]) == [f"{n:06d}" for n in range(8)]
        assert stage._loader is not None
        assert stage._loader._loader is not None
        assert stage._loader._loader.stats.samples <= 24  # of 60: what is under way
        assert len(ids(list(stream))) == 52
        stage.teardown()

    def test_keys_that_repeat_can_be_told_apart(self, tmp_path: Path, samples: list[Any]) -> None:
        members = [("000.jpg", samples[0][1]["jpg"])]
        files = [helpers.write_tar(tmp_path / name, members) for name in ("a.tar", "b.tar")]
        assert ids(reader().process(task_of(*files))) == ["000", "000"]
        assert ids(reader(image_ids="shard/key").process(task_of(*files))) == ["a/000", "b/000"]

    def test_travels_and_copies_without_its_threads(self, damaged: list[Path]) -> None:
        stage = reader(num_gpus_per_worker=0.5)
        before = ids(stage.process(task_of(*damaged)))
        other = pickle.loads(pickle.dumps(stage)).with_(name="renamed", num_workers=1)
        assert other.name == "renamed"
        assert ids(other.process(task_of(*damaged))) == before

    @pytest.mark.parametrize(
        "wrong", [{"dali_batch_size": 0}, {"image_ids": "stem"}, {"on_error": "ignore"}, {"num_threads": 0}]
    )
    def test_wrong_settings_are_refused_at_once(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            reader(**wrong)

    def test_no_files(self) -> None:
        with pytest.raises(ValueError, match="no files"):
            reader().process(task_of())


class TestSplit:
    def test_ranges_cover_every_sample_once(self, damaged: list[Path], tmp_path: Path) -> None:
        tasks = SplitFilesStage(7).process(task_of(*damaged, tmp_path / "gone.tar"))
        assert [len(ids(reader(dali_batch_size=100).process(task))) for task in tasks] == [6, 7, 6, 7, 6, 6, 0]
        assert len({task.get_deterministic_id() for task in tasks}) == len(tasks)

    def test_a_range_that_is_none(self, damaged: list[Path]) -> None:
        with pytest.raises(ValueError, match="20 samples"):
            reader().process(task_of(damaged[0], samples=[10, 30]))


class TestCuration:
    def stage(self, stages: list[Any], **options: Any) -> DaliCurationStage:
        return DaliCurationStage(stages, **{"device": "cpu", "num_threads": 1, "dali_batch_size": 8, **options})

    def test_scores_are_those_of_their_heads(self, damaged: list[Path], models: Path) -> None:
        """Our fused stage, and their filter stages behind it, which score the same embeddings anew."""
        batches = self.stage(stages_of(models)).process(task_of(*damaged))
        assert len(ids(batches)) == 38
        ours = {item.image_id: (item.aesthetic_score, item.nsfw_score) for b in batches for item in b.data}
        assert all(item.image_data is None for batch in batches for item in batch.data)
        aesthetic = ImageAestheticFilterStage(model_dir=str(models), score_threshold=-1e9)
        nsfw = ImageNSFWFilterStage(model_dir=str(models), score_threshold=2.0)
        for stage in (aesthetic, nsfw):
            stage.setup()
        rescored = [nsfw.process(aesthetic.process(batch)) for batch in batches]
        theirs = {item.image_id: (item.aesthetic_score, item.nsfw_score) for b in rescored for item in b.data}
        assert ours.keys() == theirs.keys()
        for key, scores in ours.items():
            assert scores == pytest.approx(theirs[key], abs=1e-4)
        assert np.ptp([aesthetic for aesthetic, _ in ours.values()]) > 0.01

    def test_what_is_dropped_is_told(self, damaged: list[Path], models: Path) -> None:
        no_rockets = cd.Filter("caption", where=lambda captions: np.array(["rocket" not in c for c in captions]))
        stages = [cd.Filter("width", min=150), *stages_of(models), no_rockets]
        batches = self.stage(stages, keep_images=True).process(task_of(*damaged))
        assert len(ids(batches)) + len(told(batches, DROPPED)) + len(told(batches)) == 40
        assert all(item.image_data.shape[1] >= 150 for batch in batches for item in batch.data)
        by = {row["stage"].partition("(")[2] for batch in batches for row in batch._metadata.get(DROPPED, [])}
        assert by == {"width)", "caption)"}

    def test_a_wrong_order_is_refused_before_work(self, models: Path) -> None:
        with pytest.raises(StageError, match="embeddings"):
            self.stage([cd.Aesthetic(models)])

    def test_a_stage_that_must_see_everything_is_refused(self) -> None:
        class Everything(GlobalSelector):
            def decide(self, scored: Any) -> Any:
                raise AssertionError("never asked")

        with pytest.raises(StageError, match="curate"):
            self.stage([Everything()])

    def test_without_stages_it_counts_what_decodes(self, damaged: list[Path]) -> None:
        assert len(ids(self.stage([]).process(task_of(*damaged)))) == 38


def written(folder: Path) -> list[str]:
    names = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            names += [name.removesuffix(".jpg") for name in tar.getnames()]
    return sorted(names)


EXPECTED = sorted(f"{n:06d}" for n in range(40) if f"{n:06d}" not in {*BAD, "000002", "000021"})


def their_stages(models: Path, duplicates: Path, out: Path) -> list[Any]:
    return [
        ImageAestheticFilterStage(model_dir=str(models), score_threshold=-1e9),
        ImageNSFWFilterStage(model_dir=str(models), score_threshold=2.0),
        ImageDuplicatesRemovalStage(removal_parquets_dir=str(duplicates)),
        ImageWriterStage(output_dir=str(out), images_per_tar=5, remove_image_data=True),
    ]


def test_their_stages_take_our_batches(damaged: list[Path], models: Path, duplicates: Path, tmp_path: Path) -> None:
    fused = DaliCurationStage(stages_of(models)[:1], device="cpu", num_threads=1, keep_images=True, dali_batch_size=8)
    stages = their_stages(models, duplicates, tmp_path)
    tasks: list[Any] = fused.process(task_of(*damaged))
    for stage in stages:
        stage.setup()
        tasks = [stage.process(task) for task in tasks]
    assert written(tmp_path) == EXPECTED


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    """A small Ray of our own, which the executors use and end."""
    ray = pytest.importorskip("ray")
    mark = f"CURATOR_DALI_TEST={uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv(*mark.split("="))
        # Xenna asks the dashboard's server for the state of its actors
        ray.init("local", num_cpus=8, object_store_memory=150 << 20, include_dashboard=True, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()
            end_marked(mark)


def end_marked(mark: str) -> None:
    """End the processes that inherited a mark: workers of Xenna's outlive their Ray."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            inherited = mark.encode() in (folder / "environ").read_bytes().split(b"\0")
            if inherited and int(folder.name) != os.getpid():  # an environ is that of a process's start
                os.kill(int(folder.name), signal.SIGKILL)


def executor_of(name: str) -> Any:
    if name == "xenna":
        from nemo_curator.backends.xenna import XennaExecutor

        return XennaExecutor({"execution_mode": "batch"})
    if name == "ray_data":
        from nemo_curator.backends.ray_data import RayDataExecutor

        return RayDataExecutor()
    from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor

    return RayActorPoolExecutor(show_progress=False)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("executor", ["ray_data", "ray_actor_pool", "xenna"])
def test_pipeline(executor: str, damaged: list[Path], models: Path, duplicates: Path, tmp_path: Path) -> None:
    """Their pipeline from files to tars, our fused stage and theirs in it, on each of their executors."""
    pipeline = Pipeline("photos")
    pipeline.add_stage(FilePartitioningStage(str(damaged[0].parent), files_per_partition=1, file_extensions=[".tar"]))
    pipeline.add_stage(SplitFilesStage(10))
    fused = DaliCurationStage(stages_of(models)[:1], device="cpu", num_threads=1, keep_images=True, dali_batch_size=8)
    pipeline.add_stage(fused.with_(num_workers=1))
    for stage in their_stages(models, duplicates, tmp_path):
        pipeline.add_stage(stage)
    results = pipeline.run(executor_of(executor))
    assert written(tmp_path) == EXPECTED
    assert sorted(told(results)) == sorted(BAD)
    assert all(task.task_id and not task.task_id.startswith("r") for task in results)

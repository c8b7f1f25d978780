"""A sample that cannot be read now is no failed image: the run stops, and the same call does that sample later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.outputs import Manifest
from curator_dali.sources import EncodedBatch, FolderSource
from tests import helpers
from tests.curation.helpers import FirstOfItsLabel, content, read_rows

COUNT, PART = 60, 10
OPTIONS: dict[str, Any] = {"device": "cpu", "batch_size": 5, "part_size": PART, "prefetch": 1, "html": False}


class Unsteady(FolderSource):
    """A folder of which samples from the 35th on cannot be read while a file `offline` lies beside the folder."""

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        batch = super().read(indices, members=members)
        if os.path.exists(f"{self._root}/../offline"):
            for row in np.flatnonzero(batch.indices >= 35).tolist():
                batch.errors[row], batch.images[row] = "the store does not answer", np.empty(0, np.uint8)
                batch.unread.add(row)
        return batch


@pytest.fixture
def folder(tmp_path: Path, photos: dict[str, NDArray[np.uint8]]) -> Path:
    for number, (_, members) in enumerate(helpers.photo_samples(photos, COUNT)):
        path = tmp_path / "photos" / str(number % 3) / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if number == 3 else members["jpg"])
    return tmp_path / "photos"


def test_the_run_stops_and_goes_on_from_there(folder: Path, tmp_path: Path) -> None:
    stages = [cd.Filter("width", min=110), cd.Quality()]
    whole, out = tmp_path / "whole", tmp_path / "out"
    cd.curate(Unsteady(str(folder)), whole, stages=stages, **OPTIONS)
    (tmp_path / "offline").touch()
    say = rf"sample '1/046' \({folder}/1/046.jpg\) of {folder} cannot be read now: the store does not .*The same call"
    for _ in range(2):
        with pytest.raises(cd.SourceError, match=say):
            cd.curate(Unsteady(str(folder)), out, stages=stages, **OPTIONS)
        assert set(Manifest.load(str(out)).ranges()) <= {(0, 10), (10, 20), (20, 30)}  # what is under way is dropped
        assert [row["image_id"] for row in read_rows(out) if row["status"] == "failed"] in ([], ["0/003"])
    (tmp_path / "offline").unlink()
    report = cd.curate(Unsteady(str(folder)), out, stages=stages, **OPTIONS)
    assert (report.samples, report.num_failed) == (COUNT, 1)
    assert content(out) == content(whole)


def test_the_share_of_bad_images_counts_verdicts_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "offline").touch()
    options = {**OPTIONS, "max_error_rate": 0.1, "batch_size": 60, "part_size": 60}
    with pytest.raises(cd.SourceError, match="cannot be read now"):
        cd.curate(Unsteady(str(folder)), tmp_path / "out", stages=[], **options)


class Offline:
    """Progress that makes the samples unreadable once so many are done."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.left = path, after

    def __call__(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            self.path.touch()


def test_both_phases_of_a_run_that_sees_everything(folder: Path, tmp_path: Path) -> None:
    stages, whole = [FirstOfItsLabel()], tmp_path / "whole"
    cd.curate(Unsteady(str(folder)), whole, stages=stages, **OPTIONS)
    # while scoring, and when all is scored and the samples that are kept are written
    for after, key, finished in ((0, "1/046", []), (COUNT, "2/002", range(0, 40, PART))):
        out, progress = tmp_path / f"after {after}", Offline(tmp_path / "offline", after)
        with pytest.raises(cd.SourceError, match=f"sample '{key}' .* cannot be read now: the store .*The same call"):
            cd.curate(Unsteady(str(folder)), out, stages=stages, progress=progress, **OPTIONS)
        (tmp_path / "offline").unlink()
        assert Manifest.load(str(out)).ranges() == [(start, start + PART) for start in finished]
        report = cd.curate(Unsteady(str(folder)), out, stages=stages, **OPTIONS)
        assert (report.kept, report.num_failed) == (3, 1)
        assert content(out) == content(whole)


def test_rethreshold(folder: Path, tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    cd.curate(Unsteady(str(folder)), out, stages=[], **OPTIONS)
    (tmp_path / "offline").touch()
    options: dict[str, Any] = {"stages": [cd.Filter("width", min=1)], "source": Unsteady(str(folder)), "html": False}
    with pytest.raises(
        cd.SourceError, match=r"sample '1/046' .*cannot be read now: the store does not answer.*The same"
    ):
        cd.rethreshold(out, new, **options)
    assert Manifest.load(str(new)).ranges() == [(0, 10), (10, 20), (20, 30)]
    (tmp_path / "offline").unlink()
    assert cd.rethreshold(out, new, **options).kept == COUNT - 1


def test_metadata_that_cannot_be_read_before_the_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "offline").touch()
    with pytest.raises(cd.SourceError, match="cannot be read now"):  # else the type of a column would be another
        cd.curate(Unsteady(str(folder)), tmp_path / "out", stages=[cd.Filter("label", min=1)], **OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trouble", ["gone", "written anew", "cut"])
@pytest.mark.parametrize("stages", [[], [FirstOfItsLabel("number")]], ids=["streaming", "global"])
def test_a_tar_that_changes_while_the_run_goes_on(
    trouble: str, stages: list[Any], tmp_path: Path, photos: dict[str, NDArray[np.uint8]]
) -> None:
    shards = helpers.write_shards(tmp_path / "shards", helpers.photo_samples(photos, COUNT), per_shard=20)
    last = shards[-1]
    data, times = last.read_bytes(), os.stat(last)

    def change(count: int) -> None:
        if not last.exists() or last.stat().st_mtime_ns != times.st_mtime_ns:
            return
        if trouble == "cut":
            os.truncate(last, len(data) // 3)
            return
        last.unlink()
        if trouble == "written anew":
            helpers.write_shards(tmp_path / "other", helpers.photo_samples(photos, 20, seed=9), per_shard=20)
            (tmp_path / "other" / "00000.tar").rename(last)

    run = {"source": str(tmp_path / "shards"), "out": tmp_path / "out", "stages": stages, **OPTIONS}
    stopped = ""
    try:
        cd.curate(**run, progress=change)
    except cd.SourceError as error:
        stopped = str(error)
    assert "cannot be read now" in stopped or (stages and trouble != "cut")  # a tar that is open can still be read
    assert all(row["status"] == "kept" for row in read_rows(tmp_path / "out"))
    last.unlink(missing_ok=True)
    last.write_bytes(data)
    os.utime(last, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = cd.curate(**run)
    assert (report.samples, report.kept, report.num_failed) == (COUNT, COUNT, 0)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rewrite(path: Path) -> None:
    path.write_bytes(b"<html>gone</html>")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TROUBLES = [Path.unlink, empty, rewrite, replace_by_folder]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("ending", ["jpg", "json", "link"])
@pytest.mark.parametrize(
    "stages", [[cd.Filter("score", min=0.5)], [FirstOfItsLabel("score")]], ids=["streaming", "global"]
)
def test_a_file_of_a_folder_that_changes_while_the_run_goes_on(
    trouble: Any, ending: str, stages: list[Any], tmp_path: Path, photos: dict[str, NDArray[np.uint8]]
) -> None:
    """An image, a sidecar, or the file that a link points to: changed in the first phase or between both."""
    folder, blobs = tmp_path / "photos", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    for number, (_, members) in enumerate(helpers.photo_samples(photos, 40)):
        (blobs / f"{number:03d}").write_bytes(members["jpg"])
        (folder / f"{number:03d}.json").write_text(f'{{"score": {number + 1}}}')
        if ending == "link":
            (folder / f"{number:03d}.jpg").symlink_to(blobs / f"{number:03d}")
        else:
            (folder / f"{number:03d}.jpg").write_bytes(members["jpg"])
    (folder / "never.jpg").symlink_to(tmp_path / "nowhere")
    run = {"source": str(folder), "stages": stages, **OPTIONS}
    whole = tmp_path / "whole"
    assert cd.curate(**run, out=whole).num_failed == 1  # the link that never led anywhere
    victim = blobs / "039" if ending == "link" else folder / f"039.{ending}"
    data = victim.read_bytes()
    for after in (10, 45) if "FirstOfItsLabel" in stages[0].name else (10,):  # there are two phases, or one
        out, left = tmp_path / f"out {after}", [after]

        def change(count: int, left: list[int] = left) -> None:
            left[0] -= count
            if left[0] <= 0 and victim.is_file() and victim.read_bytes() == data:
                trouble(victim)

        with pytest.raises(cd.SourceError, match=r"sample '039' .* cannot be read now"):
            cd.curate(**run, out=out, progress=change)
        assert all(row["status"] != "failed" or row["image_id"] == "never" for row in read_rows(out))
        victim.rmdir() if victim.is_dir() else victim.unlink(missing_ok=True)
        victim.write_bytes(data)
        cd.curate(**run, out=out)
        assert content(out) == content(whole)

"""Images written from a GPU's decode, lists of perceptual hashes made on a GPU, and training on a view."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import curator_dali as cd
from curator_dali.torch import TorchImageLoader
from tests.curation.helpers import read_members, read_rows

pytestmark = pytest.mark.gpu

DEVICES = ("cpu", "cuda:0")


def test_written_images_are_the_cpus_but_for_the_decoder(shards: list[Path], tmp_path: Path) -> None:
    found: dict[str, list[Any]] = {}
    for device in DEVICES:
        out = tmp_path / device.replace(":", "")
        write = cd.Write(resize=64, format="png")
        cd.curate(str(shards[0].parent), out, stages=[], device=device, write=write, html=False)
        images = [Image.open(io.BytesIO(members["png"])) for members in read_members(out).values()]
        found[device] = [np.asarray(image, np.int16) for image in images]
        assert [row["written_width"] for row in read_rows(out) if row["status"] == "kept"] == [i.width for i in images]
    assert len(found["cpu"]) == len(found["cuda:0"]) > 0
    for a, b in zip(found["cpu"], found["cuda:0"], strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).mean() < 2


@pytest.mark.parametrize("kind", ["phash", "dhash"])
def test_lists_of_perceptual_hashes(shards: list[Path], kind: Any, tmp_path: Path) -> None:
    source = str(shards[0])
    cd.curate(source, tmp_path / "all", stages=[cd.Deduplicate(near=0, hash=kind)], device="cuda:0", html=False)
    listed = next(row for row in read_rows(tmp_path / "all") if row[kind])
    stages = [cd.Exclude([listed[kind]], by=kind, distance=2)]
    report = cd.curate(source, tmp_path / "few", stages=stages, device="cuda:0", html=False)
    dropped = [row["image_id"] for row in read_rows(tmp_path / "few") if row["status"] == "dropped"]
    assert listed["image_id"] in dropped
    assert report.kept + len(dropped) == report.samples


def test_training_on_a_view(shards: list[Path], tmp_path: Path) -> None:
    stages = [cd.Quality(), cd.Filter("sharpness", min=100)]
    cd.curate(str(shards[0].parent), tmp_path / "out", stages=stages, device="cuda:0", tars=False, html=False)
    kept = {row["image_id"]: row["sharpness"] for row in read_rows(tmp_path / "out") if row["status"] == "kept"}
    loader = TorchImageLoader(
        cd.View(tmp_path / "out"), target="sharpness", transforms=cd.transforms.Resize((32, 32)), shuffle=7,
        batch_size=8, device="cuda:0",
    )  # fmt: skip
    seen: list[float] = []
    with loader:
        for images, targets in loader:
            assert images.device.type == targets.device.type == "cuda"
            seen += targets.tolist()
    assert sorted(seen) == pytest.approx(sorted(kept.values()))

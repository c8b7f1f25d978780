"""A curation on a GPU: the same rows as on the CPU, and pixels that never come back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import curator_dali as cd
from curator_dali import arrays
from curator_dali.batch.batch import ImageBatch
from tests.curation.helpers import Spy, cheap_stages, read_members, read_rows
from tests.models import makers

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small CLIP of random weights."""
    folder = tmp_path_factory.mktemp("clip")
    makers.write_clip(folder)
    return str(folder)


def test_scores_are_the_cpus_but_for_the_decoder(clip: str, shards: list[Path], tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for device in ("cpu", "cuda:0"):
        stages = [cd.Embed(clip), cd.Quality()]
        out = tmp_path / device.replace(":", "")
        report = cd.curate(
            str(shards[0].parent), out, stages=stages, device=device, batch_size=16, part_size=32, embeddings=True
        )
        assert (report.samples, report.kept, report.device) == (60, 60, device)
        rows[device] = read_rows(out)
        assert len(read_members(out)) == 60
    for a, b in zip(rows["cpu"], rows["cuda:0"], strict=True):
        assert a["image_path"] == b["image_path"]
        assert b["brightness"] == pytest.approx(a["brightness"], abs=0.01)
        assert b["contrast"] == pytest.approx(a["contrast"], abs=0.01)
        assert np.dot(a["embedding"], b["embedding"]) > 0.99


def test_filters_that_come_first_decide_as_on_the_cpu(shards: list[Path], tmp_path: Path) -> None:
    stages = [
        cd.Filter("width", min=110),
        cd.Filter("format", equals="jpeg"),
        cd.Filter("pixels", max=40_000),
        cd.Quality(),
    ]
    rows = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "")
        cd.curate(str(shards[0].parent), out, stages=stages, device=device, batch_size=16, part_size=32, html=False)
        rows[device] = [(row["image_id"], row["status"], row["stage"], row["reason"]) for row in read_rows(out)]
    assert rows["cpu"] == rows["cuda:0"]
    assert {status for _, status, _, _ in rows["cpu"]} == {"kept", "dropped"}


def test_written_images_are_the_cpus_but_for_the_decoder(shards: list[Path], tmp_path: Path) -> None:
    write = cd.Write(resize=100, format="png")
    found = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "")
        cd.curate(str(shards[0].parent), out, stages=[], device=device, part_size=32, html=False, write=write)
        found[device] = read_members(out)
        new = tmp_path / f"{out.name} anew"
        cd.rethreshold(out, new, stages=[cd.Filter("width", min=1)], device=device, html=False, write=write)
        pixels = [members["png"] for members in read_members(new).values()]
        assert pixels == [members["png"] for members in found[device].values()]
    for one, two in zip(found["cpu"].values(), found["cuda:0"].values(), strict=True):
        a, b = (np.asarray(Image.open(io.BytesIO(members["png"]))).astype(int) for members in (one, two))
        assert a.shape == b.shape
        assert np.abs(a - b).mean() < 1


def test_pixels_stay_on_the_device(
    clip: str, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    original = arrays.to_host

    def spy(rows: Any) -> Any:
        if arrays.device_of(rows) != "cpu":
            moved.append(arrays.nbytes(rows))
        return original(rows)

    monkeypatch.setattr(arrays, "to_host", spy)
    seen: list[str] = []

    def tell(batch: ImageBatch) -> None:
        seen.append(batch.device)
        assert batch.images is None

    stages = [Spy(tell), cd.Embed(clip), *cheap_stages()]
    options: dict[str, Any] = {"device": "cuda:0", "batch_size": 20, "embeddings": True}
    cd.curate(str(shards[0]), tmp_path / "out", stages=stages, html=False, **options)  # a report decodes some anew
    assert seen == ["cuda:0"]
    width = len(read_rows(tmp_path / "out")[0]["embedding"])
    assert sum(moved) == 20 * width * 4  # the embeddings, each once; scores are a few bytes

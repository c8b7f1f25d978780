"""timm's models, where timm (and the torchvision under it) imports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from curator_dali.models import WeightsError, load_encoder
from curator_dali.models.backbones import import_timm
from curator_dali.transforms import output_size
from tests.models import makers

MODEL = "vit_tiny_patch16_224"


def missing() -> str:
    try:
        import_timm()
    except ImportError as error:
        return str(error)
    return ""


needs_timm = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.mark.skipif(not missing(), reason="timm imports here")
def test_without_timm_the_error_says_what_to_do() -> None:
    with pytest.raises(ImportError, match=r"a timm: model needs timm, which does not import .*pip install"):
        load_encoder(f"timm:{MODEL}", "cpu")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    """timm's model with its classifier, and its weights in a file."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = import_timm().create_model(MODEL).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


@needs_timm
def test_equals_timm(saved: tuple[Any, Path], photos: dict[str, NDArray[np.uint8]]) -> None:
    timm = import_timm()
    model, path = saved
    pictures = list(photos.values())[:4]
    encoder = load_encoder(f"timm:{MODEL}", "cpu", weights=path)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    inputs = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
    with torch.inference_mode():
        theirs = torch.nn.functional.normalize(model.forward_head(model.forward_features(inputs), pre_logits=True))
    images = makers.view(pictures, encoder.view)
    ours = encoder(images)
    assert ours.shape == (4, 192)
    mean = theirs.mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(ours, theirs).min() > 0.9999
    assert cosine(ours - mean, theirs - mean).min() > 0.999
    assert cosine(encoder(images.flip(3)) - mean, theirs - mean).min() < 0.999
    assert encoder.lineage["weights"].keys() == {"model.safetensors"}


@needs_timm
def test_wrong_names_and_weights_are_refused(saved: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timm knows no model 'vit_tiny_patch17'"):
        load_encoder("timm:vit_tiny_patch17", "cpu", weights=saved[1])
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth holds no weights of timm:vit_tiny_patch16_224: \d+ missing"):
        load_encoder(f"timm:{MODEL}", "cpu", weights=tmp_path / "w.pth")


@needs_timm
def test_another_image_size(tmp_path: Path) -> None:
    torch.save(import_timm().create_model(MODEL, img_size=96).state_dict(), tmp_path / "w.pth")
    encoder = load_encoder(f"timm:{MODEL}", "cpu", weights=tmp_path / "w.pth", image_size=96)
    assert encoder(torch.zeros((2, 96, 96, 3), dtype=torch.uint8)).shape == (2, 192)
    assert output_size(encoder.view) == (96, 96)

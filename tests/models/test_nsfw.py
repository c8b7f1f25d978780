"""The NSFW classifier against LAION's network, written out plainly."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from curator_dali.models import NSFWClassifier, WeightsError, WeightsNotFoundError
from curator_dali.models.weights import sha256

LAYOUT = "laion/clip-autokeras-binary-nsfw/clip_autokeras_binary_nsfw.pth"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights that give probabilities of all sizes."""
    rng = np.random.default_rng(0)
    widths = [768, 64, 512, 256, 1]
    state = {"norm.mean": rng.normal(0, 0.01, 768), "norm.variance": rng.uniform(0.5, 2, 768) / 768}
    for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
        state[f"linear_{i}.weight"] = rng.normal(0, 2 / np.sqrt(inputs), (outputs, inputs))
        state[f"linear_{i}.bias"] = rng.normal(0, 0.1, outputs)
    return {name: torch.from_numpy(value).float() for name, value in state.items()}


@pytest.fixture(scope="module")
def embeddings() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(33, 768, generator=torch.Generator().manual_seed(1)))


def reference(state: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
    """In float64, step by step."""
    s = {name: tensor.double() for name, tensor in state.items()}
    x = (embeddings.double() - s["norm.mean"]) / torch.sqrt(s["norm.variance"])
    x = torch.clamp(x @ s["linear_1.weight"].T + s["linear_1.bias"], min=0)
    x = torch.clamp(x @ s["linear_2.weight"].T + s["linear_2.bias"], min=0)
    x = torch.clamp(x @ s["linear_3.weight"].T + s["linear_3.bias"], min=0)
    return (1 / (1 + torch.exp(-(x @ s["linear_4.weight"].T + s["linear_4.bias"]))))[:, 0]


@pytest.fixture
def models(state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """NeMo Curator's model_dir."""
    (tmp_path / LAYOUT).parent.mkdir(parents=True)
    torch.save(state, tmp_path / LAYOUT)
    return tmp_path


def test_equals_the_reference_from_wherever_it_loads(
    models: Path, state: dict[str, torch.Tensor], embeddings: torch.Tensor
) -> None:
    expected = reference(state, embeddings)
    assert expected.min() < 0.1
    assert expected.max() > 0.9
    for weights in (models, str(models), (models / LAYOUT).parent, models / LAYOUT, state):
        scores = NSFWClassifier(weights, device="cpu")(embeddings)
        assert (scores.shape, scores.dtype) == ((33,), torch.float32)
        assert torch.allclose(scores.double(), expected, atol=1e-5)
        assert not scores.requires_grad
        assert not scores.is_inference()
    assert NSFWClassifier(state, device="cpu")(embeddings[:0]).shape == (0,)


def test_lineage(models: Path) -> None:
    lineage = json.loads(json.dumps(NSFWClassifier(models, device="cpu").lineage))
    assert lineage["model"] == "laion/clip-autokeras-binary-nsfw"
    assert lineage["weights"] == {"clip_autokeras_binary_nsfw.pth": sha256(models / LAYOUT)}


def test_other_weights_are_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"norm\.mean is missing"):
        NSFWClassifier({name: tensor for name, tensor in state.items() if name != "norm.mean"}, device="cpu")
    with pytest.raises(WeightsError, match=r"norm\.variance is \(1,\) instead of \(768,\)"):
        NSFWClassifier({**state, "norm.variance": torch.ones(1)}, device="cpu")


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"clip_autokeras_binary_nsfw\.zip into MODELS/laion") as caught:
        NSFWClassifier(tmp_path, device="cpu")
    assert f"{tmp_path}/{LAYOUT} (no such folder)" in str(caught.value)
    assert "hf download" not in str(caught.value)  # the hub has no such file

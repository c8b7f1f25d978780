"""The aesthetic predictor against the published network, written out plainly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curator_dali.models import AestheticPredictor, WeightsError, WeightsNotFoundError
from curator_dali.models.weights import sha256, state_sha256


class Reference(torch.nn.Module):
    """As published, with its dropouts: https://github.com/christophschuhmann/improved-aesthetic-predictor."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.layers = nn.Sequential(
            *(nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
        )

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(embeddings)
        return out[:, 0]


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    return Reference().eval()


@pytest.fixture(scope="module")
def embeddings() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(33, 768, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def models(reference: Reference, tmp_path: Path) -> Path:
    """NeMo Curator's model_dir."""
    folder = tmp_path / "ttj/sac-logos-ava1-l14-linearMSE"
    folder.mkdir(parents=True)
    save_file(reference.state_dict(), folder / "model.safetensors")
    return tmp_path


def test_equals_the_reference_from_wherever_it_loads(
    models: Path, reference: Reference, embeddings: torch.Tensor
) -> None:
    folder = models / "ttj/sac-logos-ava1-l14-linearMSE"
    torch.save(reference.state_dict(), models / "sac+logos+ava1-l14-linearMSE.pth")  # LAION's own file
    expected = reference(embeddings).detach()
    assert expected.std() > 1e-3
    places = (models, folder, folder / "model.safetensors", models / "sac+logos+ava1-l14-linearMSE.pth")
    for weights in (*places, str(models), reference.state_dict()):
        predictor = AestheticPredictor(weights, device="cpu")
        scores = predictor(embeddings)
        assert (scores.shape, scores.dtype) == ((33,), torch.float32)
        assert torch.allclose(scores, expected, atol=1e-6, rtol=1e-5)
        assert not scores.requires_grad
        assert not scores.is_inference()


def test_rows_do_not_depend_on_each_other(reference: Reference, embeddings: torch.Tensor) -> None:
    predictor = AestheticPredictor(reference.state_dict(), device="cpu")
    whole = predictor(embeddings)
    assert torch.allclose(torch.cat([predictor(row[None]) for row in embeddings]), whole, atol=1e-6)
    assert predictor(embeddings[:0]).shape == (0,)
    assert torch.allclose(predictor(embeddings.double()), whole)
    assert torch.allclose(predictor(embeddings.bfloat16()), whole, atol=1e-2)


def test_lineage(models: Path, reference: Reference) -> None:
    predictor = AestheticPredictor(models, device="cpu")
    assert predictor.dim == 768
    lineage = json.loads(json.dumps(predictor.lineage))
    path = models / "ttj/sac-logos-ava1-l14-linearMSE/model.safetensors"
    assert (lineage["model"], lineage["weights"]) == (
        "ttj/sac-logos-ava1-l14-linearMSE",
        {"model.safetensors": sha256(path)},
    )
    of_state = AestheticPredictor(reference.state_dict(), device="cpu").lineage["weights"]
    assert of_state == {"state_dict": state_sha256(reference.state_dict())}


@pytest.mark.parametrize(
    ("embeddings", "words"),
    [
        (torch.ones(4, 512), r"of CLIP ViT-L/14; got \(4, 512\)"),
        (torch.ones(768), r"got \(768,\)"),
        (torch.ones(4, 768, dtype=torch.int64), r"\(N, 768\) of floats on cpu; got torch.int64"),
        (torch.ones(4, 768).numpy(), "got float32"),
        (torch.ones(4, 768, device="meta"), "these lie on meta"),
    ],
)
def test_other_embeddings_are_refused(reference: Reference, embeddings: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AestheticPredictor(reference.state_dict(), device="cpu")(embeddings)


def test_other_weights_are_refused(tmp_path: Path, reference: Reference) -> None:
    state = dict(reference.state_dict())
    state["layers.1.weight"] = state.pop("layers.2.weight")
    with pytest.raises(WeightsError, match=r"layers\.2\.weight is missing; layers\.1\.weight is unknown"):
        AestheticPredictor(state, device="cpu")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors\): layers\.2\.weight is missing"):
        AestheticPredictor(tmp_path / "w.safetensors", device="cpu")


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="hf download ttj/sac-logos-ava1-l14-linearMSE") as caught:
        AestheticPredictor(tmp_path, device="cpu")
    assert f"{tmp_path}/ttj/sac-logos-ava1-l14-linearMSE/model.safetensors (no such folder)" in str(caught.value)

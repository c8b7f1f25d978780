"""`load_encoder`: an encoder from what a user writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curator_dali.models.backbones import TimmEncoder
from curator_dali.models.base import ImageEncoder
from curator_dali.models.clip import CLIPImageEncoder
from curator_dali.models.efficientnet import EfficientNetLite0

__all__ = ["load_encoder"]

ACCEPTED = (
    "a folder with a CLIP or SigLIP model, a folder of models in NeMo Curator's layout, a hub id as "
    "'openai/clip-vit-large-patch14', 'efficientnet-lite0', 'timm:NAME', or an ImageEncoder"
)


def load_encoder(spec: str | Path | ImageEncoder, device: str = "auto", **options: Any) -> ImageEncoder:
    """An image encoder, ready to run.

    Args:
        spec: A folder with a CLIP or SigLIP model, a folder of models in NeMo Curator's layout, a hub id
            (OWNER/NAME), "efficientnet-lite0", "timm:NAME", or an `ImageEncoder`, which comes back as it is.
        device: "auto", "cpu", "cuda" or "cuda:N".
        **options: Of the encoder: dtype, batch_size, compile, weights, revision, ...

    Raises:
        ValueError: It is none of these; or an option's value is wrong.
        TypeError: The encoder has no such option.
        WeightsNotFoundError: There is no such model; says where it was looked for and how to get it.
        ImportError: The encoder's library is not installed.
    """
    if isinstance(spec, ImageEncoder):
        if options:
            raise ValueError(f"{spec!r} is loaded already; give the options {sorted(options)} where it is made")
        return spec
    if isinstance(spec, str) and spec.startswith("timm:"):
        return TimmEncoder(spec.removeprefix("timm:"), device=device, **options)
    if spec == EfficientNetLite0.name:
        return EfficientNetLite0(device=device, **options)
    # with a slash it is meant as a path or a hub id, also where nothing is there: the search says where it looked
    if isinstance(spec, Path) or (isinstance(spec, str) and ("/" in spec or (spec and Path(spec).is_dir()))):
        return CLIPImageEncoder(spec, device=device, **options)
    raise ValueError(f"no encoder {spec!r}; give {ACCEPTED}")

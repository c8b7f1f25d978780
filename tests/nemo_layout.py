"""Models in the folders and files that NeMo Curator looks for below a `model_dir`, with seeded random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tests.models.makers import TOWER, save, write_tokenizer

CLIP = "openai/clip-vit-large-patch14"
AESTHETIC = "ttj/sac-logos-ava1-l14-linearMSE"
NSFW = "laion/clip-autokeras-binary-nsfw"

VIT_B_32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_B_32 |= {"image_size": 224, "patch_size": 32}
SMALL = TOWER | {"image_size": 32, "patch_size": 8}


def write_models(folder: Path, vision: Mapping[str, Any] = SMALL, seed: int = 0) -> Path:
    """A CLIP whose embeddings have the 768 numbers that the two heads read, and the heads; returns `folder`."""
    write_clip(folder / CLIP, vision, seed)
    write_heads(folder, seed)
    return folder


def write_clip(folder: Path, vision: Mapping[str, Any], seed: int) -> None:
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_tokenizer(folder)
    text = {"vocab_size": tokens, "max_position_embeddings": 16, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    config = CLIPConfig(
        text_config=TOWER | text | {"pad_token_id": tokens - 1}, vision_config=dict(vision), projection_dim=768
    )
    save(CLIPModel, config, folder, seed)
    size = vision["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "rescale_factor": 1 / 255,
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_heads(folder: Path, seed: int) -> None:
    """Both heads; their scores of unit vectors spread enough to filter by."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    widths = [768, 1024, 128, 64, 16, 1]
    layers = zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True)  # between them lie dropouts
    aesthetic = {f"layers.{n}.{name}": value for n, a, b in layers for name, value in linear(a, b, 2.0).items()}
    (folder / AESTHETIC).mkdir(parents=True, exist_ok=True)
    save_file(aesthetic, folder / AESTHETIC / "model.safetensors")
    widths = [768, 64, 512, 256, 1]
    nsfw = {"norm.mean": torch.zeros(768), "norm.variance": torch.full((768,), 1 / 768)}
    for n, (a, b) in enumerate(pairwise(widths), 1):
        nsfw |= {f"linear_{n}.{name}": value for name, value in linear(a, b, 1.5).items()}
    (folder / NSFW).mkdir(parents=True, exist_ok=True)
    torch.save(nsfw, folder / NSFW / "clip_autokeras_binary_nsfw.pth")


def linear(inputs: int, outputs: int, gain: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.randn(outputs, inputs) * gain / inputs**0.5, "bias": torch.zeros(outputs)}

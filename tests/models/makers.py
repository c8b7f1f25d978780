"""Models as small as they go, in the files and the layout of the real ones, with seeded random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.sources import MemorySource
from curator_dali.transforms import Transform
from tests import helpers

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SENTENCES = [
    "a photo of a cat looking at the camera",
    "a photo of an astronaut in front of a flag",
    "a cup of coffee on a wooden table",
    "a rocket on its launch pad, before the launch",
    "a flower, red and yellow",
]


def view(images: Iterable[NDArray[np.uint8]], transforms: tuple[Transform, ...]) -> torch.Tensor:
    """(N, H, W, 3) uint8: pictures through the loader, in their order, as a stage gets them."""
    source = MemorySource([helpers.encode(np.ascontiguousarray(image), "PNG") for image in images])
    with cd.ImageLoader(source, device="cpu", transforms=transforms, batch_size=64) as loader:
        (batch,) = loader
        assert loader.errors == []
        tensor: torch.Tensor = batch.to_torch()
        return tensor


def write_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer in the files of CLIP's, learnt from SENTENCES; its number of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=sorted(alphabet), end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator([sentence.replace(" ", "\n") for sentence in SENTENCES * 3], trainer)
    model = json.loads(learner.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in [*(letter + "</w>" for letter in sorted(alphabet)), "<|startoftext|>", "<|endoftext|>"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "pad_token": "<|endoftext|>"})
    )
    return len(vocabulary)


def write_clip(folder: Path, *, seed: int = 0, vision: Mapping[str, Any] | None = None) -> Any:
    """A CLIP of 32x32 images with both towers, its processor and its tokenizer; transformers' model of it."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_tokenizer(folder)
    text = {"vocab_size": tokens, "max_position_embeddings": 16, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    config = CLIPConfig(
        text_config=TOWER | text | {"pad_token_id": tokens - 1},
        vision_config=TOWER | {"image_size": 32, "patch_size": 8} | dict(vision or {}),
        projection_dim=24,
    )
    write_processor(folder, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(CLIPModel, config, folder, seed)


def write_processor(folder: Path, **options: Any) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    CLIPImageProcessorPil(**options).save_pretrained(folder)


def save(kind: Any, config: Any, folder: Path, seed: int = 0) -> Any:
    """Make a model with seeded weights that spread its embeddings, save it, and give it back."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def view_encoded(images: Iterable[bytes], transforms: tuple[Transform, ...] = ()) -> NDArray[np.uint8]:
    """As `view`, of images that are encoded already; numpy."""
    with cd.ImageLoader(MemorySource(list(images)), device="cpu", transforms=transforms, batch_size=64) as loader:
        (batch,) = loader
        return np.stack(list(batch.images))

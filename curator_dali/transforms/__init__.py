"""What happens to decoded images on the device, as frozen values lowered to DALI operators.

A transform says what it wants (`Resize(224)`); `Graph` writes sequences of them into the one DALI pipeline that also
decodes. A sequence that ends in a fixed size (`output_size`) makes every batch one contiguous (N, H, W, 3) array.
What is random about a sample is a pure function of (seed, epoch, sample index).
"""

from __future__ import annotations

from curator_dali.transforms.base import RandomTransform, Transform, output_size
from curator_dali.transforms.colour import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColorJitter,
    GaussianBlur,
    Grey,
    Normalize,
    RandomErasing,
    RandomGrayscale,
    Rotate,
)
from curator_dali.transforms.geometry import (
    CenterCrop,
    HorizontalFlip,
    Pad,
    RandomResizedCrop,
    Resize,
    ResizeSide,
    ToBucket,
)
from curator_dali.transforms.geometry import bring_to as bring_to
from curator_dali.transforms.graph import Graph as Graph
from curator_dali.transforms.graph import apply
from curator_dali.transforms.graph import pixel_graph as pixel_graph
from curator_dali.transforms.mixing import CutMix, MixUp
from curator_dali.transforms.policies import AutoAugment, RandAugment, TrivialAugmentWide
from curator_dali.transforms.presets import clip, for_model, imagenet_eval, imagenet_train

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AutoAugment",
    "CenterCrop",
    "ColorJitter",
    "CutMix",
    "GaussianBlur",
    "Grey",
    "HorizontalFlip",
    "MixUp",
    "Normalize",
    "Pad",
    "RandAugment",
    "RandomErasing",
    "RandomGrayscale",
    "RandomResizedCrop",
    "RandomTransform",
    "Resize",
    "ResizeSide",
    "Rotate",
    "ToBucket",
    "Transform",
    "TrivialAugmentWide",
    "apply",
    "clip",
    "for_model",
    "imagenet_eval",
    "imagenet_train",
    "output_size",
]

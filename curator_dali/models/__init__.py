"""Frozen networks on device arrays: embeddings and scores, each with the lineage of its weights."""

from __future__ import annotations

from curator_dali.models.backbones import EfficientNetLite0, TimmEncoder, load_encoder
from curator_dali.models.base import ImageEncoder, NoTextTowerError
from curator_dali.models.clip import CLIPImageEncoder
from curator_dali.models.scorers import AestheticPredictor, NSFWClassifier, OpenNSFW
from curator_dali.models.weights import WeightsError, WeightsNotFoundError

__all__ = [
    "AestheticPredictor",
    "CLIPImageEncoder",
    "EfficientNetLite0",
    "ImageEncoder",
    "NSFWClassifier",
    "NoTextTowerError",
    "OpenNSFW",
    "TimmEncoder",
    "WeightsError",
    "WeightsNotFoundError",
    "load_encoder",
]

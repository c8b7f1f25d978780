"""Frozen networks on device arrays: embeddings and scores, each with the lineage of its weights."""

from curator_dali.models.aesthetic import AestheticPredictor
from curator_dali.models.backbones import TimmEncoder
from curator_dali.models.base import ImageEncoder, NoTextTowerError
from curator_dali.models.clip import CLIPImageEncoder
from curator_dali.models.efficientnet import EfficientNetLite0
from curator_dali.models.loading import load_encoder
from curator_dali.models.locating import WeightsNotFoundError
from curator_dali.models.nsfw import NSFWClassifier
from curator_dali.models.scorers import OpenNSFW
from curator_dali.models.weights import WeightsError

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

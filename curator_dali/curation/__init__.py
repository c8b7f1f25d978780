"""Curation: a source through the loader and the stages, here or on a cluster, resumable at every part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_dali.curation.config import Settings, check_file, read_config
from curator_dali.curation.fields import add_columns, read_fields
from curator_dali.curation.run import Curation, curate
from curator_dali.curation.thresholds import rethreshold, stages_of
from curator_dali.curation.worker import DECODE_CHECK_VIEW
from curator_dali.curation.write import Write

if TYPE_CHECKING:
    from curator_dali.curation.ray_executor import RayExecutor, find_killers

__all__ = [
    "DECODE_CHECK_VIEW",
    "Curation",
    "RayExecutor",
    "Settings",
    "Write",
    "add_columns",
    "check_file",
    "curate",
    "find_killers",
    "read_config",
    "read_fields",
    "rethreshold",
    "stages_of",
]


def __getattr__(name: str) -> Any:
    """Import the executor on a Ray cluster at its first use, because that imports Ray."""
    if name in ("RayExecutor", "find_killers"):
        from curator_dali.curation import ray_executor

        return getattr(ray_executor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

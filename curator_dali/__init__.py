"""curator_dali: a GPU-native image loader and curation toolkit on NVIDIA DALI.

Every name is imported on first use, so that `import curator_dali` needs neither CUDA nor DALI nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from curator_dali._version import __version__ as __version__

if TYPE_CHECKING:
    from curator_dali import transforms
    from curator_dali.batch.batch import ImageBatch, Task, concat, contact_sheet
    from curator_dali.batch.image import ImageObject
    from curator_dali.curation.run import Curation, curate
    from curator_dali.curation.thresholds import rethreshold, stages_of
    from curator_dali.errors import (
        CuratorDaliError,
        ImageError,
        OutputError,
        PassEndedError,
        SourceError,
        StageError,
        TooManyErrors,
    )
    from curator_dali.index.index import Index, open_index, write_index
    from curator_dali.loader.loader import ImageLoader
    from curator_dali.loader.results import LoaderStats, write_errors
    from curator_dali.report.matches import DuplicateGroup, Found, Leak, duplicate_groups, leaks, search
    from curator_dali.report.page import write_report
    from curator_dali.report.report import Report
    from curator_dali.sampling.buckets import Buckets
    from curator_dali.sampling.order import Position, Shard, Shuffle
    from curator_dali.sources.base import Source
    from curator_dali.sources.folder import FolderSource
    from curator_dali.sources.memory import MemorySource
    from curator_dali.sources.mixture import Mixture
    from curator_dali.sources.open import open_source
    from curator_dali.sources.parquet import ParquetSource
    from curator_dali.sources.subset import Subset
    from curator_dali.sources.tar import TarSource
    from curator_dali.stages.base import Stage
    from curator_dali.stages.deduplicate import Deduplicate
    from curator_dali.stages.embed import NSFW, Aesthetic, CLIPScore, Embed, ZeroShotTags
    from curator_dali.stages.filter import Filter
    from curator_dali.stages.quality import Quality

_HOME = {
    "Aesthetic": "stages.embed",
    "Buckets": "sampling.buckets",
    "CLIPScore": "stages.embed",
    "Curation": "curation.run",
    "CuratorDaliError": "errors",
    "Deduplicate": "stages.deduplicate",
    "DuplicateGroup": "report.matches",
    "Embed": "stages.embed",
    "Filter": "stages.filter",
    "FolderSource": "sources.folder",
    "Found": "report.matches",
    "ImageBatch": "batch.batch",
    "ImageError": "errors",
    "ImageLoader": "loader.loader",
    "ImageObject": "batch.image",
    "Index": "index.index",
    "Leak": "report.matches",
    "LoaderStats": "loader.results",
    "MemorySource": "sources.memory",
    "Mixture": "sources.mixture",
    "NSFW": "stages.embed",
    "OutputError": "errors",
    "ParquetSource": "sources.parquet",
    "PassEndedError": "errors",
    "Position": "sampling.order",
    "Quality": "stages.quality",
    "Report": "report.report",
    "Shard": "sampling.order",
    "Shuffle": "sampling.order",
    "Source": "sources.base",
    "SourceError": "errors",
    "Stage": "stages.base",
    "StageError": "errors",
    "Subset": "sources.subset",
    "TarSource": "sources.tar",
    "Task": "batch.batch",
    "TooManyErrors": "errors",
    "ZeroShotTags": "stages.embed",
    "concat": "batch.batch",
    "contact_sheet": "batch.batch",
    "curate": "curation.run",
    "duplicate_groups": "report.matches",
    "leaks": "report.matches",
    "open_index": "index.index",
    "open_source": "sources.open",
    "rethreshold": "curation.thresholds",
    "search": "report.matches",
    "stages_of": "curation.thresholds",
    "write_errors": "loader.results",
    "write_index": "index.index",
    "write_report": "report.page",
}

__all__ = [
    "NSFW",
    "Aesthetic",
    "Buckets",
    "CLIPScore",
    "Curation",
    "CuratorDaliError",
    "Deduplicate",
    "DuplicateGroup",
    "Embed",
    "Filter",
    "FolderSource",
    "Found",
    "ImageBatch",
    "ImageError",
    "ImageLoader",
    "ImageObject",
    "Index",
    "Leak",
    "LoaderStats",
    "MemorySource",
    "Mixture",
    "OutputError",
    "ParquetSource",
    "PassEndedError",
    "Position",
    "Quality",
    "Report",
    "Shard",
    "Shuffle",
    "Source",
    "SourceError",
    "Stage",
    "StageError",
    "Subset",
    "TarSource",
    "Task",
    "TooManyErrors",
    "ZeroShotTags",
    "concat",
    "contact_sheet",
    "curate",
    "duplicate_groups",
    "leaks",
    "open_index",
    "open_source",
    "rethreshold",
    "search",
    "stages_of",
    "transforms",
    "write_errors",
    "write_index",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "transforms":
        return importlib.import_module("curator_dali.transforms")
    if name not in _HOME:
        raise AttributeError(f"module 'curator_dali' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"curator_dali.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

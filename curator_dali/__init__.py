"""curator_dali: a GPU-native image loader and curation toolkit on NVIDIA DALI.

Every name is imported on first use, so that `import curator_dali` needs neither CUDA nor DALI nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from curator_dali._version import __version__ as __version__

if TYPE_CHECKING:
    from curator_dali import transforms
    from curator_dali.batch import ImageBatch, ImageObject, Task, contact_sheet
    from curator_dali.curation import Curation, curate, rethreshold, stages_of
    from curator_dali.errors import (
        CuratorDaliError,
        ImageError,
        OutputError,
        PassEndedError,
        SourceError,
        StageError,
        TooManyErrors,
    )
    from curator_dali.indexing import Index, open_index, write_index
    from curator_dali.joining import concat
    from curator_dali.loader import ImageLoader
    from curator_dali.report import Report
    from curator_dali.reporting.writing import write_report
    from curator_dali.sampling import Buckets, Position, Shard, Shuffle
    from curator_dali.searching import DuplicateGroup, Found, Leak, duplicate_groups, leaks, search
    from curator_dali.sources import (
        FolderSource,
        MemorySource,
        Mixture,
        ParquetSource,
        Source,
        Subset,
        TarSource,
        open_source,
    )
    from curator_dali.stages import (
        NSFW,
        Aesthetic,
        CLIPScore,
        Deduplicate,
        Embed,
        Filter,
        Quality,
        Stage,
        ZeroShotTags,
    )
    from curator_dali.stats import LoaderStats, write_errors

_HOME = {
    "Aesthetic": "stages",
    "Buckets": "sampling",
    "CLIPScore": "stages",
    "Curation": "curation",
    "CuratorDaliError": "errors",
    "Deduplicate": "stages",
    "DuplicateGroup": "searching",
    "Embed": "stages",
    "Filter": "stages",
    "FolderSource": "sources",
    "Found": "searching",
    "ImageBatch": "batch",
    "ImageError": "errors",
    "ImageLoader": "loader",
    "ImageObject": "batch",
    "Index": "indexing",
    "Leak": "searching",
    "LoaderStats": "stats",
    "MemorySource": "sources",
    "Mixture": "sources",
    "NSFW": "stages",
    "OutputError": "errors",
    "PassEndedError": "errors",
    "ParquetSource": "sources",
    "Position": "sampling",
    "Quality": "stages",
    "Report": "report",
    "Shard": "sampling",
    "Shuffle": "sampling",
    "Source": "sources",
    "SourceError": "errors",
    "Stage": "stages",
    "StageError": "errors",
    "Subset": "sources",
    "TarSource": "sources",
    "Task": "batch",
    "TooManyErrors": "errors",
    "ZeroShotTags": "stages",
    "concat": "joining",
    "contact_sheet": "batch",
    "curate": "curation",
    "duplicate_groups": "searching",
    "leaks": "searching",
    "open_index": "indexing",
    "open_source": "sources",
    "rethreshold": "curation",
    "search": "searching",
    "stages_of": "curation",
    "write_errors": "stats",
    "write_index": "indexing",
    "write_report": "reporting.writing",
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

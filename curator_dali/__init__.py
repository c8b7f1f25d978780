"""curator_dali: a GPU-native image loader and curation toolkit on NVIDIA DALI.

Every name is imported on first use, so that `import curator_dali` needs neither CUDA nor DALI nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from curator_dali import transforms
    from curator_dali.batch import ImageBatch, ImageObject, Task
    from curator_dali.display import contact_sheet
    from curator_dali.errors import CuratorDaliError, ImageError, OutputError, SourceError, TooManyErrors, write_errors
    from curator_dali.joining import concat
    from curator_dali.loader import ImageLoader
    from curator_dali.sampling import Buckets, Position, Shard, Shuffle
    from curator_dali.sources import FolderSource, MemorySource, Mixture, ParquetSource, Source, TarSource, open_source
    from curator_dali.stats import LoaderStats

_HOME = {
    "Buckets": "sampling",
    "CuratorDaliError": "errors",
    "FolderSource": "sources",
    "ImageBatch": "batch",
    "ImageError": "errors",
    "ImageLoader": "loader",
    "ImageObject": "batch",
    "LoaderStats": "stats",
    "MemorySource": "sources",
    "Mixture": "sources",
    "OutputError": "errors",
    "ParquetSource": "sources",
    "Position": "sampling",
    "Shard": "sampling",
    "Shuffle": "sampling",
    "Source": "sources",
    "SourceError": "errors",
    "TarSource": "sources",
    "Task": "batch",
    "TooManyErrors": "errors",
    "concat": "joining",
    "contact_sheet": "display",
    "open_source": "sources",
    "write_errors": "errors",
}

__all__ = [
    "Buckets",
    "CuratorDaliError",
    "FolderSource",
    "ImageBatch",
    "ImageError",
    "ImageLoader",
    "ImageObject",
    "LoaderStats",
    "MemorySource",
    "Mixture",
    "OutputError",
    "ParquetSource",
    "Position",
    "Shard",
    "Shuffle",
    "Source",
    "SourceError",
    "TarSource",
    "Task",
    "TooManyErrors",
    "concat",
    "contact_sheet",
    "open_source",
    "transforms",
    "write_errors",
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

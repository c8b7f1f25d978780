"""curator_dali: a GPU-native image loader and curation toolkit on NVIDIA DALI.

Every name is imported on first use, so that `import curator_dali` needs neither CUDA nor DALI nor PyTorch.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from curator_dali import errors
from curator_dali._version import __version__ as __version__

if TYPE_CHECKING:
    from curator_dali import transforms
    from curator_dali.batch import ImageBatch, ImageObject, Task, concat, contact_sheet
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
    from curator_dali.index import Index, open_index, write_index
    from curator_dali.loader import ImageLoader, LoaderStats, write_errors
    from curator_dali.report import DuplicateGroup, Found, Leak, Report, duplicate_groups, leaks, search, write_report
    from curator_dali.sampling import Buckets, Position, Shard, Shuffle
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
    from curator_dali.stages import NSFW, Aesthetic, CLIPScore, Deduplicate, Embed, Filter, Quality, Stage, ZeroShotTags

_NAMES = {
    "batch": ("ImageBatch", "ImageObject", "Task", "concat", "contact_sheet"),
    "curation": ("Curation", "curate", "rethreshold", "stages_of"),
    "errors": (
        "CuratorDaliError",
        "ImageError",
        "OutputError",
        "PassEndedError",
        "SourceError",
        "StageError",
        "TooManyErrors",
    ),
    "index": ("Index", "open_index", "write_index"),
    "loader": ("ImageLoader", "LoaderStats", "write_errors"),
    "report": ("DuplicateGroup", "Found", "Leak", "Report", "duplicate_groups", "leaks", "search", "write_report"),
    "sampling": ("Buckets", "Position", "Shard", "Shuffle"),
    "sources": (
        "FolderSource",
        "MemorySource",
        "Mixture",
        "ParquetSource",
        "Source",
        "Subset",
        "TarSource",
        "open_source",
    ),
    "stages": ("Aesthetic", "CLIPScore", "Deduplicate", "Embed", "Filter", "NSFW", "Quality", "Stage", "ZeroShotTags"),
}
_HOME = {name: home for home, names in _NAMES.items() for name in names}
# Modules of version 0.1.0 and of those before: their names are in what these versions have pickled.
_MOVED = {
    "counts": "report.selection",
    "curation.executors": "curation.worker",
    "curation.rethresholding": "curation.thresholds",
    "curation.settings": "curation.config",
    "display": "view",
    "display.batches": "view.sheets",
    "display.drawing": "batch.batch",
    "display.plots": "view.plots",
    "duplicates": "report.matches",
    "image": "batch.image",
    "indexing": "index",
    "indexing.digests": "index.lookup",
    "indexing.hashes": "index.lookup",
    "indexing.index": "index.index",
    "indexing.vectors": "index.lookup",
    "indexing.writing": "index.index",
    "joining": "batch.batch",
    "models.aesthetic": "models.scorers",
    "models.efficientnet": "models.backbones",
    "models.loading": "models.backbones",
    "models.locating": "models.weights",
    "models.nsfw": "models.scorers",
    "models.open_nsfw": "models.scorers",
    "models.timm": "models.backbones",
    "nemo.convert": "nemo.tasks",
    "nemo.curate": "nemo.stages",
    "nemo.read": "nemo.stages",
    "nemo.split": "nemo.tasks",
    "ordering": "loader.state",
    "padding": "torch",
    "ray.actors": "curation.ray_executor",
    "ray.executor": "curation.ray_executor",
    "reporting": "report",
    "reporting.selection": "report.selection",
    "reporting.writing": "report.page",
    "sampling.grouping": "sampling.buckets",
    "sampling.mixing": "sampling.mixture",
    "sampling.shard": "sampling.order",
    "sampling.shuffle": "sampling.order",
    "searching": "report.matches",
    "similarity.grouping": "similarity.groups",
    "sources.arenas": "sources.tar",
    "sources.named": "sources.row_groups",
    "sources.opening": "sources.open",
    "sources.storage": "io.ranges",
    "stages.scores": "stages.embed",
    "stages.text": "stages.embed",
    "stats": "loader.results",
    "targets": "torch",
    "transforms.applying": "transforms.graph",
    "transforms.bucketing": "transforms.geometry",
    "transforms.crops": "transforms.geometry",
    "transforms.distortions": "transforms.colour",
    "transforms.grey": "transforms.colour",
    "transforms.normalize": "transforms.colour",
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


class _MovedModules:
    """Finds the modules of `_MOVED`, each of which has the names of the module that took its place.

    As finder and loader it has no base class: `importlib.abc` would triple the time that importing the package takes.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, module = name.partition(".")
        if package != "curator_dali" or module not in _MOVED:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: ModuleType) -> None:
        _forward(module, _MOVED[module.__name__.partition(".")[2]])


def _forward(module: ModuleType, home: str, *names: str) -> None:
    """Let a module import names that it lacks, all or some, from the module `home` at their first use."""

    def find(name: str) -> Any:
        if names and name not in names:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"curator_dali.{home}"), name)

    module.__dict__["__getattr__"] = find


# Before Python's own finders: to them an old folder in which `git pull` left a cache is a package without names.
sys.meta_path.insert(0, _MovedModules())
_forward(errors, "loader.results", "ErrorList", "write_errors")

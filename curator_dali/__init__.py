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

if TYPE_CHECKING:  # each name twice: that is how type checkers know that it is public
    from curator_dali import transforms as transforms
    from curator_dali.batch import ImageBatch as ImageBatch
    from curator_dali.batch import ImageObject as ImageObject
    from curator_dali.batch import Task as Task
    from curator_dali.batch import concat as concat
    from curator_dali.batch import contact_sheet as contact_sheet
    from curator_dali.curation import Curation as Curation
    from curator_dali.curation import Write as Write
    from curator_dali.curation import curate as curate
    from curator_dali.curation import rethreshold as rethreshold
    from curator_dali.curation import stages_of as stages_of
    from curator_dali.errors import CuratorDaliError as CuratorDaliError
    from curator_dali.errors import ImageError as ImageError
    from curator_dali.errors import OutputError as OutputError
    from curator_dali.errors import PassEndedError as PassEndedError
    from curator_dali.errors import SourceError as SourceError
    from curator_dali.errors import StageError as StageError
    from curator_dali.errors import TooManyErrors as TooManyErrors
    from curator_dali.index import Index as Index
    from curator_dali.index import open_index as open_index
    from curator_dali.index import write_index as write_index
    from curator_dali.io import Cache as Cache
    from curator_dali.loader import ImageLoader as ImageLoader
    from curator_dali.loader import LoaderStats as LoaderStats
    from curator_dali.loader import write_errors as write_errors
    from curator_dali.preparation import Prepared as Prepared
    from curator_dali.preparation import prepare as prepare
    from curator_dali.report import DuplicateGroup as DuplicateGroup
    from curator_dali.report import Found as Found
    from curator_dali.report import Leak as Leak
    from curator_dali.report import Report as Report
    from curator_dali.report import duplicate_groups as duplicate_groups
    from curator_dali.report import leaks as leaks
    from curator_dali.report import search as search
    from curator_dali.report import write_report as write_report
    from curator_dali.sampling import Buckets as Buckets
    from curator_dali.sampling import Position as Position
    from curator_dali.sampling import Shard as Shard
    from curator_dali.sampling import Shuffle as Shuffle
    from curator_dali.sources import FolderSource as FolderSource
    from curator_dali.sources import Join as Join
    from curator_dali.sources import MemorySource as MemorySource
    from curator_dali.sources import Mixture as Mixture
    from curator_dali.sources import ParquetSource as ParquetSource
    from curator_dali.sources import Source as Source
    from curator_dali.sources import Subset as Subset
    from curator_dali.sources import TarSource as TarSource
    from curator_dali.sources import View as View
    from curator_dali.sources import open_source as open_source
    from curator_dali.stages import NSFW as NSFW
    from curator_dali.stages import Aesthetic as Aesthetic
    from curator_dali.stages import CLIPScore as CLIPScore
    from curator_dali.stages import Deduplicate as Deduplicate
    from curator_dali.stages import Embed as Embed
    from curator_dali.stages import Exclude as Exclude
    from curator_dali.stages import FileInfo as FileInfo
    from curator_dali.stages import Filter as Filter
    from curator_dali.stages import Include as Include
    from curator_dali.stages import Quality as Quality
    from curator_dali.stages import Stage as Stage
    from curator_dali.stages import ZeroShotTags as ZeroShotTags

_NAMES = {
    "batch": ("ImageBatch", "ImageObject", "Task", "concat", "contact_sheet"),
    "curation": ("Curation", "Write", "curate", "rethreshold", "stages_of"),
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
    "io": ("Cache",),
    "loader": ("ImageLoader", "LoaderStats", "write_errors"),
    "preparation": ("Prepared", "prepare"),
    "report": ("DuplicateGroup", "Found", "Leak", "Report", "duplicate_groups", "leaks", "search", "write_report"),
    "sampling": ("Buckets", "Position", "Shard", "Shuffle"),
    "sources": (
        "FolderSource",
        "Join",
        "MemorySource",
        "Mixture",
        "ParquetSource",
        "Source",
        "Subset",
        "TarSource",
        "View",
        "open_source",
    ),
    "stages": (
        "Aesthetic",
        "CLIPScore",
        "Deduplicate",
        "Embed",
        "Exclude",
        "FileInfo",
        "Filter",
        "Include",
        "NSFW",
        "Quality",
        "Stage",
        "ZeroShotTags",
    ),
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

__all__ = sorted([*_HOME, "transforms"])


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

"""Where encoded images come from: folders, WebDataset tars, Parquet files and memory."""

from curator_dali.sources.base import HEADER_DTYPE, EncodedBatch, Source
from curator_dali.sources.folder import FolderSource
from curator_dali.sources.memory import MemorySource
from curator_dali.sources.mixture import Mixture
from curator_dali.sources.open import open_source, reopen
from curator_dali.sources.parquet import ParquetSource
from curator_dali.sources.subset import Subset
from curator_dali.sources.tar import TarSource

__all__ = [
    "HEADER_DTYPE",
    "EncodedBatch",
    "FolderSource",
    "MemorySource",
    "Mixture",
    "ParquetSource",
    "Source",
    "Subset",
    "TarSource",
    "open_source",
    "reopen",
]

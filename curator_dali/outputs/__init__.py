"""Where a curation's results go: tars of original bytes, Parquet of rows, and a manifest of what is finished."""

from __future__ import annotations

from curator_dali.outputs.manifest import Manifest, Part
from curator_dali.outputs.parquet import ParquetWriter, RowFiles, RowSchema
from curator_dali.outputs.part import PartWriter
from curator_dali.outputs.tar import ShardedTarWriter, TarWriter

__all__ = [
    "Manifest",
    "ParquetWriter",
    "Part",
    "PartWriter",
    "RowFiles",
    "RowSchema",
    "ShardedTarWriter",
    "TarWriter",
]

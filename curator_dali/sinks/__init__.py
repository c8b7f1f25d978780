"""Where a curation's results go: tars of original bytes, Parquet of rows, and a manifest of what is finished."""

from __future__ import annotations

from curator_dali.sinks.manifest import Manifest
from curator_dali.sinks.parquet import ParquetWriter, RowSchema
from curator_dali.sinks.part import PartWriter
from curator_dali.sinks.records import Part
from curator_dali.sinks.rows import RowFiles
from curator_dali.sinks.tar import ShardedTarWriter, TarWriter

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

"""The folder that a curation leaves, written and read: tars of original bytes, Parquet of rows, a manifest."""

from __future__ import annotations

from curator_dali.outputs.manifest import Manifest, Part, labels_of, lock, part_name
from curator_dali.outputs.parquet import (
    EMBEDDING,
    RowFiles,
    RowSchema,
    RowSubset,
    read_embeddings,
    read_types,
    to_numpy,
)
from curator_dali.outputs.part import PartWriter
from curator_dali.outputs.tar import CURATION

__all__ = [
    "CURATION",
    "EMBEDDING",
    "Manifest",
    "Part",
    "PartWriter",
    "RowFiles",
    "RowSchema",
    "RowSubset",
    "labels_of",
    "lock",
    "part_name",
    "read_embeddings",
    "read_types",
    "to_numpy",
]

"""The folder that a curation leaves, written and read: tars of original bytes, Parquet of rows, a manifest."""

from __future__ import annotations

from curator_dali.outputs.fields import METADATA, FieldColumns, stored_type
from curator_dali.outputs.hugging_face import LAYOUT_COLUMNS, MEMBERS, is_loadable
from curator_dali.outputs.manifest import IMAGES, Function, Manifest, Part, labels_of, lock, part_name, spell_former
from curator_dali.outputs.parquet import (
    DECIDED,
    DECODE,
    DTYPES,
    EMBEDDING,
    FIXED_COLUMNS,
    LOADED,
    RowSchema,
)
from curator_dali.outputs.part import PartWriter
from curator_dali.outputs.row_files import (
    EmbeddingReader,
    RowFiles,
    RowSubset,
    read_types,
    to_numpy,
)
from curator_dali.outputs.tar import CURATION

__all__ = [
    "CURATION",
    "DECIDED",
    "DECODE",
    "DTYPES",
    "EMBEDDING",
    "FIXED_COLUMNS",
    "IMAGES",
    "LAYOUT_COLUMNS",
    "LOADED",
    "MEMBERS",
    "METADATA",
    "EmbeddingReader",
    "FieldColumns",
    "Function",
    "Manifest",
    "Part",
    "PartWriter",
    "RowFiles",
    "RowSchema",
    "RowSubset",
    "is_loadable",
    "labels_of",
    "lock",
    "part_name",
    "read_types",
    "spell_former",
    "stored_type",
    "to_numpy",
]

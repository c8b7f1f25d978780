"""Where encoded images come from: folders, WebDataset tars, Parquet files and memory."""

from __future__ import annotations

from curator_dali.sources import dataset_index
from curator_dali.sources.base import (
    CLAIMED,
    HEADER_DTYPE,
    EncodedBatch,
    Head,
    ReadAhead,
    Source,
    Streamed,
    image_extension,
    image_member,
    kind_of_type,
    merge_types,
)
from curator_dali.sources.claimed import ClaimedSizes
from curator_dali.sources.curated import View
from curator_dali.sources.folder import FolderSource
from curator_dali.sources.folder_index import FolderTable, iterate_texts, list_files
from curator_dali.sources.header_columns import Codecs
from curator_dali.sources.join import Join
from curator_dali.sources.known import select_names
from curator_dali.sources.listing import expand_braces
from curator_dali.sources.memory import MemorySource
from curator_dali.sources.mixture import Mixture
from curator_dali.sources.open import ShardList, find_shards, open_source, reopen
from curator_dali.sources.parquet import ParquetSource, describe_parquet
from curator_dali.sources.recorded import open_recorded, read_shards, record_shards
from curator_dali.sources.row_groups import read_bytes
from curator_dali.sources.sidecars import ABSENT, SIDECARS, dump_fields, is_same, merge_rest, restore_types, to_text
from curator_dali.sources.subset import DerivedSource, Subset, Without
from curator_dali.sources.tar import TarSource, index_of

__all__ = [
    "ABSENT",
    "CLAIMED",
    "HEADER_DTYPE",
    "SIDECARS",
    "ClaimedSizes",
    "Codecs",
    "DerivedSource",
    "EncodedBatch",
    "FolderSource",
    "FolderTable",
    "Head",
    "Join",
    "MemorySource",
    "Mixture",
    "ParquetSource",
    "ReadAhead",
    "ShardList",
    "Source",
    "Streamed",
    "Subset",
    "TarSource",
    "View",
    "Without",
    "dataset_index",
    "describe_parquet",
    "dump_fields",
    "expand_braces",
    "find_shards",
    "image_extension",
    "image_member",
    "index_of",
    "is_same",
    "iterate_texts",
    "kind_of_type",
    "list_files",
    "merge_rest",
    "merge_types",
    "open_recorded",
    "open_source",
    "read_bytes",
    "read_shards",
    "record_shards",
    "reopen",
    "restore_types",
    "select_names",
    "to_text",
]

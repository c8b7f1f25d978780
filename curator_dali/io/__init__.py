"""Files and stores, here or behind fsspec: written whole or not at all, listed, and read in ranges."""

from __future__ import annotations

from curator_dali.io import store
from curator_dali.io.cache import Cache, clear_cache, read_cache_info, use_cache
from curator_dali.io.files import (
    DEEP,
    IMAGE_EXTENSIONS,
    AtomicFile,
    Written,
    cache_path,
    check_depth,
    make_folder,
    open_regular,
    parse_json,
    read_regular,
    write_file,
)
from curator_dali.io.links import SAMPLE, RemoteReader
from curator_dali.io.lru import LRU
from curator_dali.io.ranges import (
    Outcome,
    Request,
    Storage,
    ask,
    ask_listing,
    common_name,
    filesystem,
    fingerprint,
    strip_query,
)
from curator_dali.io.remote import LARGEST_FILE, PermanentError, is_http, is_remote, one_line, strip_signature
from curator_dali.io.stats import Stat, content_hash, stat_of
from curator_dali.io.store import differences, explained, join, prepare_folder, printable
from curator_dali.io.tables import Table, open_table, parse_csv, read_names

__all__ = [
    "DEEP",
    "IMAGE_EXTENSIONS",
    "LARGEST_FILE",
    "LRU",
    "SAMPLE",
    "AtomicFile",
    "Cache",
    "Outcome",
    "PermanentError",
    "RemoteReader",
    "Request",
    "Stat",
    "Storage",
    "Table",
    "Written",
    "ask",
    "ask_listing",
    "cache_path",
    "check_depth",
    "clear_cache",
    "common_name",
    "content_hash",
    "differences",
    "explained",
    "filesystem",
    "fingerprint",
    "is_http",
    "is_remote",
    "join",
    "make_folder",
    "one_line",
    "open_regular",
    "open_table",
    "parse_csv",
    "parse_json",
    "prepare_folder",
    "printable",
    "read_cache_info",
    "read_names",
    "read_regular",
    "stat_of",
    "store",
    "strip_query",
    "strip_signature",
    "use_cache",
    "write_file",
]

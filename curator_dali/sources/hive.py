"""Fields that the folders of partitioned files say: `label=cat/part-0.parquet`, as Hive and Spark write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from curator_dali.io.ranges import strip_query
from curator_dali.sources.listing import common_folder

__all__ = ["partition_fields"]

_FIELD = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_fields(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Read the fields in the names of each file's folders: those below the common folder of all files.

    The `key=value` names that this folder's own path ends with say fields, too. Those further up say none, so that a
    copy of a data set elsewhere is the same data set. A value is an integer where all values of its key are such, else
    text. `__HIVE_DEFAULT_PARTITION__` is None.

    Args:
        urls: Paths or URLs of files.

    Returns:
        Key -> value, for each file.
    """
    found: list[dict[str, Any]] = []
    cache: dict[str, dict[str, Any]] = {}  # by folder: most files share theirs
    paths = list(map(strip_query, urls))
    above = common_folder(paths) if paths else ""
    while _FIELD.fullmatch(above.rpartition("/")[2]):
        above = above.rpartition("/")[0]
    for path in paths:
        folder = path.rpartition("/")[0]
        if folder not in cache:
            below = folder[len(above) :].split("/") if "=" in folder else ()
            matches = filter(None, map(_FIELD.fullmatch, below))
            cache[folder] = {unquote(m[1]): None if m[2] == _NULL else unquote(m[2]) for m in matches}
        found.append(cache[folder])
    texts: dict[str, set[str]] = {}
    for fields in cache.values():
        for key, value in fields.items():
            texts.setdefault(key, set()).update(() if value is None else (value,))
    integers = {key for key, values in texts.items() if all(map(_INTEGER.fullmatch, values))}
    for fields in cache.values():
        fields.update({key: int(value) for key, value in fields.items() if key in integers and value is not None})
    return found

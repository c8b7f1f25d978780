"""JSON and the like of unknown origin: parsed, or refused in words."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["DEEP", "MAX_DEPTH", "check_depth", "parse_json"]

MAX_DEPTH = 100
"""Levels that lists and objects may lie in each other. Python compares and writes some hundreds at the most."""

DEEP = f"lists and objects lie in each other deeper than {MAX_DEPTH} levels"


def parse_json(data: str | bytes | bytearray) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: It is none, or lists and objects lie deeper in each other than `MAX_DEPTH`.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(DEEP) from None
    brackets = (b"[", b"{") if isinstance(data, (bytes, bytearray)) else ("[", "{")
    if sum(map(data.count, brackets)) > MAX_DEPTH:  # type: ignore[arg-type]
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Refuse lists and dicts that lie in each other deeper than `MAX_DEPTH`.

    Args:
        value: What a document says. No list is in it twice, as aliases of YAML may be.

    Raises:
        ValueError: They do.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(DEEP)

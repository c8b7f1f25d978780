"""JSON of unknown origin: parsed, or refused in words."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["MAX_DEPTH", "parse_json"]

MAX_DEPTH = 100
"""Levels that lists and objects may lie in each other. Python compares and writes some hundreds at the most."""


def parse_json(data: str | bytes | bytearray) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: It is none, or lists and objects lie deeper in each other than `MAX_DEPTH`.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(_DEEP) from None
    brackets = (b"[", b"{") if isinstance(data, (bytes, bytearray)) else ("[", "{")
    if sum(map(data.count, brackets)) > MAX_DEPTH:  # type: ignore[arg-type]
        _check_depth(value)
    return value


_DEEP = f"lists and objects lie in each other deeper than {MAX_DEPTH} levels"


def _check_depth(value: Any) -> None:
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
    raise ValueError(_DEEP)

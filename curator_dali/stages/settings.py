"""Settings of stages as plain JSON, so that two runs can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import CodeType
from typing import Any

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """A setting as JSON has it.

    A function is its module, its name and a digest of what it does (not of what it refers to), so that one that was
    changed meanwhile is another. Any other object is its `name`, or its `repr`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "__qualname__"):
        code = getattr(value, "__code__", None)
        digest = f" {hashlib.blake2b(_essence(code).encode(), digest_size=8).hexdigest()}" if code else ""
        return f"{value.__module__}:{value.__qualname__}{digest}"
    if hasattr(value, "__fspath__"):
        return str(value)
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else repr(value)


def _essence(code: CodeType) -> str:
    """What a function does, the same in every process with the same Python."""
    parts = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts.append(_essence(constant))
        else:  # a set has its order from the process
            parts.append(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant))
    return "\n".join(parts)

"""Tables in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curator_dali.view.text import escape, number

__all__ = ["facts", "table"]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table. Numbers stand to the right, with separators where they are whole.

    Args:
        header: A name a column.
        rows: Texts, numbers or None, one a column.
    """
    numeric = [
        bool(rows) and all(row[column] is None or _is_number(row[column]) for row in rows)
        for column in range(len(header))
    ]
    kinds = [' class="cd-num"' if yes else "" for yes in numeric]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(header, kinds, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{_value(value)}</td>' for value, kind in zip(row, kinds, strict=True))}</tr>"
        for row in rows
    )
    return f'<table class="cd-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and their values, a line each; None and "" are left out."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_value(value)}</td></tr>'
        for name, value in values.items()
        if value is not None and value != ""
    )
    return f'<table class="cd-table"><tbody>{body}</tbody></table>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(number(value))

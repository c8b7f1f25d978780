"""Rows of an output as the cards of a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curator_dali import html
from curator_dali.reporting.pictures import Picture
from curator_dali.reporting.scan import Row

__all__ = ["cards_of"]

_MOST_FACTS = 3


def cards_of(
    rows: Sequence[Row],
    pictures: Mapping[int, Picture],
    sources: Mapping[int, str],
    scores: Sequence[str] = (),
    marked: bool = False,
    without: str = "no picture",
) -> list[html.Card]:
    """A card a row.

    Args:
        rows: Of the output.
        pictures: Index in the source -> picture, of those that there are.
        sources: Index -> its thumbnail's data URI.
        scores: Columns to tell of an image that was kept, the most important first.
        marked: Whether to say "kept" or "dropped".
        without: Why there is no picture of a row that has none, and did not fail.
    """
    return [
        _card(row, pictures.get(row["index"]), sources.get(row["index"], ""), scores, marked, without) for row in rows
    ]


def _card(
    row: Row, picture: Picture | None, source: str, scores: Sequence[str], marked: bool, without: str
) -> html.Card:
    size = (row.get("width") or 0, row.get("height") or 0)
    known = all(size)
    facts = [f"{size[0]} × {size[1]}"] if known else []
    reason = str(row.get("reason") or "")
    failed = row["status"] == "failed"
    if reason and not failed:
        facts.append(reason)
    elif not failed:
        told = [f"{name} {html.number(row[name])}" for name in scores if _is_known(row.get(name))]
        facts += told[:_MOST_FACTS]
    return html.Card(
        source,
        width=size[0] if known else 4,
        height=size[1] if known else 3,
        title=str(row["image_id"]),
        facts=facts,
        text=picture.caption if picture else "",
        mark=row["status"] if marked else "",
        missing=reason if failed else without,
    )


def _is_known(value: Any) -> bool:
    return html.number(value) != ""

"""Contact sheets in HTML: justified rows of images, each with what is known of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from curator_dali.view.text import escape

__all__ = ["Card", "data_uri", "group", "sheet"]

_NARROWEST, _WIDEST = 0.8, 2.4  # aspects of a card; an image beyond them has bars at its sides
_ROW = 640  # pixels of a row where styles are stripped and the table stays a table
_HEIGHT = 132  # of an image there; as --h of the style sheet


@dataclass(frozen=True)
class Card:
    """One image of a sheet.

    Attributes:
        source: A `data:image/` URI or a relative link; "" shows an empty plate with the reason `missing`.
        width: Pixels of the original, for its shape.
        height: The same.
        title: The id.
        facts: Short values, shown in one line: `451 × 300`, `aesthetic 5.1`.
        text: The caption.
        mark: A word in colour: "kept", "dropped", or another one.
        missing: Why there is no picture.
    """

    source: str
    width: int
    height: int
    title: str
    facts: Sequence[str] = ()
    text: str = ""
    mark: str = ""
    missing: str = "no pixels"

    def __post_init__(self) -> None:
        scheme = self.source.partition(":")[0] if ":" in self.source.partition("/")[0] else ""
        if scheme and not self.source.startswith("data:image/"):
            raise ValueError(f"an image's source is {self.source[:60]!r}; give a data:image/ URI or a relative link")


def data_uri(encoded: bytes) -> str:
    """A JPEG as a URI, 4/3 of its bytes."""
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def sheet(cards: Sequence[Card]) -> str:
    """Images in rows of one height, whatever their shapes; they wrap to the width there is. Of none, ""."""
    if not cards:
        return ""
    rows: list[list[str]] = [[]]
    used = 0.0
    for card in cards:
        aspect = _aspect(card)
        if used and used + aspect * _HEIGHT > _ROW:
            rows.append([])
            used = 0.0
        used += aspect * _HEIGHT
        rows[-1].append(_cell(card, aspect))
    body = "".join(f'<tr role="presentation">{"".join(row)}</tr>' for row in rows)
    return f'<table class="cd-sheet" role="list"><tbody role="presentation">{body}</tbody></table>'


def group(title: str, cards: Sequence[Card], note: str = "", level: int = 4) -> str:
    """A heading and its images side by side: the duplicates of one picture, or what one rule dropped."""
    about = f" <span>{escape(note)}</span>" if note else ""
    return f"<h{level}>{escape(title)}{about}</h{level}>{sheet(cards)}"


def _aspect(card: Card) -> float:
    return min(max(card.width / max(card.height, 1), _NARROWEST), _WIDEST)


def _cell(card: Card, aspect: float) -> str:
    title = escape(card.title)
    if card.source:
        small = ' class="cd-small"' if 2 * max(card.height, card.width / _WIDEST) <= _HEIGHT else ""
        # both sides are what a viewer without styles goes by
        high = min(_HEIGHT, round(aspect * _HEIGHT * card.height / max(card.width, 1)))
        wide = max(1, round(high * card.width / max(card.height, 1)))
        picture = (
            f'<img src="{escape(card.source, len(card.source))}" width="{wide}" height="{max(high, 1)}" '
            f'alt="{title}" title="{title}"{small} loading="lazy">'
        )
    else:
        picture = f'<div class="cd-none">{escape(card.missing)}</div>'
    kind = f" cd-{card.mark}" if card.mark in ("kept", "dropped") else ""
    parts = [f'<div class="cd-id" title="{title}"><bdi>{title}</bdi></div>']
    parts += [f'<div class="cd-mark{kind}">{escape(card.mark)}</div>'] if card.mark else []
    parts += [f'<div class="cd-facts">{_facts(card.facts)}</div>'] if card.facts else []
    parts += [f'<div class="cd-text" dir="auto" title="{escape(card.text)}">{escape(card.text)}</div>'] * bool(
        card.text
    )
    return f'<td class="cd-card{kind}" role="listitem" style="--a:{aspect:.3f}">{picture}{"".join(parts)}</td>'


def _facts(values: Sequence[str]) -> str:
    """Short values, of which none is broken between two lines."""
    return " · ".join(f"<span>{escape(value)}</span>" for value in values)

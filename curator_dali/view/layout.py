"""What a page of several parts is laid out with: sections with anchors, figures in a grid, and a row of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curator_dali.view.text import escape

__all__ = ["beside", "contents", "figures", "section", "tiles"]


def section(name: str, title: str, *parts: str, note: str = "") -> str:
    """A part of a page with a heading; "" if there is nothing in it.

    Args:
        name: Its anchor: letters, digits and hyphens.
        title: Text.
        parts: What the other functions made.
        note: Text beside the title.

    Raises:
        ValueError: The name is no anchor.
    """
    if not name.replace("-", "").isalnum() or not name.isascii():
        raise ValueError(f"a section is named {name!r}; give letters, digits and hyphens")
    inner = "".join(parts)
    about = f" <span>{escape(note)}</span>" if note else ""
    return f'<section id="{name}"><h2>{escape(title)}{about}</h2>{inner}</section>' if inner else ""


def contents(sections: Mapping[str, str]) -> str:
    """Links to the sections of the page: anchor -> title."""
    links = "".join(f'<li><a href="#{escape(name)}">{escape(title)}</a></li>' for name, title in sections.items())
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else ""


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Numbers to be seen first: (number, what it is, a remark) each."""
    items = ""
    for number, what, remark in values:
        beside = f" <span>{escape(remark)}</span>" if remark else ""
        items += f"<div><dt>{escape(what)}</dt><dd>{escape(number)}{beside}</dd></div>"
    return f'<dl class="cd-tiles">{items}</dl>'


def figures(pairs: Sequence[tuple[str, str, str]]) -> str:
    """Charts beside each other where there is room: (title, chart, text beneath) each; the chart is HTML."""
    items = "".join(
        f"<figure><h3>{escape(title)}</h3>{chart}<figcaption>{escape(text)}</figcaption></figure>"
        for title, chart, text in pairs
    )
    return f'<div class="cd-figures">{items}</div>' if items else ""


def beside(parts: Sequence[str]) -> str:
    """Parts beside each other where there is room; "" for none."""
    items = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div class="cd-beside">{items}</div>' if items else ""

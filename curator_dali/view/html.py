"""HTML for notebooks and reports: pure functions on plain text and numbers, which know nothing of batches.

`block` makes what a notebook shows in a cell's output, `page` a file for a browser; both take parts that the other
functions make. All of them escape every text that they are given.

A notebook's output stands in somebody else's page, so everything is within `.cd`, the text takes that page's colour
and all other shades are made of the text's: light and dark themes work alike, also those nobody has heard of. Where
a viewer strips styles (code hosts do), what is left are plain tables, images and lists, which read well too.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curator_dali.errors import count

__all__ = [
    "WIDEST_CARD",
    "Card",
    "bars",
    "beside",
    "block",
    "contents",
    "count",
    "data_uri",
    "escape",
    "facts",
    "figures",
    "flow",
    "group",
    "histogram",
    "note",
    "number",
    "page",
    "section",
    "sheet",
    "table",
    "tiles",
]

# `.cd` is repeated where JupyterLab's own rules for tables (.jp-RenderedHTMLCommon td) would win otherwise.
_STYLE = """
.cd{color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));
font:13px/1.45 var(--jp-content-font-family,system-ui,-apple-system,"Segoe UI",sans-serif);
--cd-faint:color-mix(in srgb,currentColor 66%,transparent);--cd-line:color-mix(in srgb,currentColor 16%,transparent);
--cd-plate:color-mix(in srgb,currentColor 7%,transparent);--cd-bar:#4c86d8;--cd-good:#2f9e62;--cd-bad:#d9534f;
text-align:left;max-width:1240px;overflow-wrap:anywhere}
.cd p,.cd h3,.cd h4{margin:0 0 8px;padding:0}.cd h3{font-size:14px;font-weight:600}
.cd h4{font-size:13px;font-weight:600}
.cd h3:not(:first-of-type),.cd h4:not(:first-of-type){margin-top:18px}
.cd .cd-note,.cd h3 span,.cd h4 span{color:var(--cd-faint);font-weight:400}
.cd.cd.cd table{border:0;border-spacing:0;margin:0 0 8px;table-layout:auto;font-size:12px;background:none}
.cd.cd.cd td,.cd.cd.cd th{background:none;text-align:left;vertical-align:top;white-space:normal;max-width:none}
.cd.cd.cd tr{background:none}
.cd.cd.cd table.cd-table{display:block;overflow-x:auto;border-collapse:collapse;max-width:100%}
.cd.cd.cd .cd-table td,.cd.cd.cd .cd-table th{padding:4px 14px 4px 0;border:0;border-bottom:1px solid var(--cd-line)}
.cd.cd.cd .cd-table th{color:var(--cd-faint);font-weight:500;white-space:nowrap}
.cd.cd.cd .cd-table td{overflow-wrap:break-word;min-width:3em}
.cd.cd.cd .cd-table .cd-num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.cd.cd.cd table.cd-sheet{display:flex;flex-wrap:wrap;gap:14px 10px;width:100%;--h:132px}
.cd.cd.cd .cd-sheet tbody,.cd.cd.cd .cd-sheet tr{display:contents}
.cd.cd.cd table.cd-sheet::after{content:"";flex:9999 0 0px}
.cd.cd.cd .cd-sheet td{display:block;box-sizing:border-box;padding:0;margin:0;border:0;min-width:0;
flex:var(--a) 0 calc(var(--a)*var(--h));max-width:min(100%,calc(var(--a)*var(--h)*1.4))}
.cd.cd.cd img{display:block;box-sizing:border-box;width:100%;height:auto;aspect-ratio:var(--a);max-width:100%;margin:0;
object-fit:contain;background:var(--cd-plate);border-radius:4px}
.cd.cd.cd img.cd-small{image-rendering:pixelated}
.cd .cd-none{box-sizing:border-box;width:100%;aspect-ratio:var(--a);background:var(--cd-plate);border-radius:4px;
border:1px dashed var(--cd-line);color:var(--cd-faint);display:flex;align-items:center;justify-content:center;
font-size:11px;padding:6px;text-align:center}
.cd .cd-id{font-size:12px;font-weight:600;margin-top:5px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.cd .cd-facts{font-size:11px;color:var(--cd-faint);font-variant-numeric:tabular-nums}
.cd .cd-facts span{display:inline-block;max-width:100%}
.cd .cd-text{font-size:11.5px;line-height:1.35;display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;
overflow:hidden;unicode-bidi:isolate}
.cd .cd-mark{font-size:11px;font-weight:600}.cd .cd-mark.cd-kept{color:var(--cd-good)}
.cd .cd-mark.cd-dropped{color:var(--cd-bad)}
.cd .cd-kept img{outline:2px solid var(--cd-good)}
.cd.cd.cd .cd-one{display:flex;flex-wrap:wrap;gap:8px 22px;align-items:flex-start}
.cd .cd-one>div{flex:1 1 280px;min-width:0}.cd .cd-one>.cd-pic{flex:0 1 auto;max-width:100%}
.cd .cd-one>.cd-pic img{width:auto;max-height:300px}
.cd.cd.cd .cd-bars td{vertical-align:middle}.cd .cd-bar{display:block;height:10px;min-width:1px;border-radius:2px;
background:var(--cd-bar)}
.cd.cd.cd .cd-bars td.cd-track{width:45%;min-width:90px}
.cd svg{display:block;max-width:100%;height:auto;overflow:visible}.cd svg .cd-b{fill:var(--cd-bar)}
.cd svg .cd-o{fill:var(--cd-line)}.cd svg line{stroke:var(--cd-faint)}.cd svg .cd-t{stroke:var(--cd-bad);stroke-width:2}
.cd svg text{fill:var(--cd-faint);font:11px system-ui,sans-serif}
.cd.cd.cd .cd-bars th{white-space:normal;overflow-wrap:break-word}
.cd.cd.cd .cd-flow th{min-width:76px}.cd.cd.cd .cd-flow td{overflow-wrap:anywhere}
.cd.cd.cd .cd-flow th+td{min-width:7em}
@media(max-width:560px){.cd.cd.cd .cd-flow td.cd-track{display:none}
.cd.cd.cd .cd-table td,.cd.cd.cd .cd-table th{padding-right:9px}
.cd.cd.cd table.cd-sheet{--h:92px;gap:12px 8px}}
"""
_PAGE_STYLE = """:root{color-scheme:light dark;--cd-page:#fff;--cd-ink:#1f2328;--cd-link:#2460b8}
@media(prefers-color-scheme:dark){:root{--cd-page:#0f1216;--cd-ink:#e4e8ec;--cd-link:#7db0f5}}
body{margin:0;padding:20px clamp(14px,4vw,48px) 48px;background:var(--cd-page);color:var(--cd-ink)}
.cd{margin:0 auto}.cd h1{font-size:22px;line-height:1.3;margin:0 0 4px}
.cd h2{font-size:17px;line-height:1.3;margin:0 0 10px;padding-top:22px;border-top:1px solid var(--cd-line)}
.cd section{margin-top:30px}.cd h2 span{color:var(--cd-faint);font-weight:400;font-size:13px}
.cd section h3{margin-top:18px}.cd h2+h3,.cd section figure h3,.cd section .cd-note+h3{margin-top:0}
.cd nav ul{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:16px 0 0;padding:0}
.cd a{color:var(--cd-link)}
.cd .cd-tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:16px 0 0}
.cd .cd-tiles>div{background:var(--cd-plate);border-radius:6px;padding:10px 14px}
.cd .cd-tiles dt{color:var(--cd-faint)}.cd .cd-tiles dd{margin:0;font-size:22px;line-height:1.3;font-weight:600;
font-variant-numeric:tabular-nums}.cd .cd-tiles dd span{font-size:13px;font-weight:400;color:var(--cd-faint)}
.cd .cd-figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:26px 40px}
.cd figure{margin:0;min-width:0}.cd figcaption{color:var(--cd-faint);font-size:12px;margin-top:4px}
.cd .cd-warn{border-left:3px solid var(--cd-bad);padding:2px 0 2px 12px;margin:16px 0 0}
.cd .cd-figures svg{width:100%}
.cd .cd-beside{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:20px 32px}
.cd .cd-beside h3{margin:0 0 8px}.cd .cd-beside>div{min-width:0}
@media(max-width:560px){.cd .cd-tiles{grid-template-columns:1fr 1fr}.cd .cd-figures svg text{font-size:16px}}
@media print{:root{color-scheme:light;--cd-page:#fff;--cd-ink:#1f2328}body{padding:0}.cd nav{display:none}
.cd figure,.cd .cd-sheet td,.cd tr{break-inside:avoid}.cd h2,.cd h3{break-after:avoid}
.cd *{print-color-adjust:exact;-webkit-print-color-adjust:exact}}"""

_LONGEST_TEXT = 400  # characters of one text; a caption of a megabyte must not become one of the page

_NARROWEST_CARD, WIDEST_CARD = 0.8, 2.4  # width over height; an image beyond them has bars at its sides
_ROW_WIDTH = 640  # pixels of a row where styles are stripped and the table stays a table
_CARD_HEIGHT = 132  # of an image there; as --h of the style sheet

_CHART_WIDTH, _CHART_HEIGHT = 520, 120


def page(title: str, parts: Iterable[str]) -> str:
    """A file for a browser that needs nothing else, light or dark as the reader's system is.

    Args:
        title: Text.
        parts: What the other functions made.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Whatever slipped through: no script runs, nothing is loaded from elsewhere.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_compact(_PAGE_STYLE)}</style></head>\n"
        f"<body>{block(f'<h1>{escape(title)}</h1>', *parts)}</body></html>\n"
    )


def block(*parts: str) -> str:
    """A cell's output: parts that the other functions made, under the style sheet.

    The classes keep a notebook's MathJax from reading `$` in a caption as mathematics.
    """
    return f'<div class="cd tex2jax_ignore mathjax_ignore"><style>{_compact(_STYLE)}</style>{"".join(parts)}</div>'


def _compact(style: str) -> str:
    return style.replace("\n", "")


def escape(value: Any, longest: int = _LONGEST_TEXT) -> str:
    """A value as text that means nothing to a browser, also within quotes; too long ones lose their middle.

    Control characters (a NUL, a terminal's escape codes) become U+FFFD.
    """
    text = str(value)
    if len(text) > longest:
        tail = longest // 4
        text = f"{text[: longest - tail - 1]}…{text[len(text) - tail :]}"
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))


def number(value: Any) -> str:
    """A value for people: three significant digits of a fraction, `yes` or `no`, "" for None and NaN, else its text."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        fraction = float(value)
        return "" if math.isnan(fraction) else f"{fraction:.3g}" if abs(fraction) < 1000 else f"{fraction:,.0f}"
    return str(value)


def note(text: Any) -> str:
    """A faint line."""
    return f'<p class="cd-note">{escape(text)}</p>'


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
        f"<tr>{''.join(f'<td{kind}>{_format_value(value)}</td>' for value, kind in zip(row, kinds, strict=True))}</tr>"
        for row in rows
    )
    return f'<table class="cd-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and their values, a line each; None and "" are left out."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_format_value(value)}</td></tr>'
        for name, value in values.items()
        if value is not None and value != ""
    )
    return f'<table class="cd-table"><tbody>{body}</tbody></table>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _format_value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(number(value))


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
        if used and used + aspect * _CARD_HEIGHT > _ROW_WIDTH:
            rows.append([])
            used = 0.0
        used += aspect * _CARD_HEIGHT
        rows[-1].append(_cell(card, aspect))
    body = "".join(f'<tr role="presentation">{"".join(row)}</tr>' for row in rows)
    return f'<table class="cd-sheet" role="list"><tbody role="presentation">{body}</tbody></table>'


def group(title: str, cards: Sequence[Card], note: str = "", level: int = 4) -> str:
    """A heading and its images side by side: the duplicates of one picture, or what one rule dropped."""
    about = f" <span>{escape(note)}</span>" if note else ""
    return f"<h{level}>{escape(title)}{about}</h{level}>{sheet(cards)}"


def _aspect(card: Card) -> float:
    return min(max(card.width / max(card.height, 1), _NARROWEST_CARD), WIDEST_CARD)


def _cell(card: Card, aspect: float) -> str:
    title = escape(card.title)
    if card.source:
        small = ' class="cd-small"' if 2 * max(card.height, card.width / WIDEST_CARD) <= _CARD_HEIGHT else ""
        # both sides are what a viewer without styles goes by
        high = min(_CARD_HEIGHT, round(aspect * _CARD_HEIGHT * card.height / max(card.width, 1)))
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
    parts += [f'<div class="cd-facts">{_join_facts(card.facts)}</div>'] if card.facts else []
    parts += [f'<div class="cd-text" dir="auto" title="{escape(card.text)}">{escape(card.text)}</div>'] * bool(
        card.text
    )
    return f'<td class="cd-card{kind}" role="listitem" style="--a:{aspect:.3f}">{picture}{"".join(parts)}</td>'


def _join_facts(values: Sequence[str]) -> str:
    """Short values, of which none is broken between two lines."""
    return " · ".join(f"<span>{escape(value)}</span>" for value in values)


def bars(counts: Mapping[str, int | float], total: float | None = None) -> str:
    """A bar a name, as long as its number.

    Args:
        counts: Name -> number, at least 0.
        total: What a full bar is; the largest number by default. Shares of it are written if it is given.
    """
    full = total or max(counts.values(), default=0) or 1
    rows = []
    for name, value in counts.items():
        text = f"{value:,}" if isinstance(value, int) else number(value)
        share = f"<td class='cd-num'>{value / full:.1%}</td>" if total else ""
        length = 100 * min(max(value / full, 0), 1)
        rows.append(
            f"<tr><th scope='row'>{escape(name)}</th><td class='cd-num'>{escape(text)}</td>{share}"
            f"<td class='cd-track'><span class='cd-bar' style='width:{length:.2f}%'></span></td></tr>"
        )
    return f'<table class="cd-table cd-bars"><tbody>{"".join(rows)}</tbody></table>'


def flow(
    samples: int,
    dropped: Mapping[str, Mapping[str, int]],
    failed: Mapping[str, int],
    kept: int,
    most: int = 12,
) -> str:
    """How many samples were left after each step of a curation, and why the others went.

    Args:
        samples: What came in.
        dropped: Stage -> reason -> number, in the order of the stages.
        failed: Reason -> number of samples that could not be decoded; they go first.
        kept: What stayed.
        most: Reasons of a stage that have a row each; all others share one.
    """
    rows: list[tuple[str, str, int | None, int]] = [("in", "", None, samples)]
    left = samples
    for stage, reasons in {"failed": failed, **dropped}.items():
        for place, (reason, many) in enumerate(_largest(reasons, most)):
            left -= many
            rows.append(("" if place else stage, reason, many, left))
    rows.append(("kept", "", None, kept))
    body = "".join(
        f"<tr><th scope='row'>{escape(step)}</th><td>{escape(reason)}</td>"
        f"<td class='cd-num'>{'' if count is None else f'−{count:,}'}</td><td class='cd-num'>{left:,}</td>"
        f"<td class='cd-num'>{left / max(samples, 1):.1%}</td>"
        f"<td class='cd-track'><span class='cd-bar' style='width:{100 * left / max(samples, 1):.2f}%'></span></td></tr>"
        for step, reason, count, left in rows
    )
    return f'<table class="cd-table cd-bars cd-flow"><tbody>{body}</tbody></table>'


def _largest(reasons: Mapping[str, int], most: int) -> list[tuple[str, int]]:
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    rest = ordered[most:] if len(ordered) > most + 1 else []
    others = [(f"{len(rest):,} other reasons", sum(count for _, count in rest))] if rest else []
    return ordered[: len(ordered) - len(rest)] + others


def histogram(
    counts: Sequence[int], edges: Sequence[float], label: str, keep: tuple[float | None, float | None] = (None, None)
) -> str:
    """A histogram as inline SVG in the page's colours, with the bounds of what is kept.

    Args:
        counts: B numbers.
        edges: B + 1 values, ascending, as `numpy.histogram` gives them.
        label: What is counted.
        keep: Lower and upper bound; None is no bound. Bars outside are grey.

    Raises:
        ValueError: There is not one edge more than there are counts, or no count at all.
    """
    if not len(counts) or len(edges) != len(counts) + 1:
        raise ValueError(f"there are {len(counts)} counts and {len(edges)} edges; give one edge more than counts")
    low, high = float(edges[0]), float(edges[-1])
    span = (high - low) or 1.0
    top = max(counts) or 1
    lowest, highest = (-math.inf if keep[0] is None else keep[0]), (math.inf if keep[1] is None else keep[1])

    def x(value: float) -> float:
        return _CHART_WIDTH * (value - low) / span

    parts = []
    for many, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = max(_CHART_HEIGHT * many / top, 1 if many else 0)  # one image of a million is seen, too
        # a bar that a bound goes through has two colours
        cuts = [left, *(bound for bound in (lowest, highest) if left < bound < right), right]
        title = f"<title>{number(float(left))} to {number(float(right))}: {many:,}</title>"
        for begin, end in itertools.pairwise(cuts):
            kind = "cd-b" if lowest <= (begin + end) / 2 <= highest else "cd-o"
            gap = 1 if end == right else 0
            parts.append(
                f'<rect class="{kind}" x="{x(begin):.1f}" y="{_CHART_HEIGHT - height:.1f}" '
                f'width="{max(x(end) - x(begin) - gap, 0.5):.1f}" height="{height:.1f}">{title}</rect>'
            )
    for bound in keep:
        if bound is not None and low <= bound <= high:
            at = x(bound)
            anchor = "start" if at < 40 else "end" if at > _CHART_WIDTH - 40 else "middle"
            parts.append(f'<line class="cd-t" x1="{at:.1f}" x2="{at:.1f}" y1="-4" y2="{_CHART_HEIGHT}"/>')
            parts.append(f'<text x="{at:.1f}" y="-8" text-anchor="{anchor}">{number(float(bound))}</text>')
    parts.append(f'<line x1="0" x2="{_CHART_WIDTH}" y1="{_CHART_HEIGHT}" y2="{_CHART_HEIGHT}"/>')
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(f'<text x="{x(value):.1f}" y="{_CHART_HEIGHT + 15}" text-anchor="{anchor}">{number(value)}</text>')
    parts.append(f'<text x="{_CHART_WIDTH / 2}" y="{_CHART_HEIGHT + 15}" text-anchor="middle">{escape(label)}</text>')
    name = escape(f"histogram of {label}")
    size = f"0 -22 {_CHART_WIDTH} {_CHART_HEIGHT + 44}"
    return f'<svg viewBox="{size}" width="{_CHART_WIDTH}" role="img" aria-label="{name}">{"".join(parts)}</svg>'

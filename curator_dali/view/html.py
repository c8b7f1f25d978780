"""HTML for notebooks and reports: Jinja2's templates, filled with plain values; they know nothing of batches.

`render` fills a template, `block` makes of its parts what a notebook shows in a cell's output, `page` a file for a
browser. Every value that a template writes is escaped, unless it is HTML that a template made.

A notebook's output stands in somebody else's page, so everything is within `.cd`, the text takes that page's colour
and all other shades are made of the text's: light and dark themes work alike, also those nobody has heard of. Where
a viewer strips styles (code hosts do), what is left are plain tables, images and lists, which read well too.
"""

from __future__ import annotations

import base64
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import count as count  # for those who write texts beside HTML

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_TEXT = 400  # characters of one text; a caption of a megabyte must not become one of the page

_NARROWEST_CARD, WIDEST_CARD = 0.8, 2.4  # width over height; an image beyond them has bars at its sides
_ROW_WIDTH = 640  # pixels of a row where styles are stripped and the table stays a table
_CARD_HEIGHT = 132  # of an image there; as --h of the style sheet

_CHART_WIDTH, _CHART_HEIGHT = 520, 120
_MOST_REASONS = 12  # of a stage that have a row each in a flow; all others share one


@dataclass
class Card:
    """One image of a contact sheet.

    Attributes:
        title: The id.
        width: Pixels of the original, for its shape.
        height: The same.
        facts: Short values, shown in one line: `451 × 300`, `aesthetic 5.1`.
        text: The caption.
        mark: A word in colour: "kept", "dropped", or another one.
        missing: Why there is no picture.
        pixels: The thumbnail, (h, w, 3) uint8 on the host, or None.
        source: A `data:image/` URI or a relative link; "" shows an empty plate with the reason `missing`.
    """

    title: str
    width: int = 4
    height: int = 3
    facts: Sequence[str] = ()
    text: str = ""
    mark: str = ""
    missing: str = "no pixels"
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        scheme = self.source.partition(":")[0] if ":" in self.source.partition("/")[0] else ""
        if scheme and not self.source.startswith("data:image/"):
            raise ValueError(f"an image's source is {self.source[:60]!r}; give a data:image/ URI or a relative link")

    @property
    def aspect(self) -> float:
        """Width over height of the place for the image."""
        return min(max(self.width / max(self.height, 1), _NARROWEST_CARD), WIDEST_CARD)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image where styles are stripped."""
        high = min(_CARD_HEIGHT, round(self.aspect * _CARD_HEIGHT * self.height / max(self.width, 1)))
        return max(1, round(high * self.width / max(self.height, 1))), max(high, 1)

    @property
    def is_small(self) -> bool:
        """Whether the original is so small that its pixels are shown as squares."""
        return 2 * max(self.height, self.width / WIDEST_CARD) <= _CARD_HEIGHT


@cache
def _environment() -> Environment:
    """Jinja2's environment of the templates."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"cell": _format_cell, "count": count, "text": escape, "number": number}
    made.filters["rows"] = _cut_rows
    made.globals |= {"flow_rows": _flow_rows, "histogram_parts": _histogram_parts, "style": _read_style}
    made.globals["numeric_columns"] = _find_numeric
    return made


def macros() -> Any:
    """The macros of `parts.html`, which make HTML of values."""
    return _environment().get_template("parts.html").module


def render(template: str, **values: Any) -> Markup:
    """Fill a template with values."""
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(**values))


def page(title: str, parts: Iterable[str]) -> str:
    """A file for a browser that needs nothing else, light or dark as the reader's system is.

    Args:
        title: Text.
        parts: HTML that `render` made.
    """
    return str(render("page.html", title=title, parts=_trust(parts)))


def block(*parts: str) -> str:
    """A cell's output: HTML that `render` made, under the style sheet."""
    return str(render("block.html", parts=_trust(parts)))


def _trust(parts: Iterable[str]) -> list[Markup]:
    from markupsafe import Markup

    return [Markup(part) for part in parts]


def escape(value: Any, longest: int = _LONGEST_TEXT) -> Markup:
    """A value as text that means nothing to a browser, also within quotes; HTML of a template stays as it is."""
    from markupsafe import Markup

    return Markup.escape(_clean(value, longest))


def _clean(value: Any, longest: int = _LONGEST_TEXT) -> Any:
    """Cut the middle out of a long text, and put U+FFFD for control characters (a NUL, a terminal's escape codes)."""
    if hasattr(value, "__html__"):
        return value
    text = str(value)
    if len(text) > longest:
        tail = longest // 4
        text = f"{text[: longest - tail - 1]}…{text[len(text) - tail :]}"
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def data_uri(encoded: bytes) -> Markup:
    """A JPEG as a URI, 4/3 of its bytes."""
    from markupsafe import Markup

    return Markup(f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}")


@cache
def _read_style(name: str) -> Markup:
    """Read a style sheet, without comments and line breaks."""
    from markupsafe import Markup

    return Markup(" ".join(re.sub(r"/\*.*?\*/", "", (_TEMPLATES / name).read_text("utf-8")).split()))


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


def _format_cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else number(value)


def _find_numeric(rows: Sequence[Sequence[Any]]) -> set[int]:
    """Find the columns whose values are all numbers."""
    return {
        place
        for place, column in enumerate(zip(*rows, strict=True))
        if all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in column)
    }


def _cut_rows(cards: Iterable[Card]) -> Iterator[list[Card]]:
    """Cut cards into rows that fit into a page where styles are stripped."""
    row: list[Card] = []
    used = 0.0
    for card in cards:
        if row and used + card.aspect * _CARD_HEIGHT > _ROW_WIDTH:
            yield row
            row, used = [], 0.0
        row.append(card)
        used += card.aspect * _CARD_HEIGHT
    if row:
        yield row


def _flow_rows(
    samples: int, dropped: Mapping[str, Mapping[str, int]], failed: Mapping[str, int], kept: int
) -> Iterator[tuple[str, str, int | None, int]]:
    """Yield stage, reason, number of samples that went, and number of samples left.

    Args:
        samples: What came in.
        dropped: Stage -> reason -> number, in the order of the stages.
        failed: Reason -> number of samples that could not be decoded; they go first.
        kept: What stayed.
    """
    yield "in", "", None, samples
    left = samples
    for stage, reasons in {"failed": failed, **dropped}.items():
        ordered = sorted(reasons.items(), key=lambda item: -item[1])
        if len(rest := ordered[_MOST_REASONS:]) > 1:
            ordered[_MOST_REASONS:] = [(f"{len(rest):,} other reasons", sum(many for _, many in rest))]
        for place, (reason, many) in enumerate(ordered):
            left -= many
            yield "" if place else stage, reason, many, left
    yield "kept", "", None, kept


def _histogram_parts(
    counts: Sequence[int], edges: Sequence[float], keep: tuple[float | None, float | None]
) -> dict[str, Any]:
    """Lay a histogram out: `bars` (colour, x, y, width, height, text) and `marks` (x, text) of the bounds.

    Args:
        counts: B numbers.
        edges: B + 1 values, ascending, as `numpy.histogram` gives them.
        keep: Lower and upper bound; None is no bound. Bars outside are grey.

    Raises:
        ValueError: There is not one edge more than there are counts, or no count at all.
    """
    if not len(counts) or len(edges) != len(counts) + 1:
        raise ValueError(f"there are {len(counts)} counts and {len(edges)} edges; give one edge more than counts")
    low, high = float(edges[0]), float(edges[-1])
    scale = _CHART_WIDTH / ((high - low) or 1.0)
    lowest, highest = (-math.inf if keep[0] is None else keep[0]), (math.inf if keep[1] is None else keep[1])
    bars = []
    for many, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = max(_CHART_HEIGHT * many / (max(counts) or 1), 1 if many else 0)  # one image of a million is seen, too
        text = f"{number(float(left))} to {number(float(right))}: {many:,}"
        # a bar that a bound goes through has two colours
        cuts = [left, *(bound for bound in (lowest, highest) if left < bound < right), right]
        for begin, end in itertools.pairwise(cuts):
            kind = "b" if lowest <= (begin + end) / 2 <= highest else "o"
            width = max((end - begin) * scale - (1 if end == right else 0), 0.5)
            bars.append((kind, (begin - low) * scale, _CHART_HEIGHT - height, width, height, text))
    marks = [((bound - low) * scale, bound) for bound in keep if bound is not None and low <= bound <= high]
    return {"width": _CHART_WIDTH, "height": _CHART_HEIGHT, "bars": bars, "marks": marks, "low": low, "high": high}

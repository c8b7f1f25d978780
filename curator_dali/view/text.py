"""Text and numbers as they stand in HTML."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np

__all__ = ["escape", "note", "number"]

_LONGEST = 400  # characters of one text; a caption of a megabyte must not become one of the page


def escape(value: Any, longest: int = _LONGEST) -> str:
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

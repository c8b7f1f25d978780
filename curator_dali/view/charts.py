"""Small charts that need no script: bars, the flow from input to kept, and a histogram with its thresholds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from curator_dali.view.text import escape, number

__all__ = ["bars", "flow", "histogram"]

_WIDTH, _HEIGHT = 520, 120


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
        return _WIDTH * (value - low) / span

    parts = []
    for many, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = max(_HEIGHT * many / top, 1 if many else 0)  # one image of a million is seen, too
        # a bar that a bound goes through has two colours
        cuts = [left, *(bound for bound in (lowest, highest) if left < bound < right), right]
        title = f"<title>{number(float(left))} to {number(float(right))}: {many:,}</title>"
        for begin, end in itertools.pairwise(cuts):
            kind = "cd-b" if lowest <= (begin + end) / 2 <= highest else "cd-o"
            gap = 1 if end == right else 0
            parts.append(
                f'<rect class="{kind}" x="{x(begin):.1f}" y="{_HEIGHT - height:.1f}" '
                f'width="{max(x(end) - x(begin) - gap, 0.5):.1f}" height="{height:.1f}">{title}</rect>'
            )
    for bound in keep:
        if bound is not None and low <= bound <= high:
            at = x(bound)
            anchor = "start" if at < 40 else "end" if at > _WIDTH - 40 else "middle"
            parts.append(f'<line class="cd-t" x1="{at:.1f}" x2="{at:.1f}" y1="-4" y2="{_HEIGHT}"/>')
            parts.append(f'<text x="{at:.1f}" y="-8" text-anchor="{anchor}">{number(float(bound))}</text>')
    parts.append(f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>')
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT + 15}" text-anchor="{anchor}">{number(value)}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 15}" text-anchor="middle">{escape(label)}</text>')
    name = escape(f"histogram of {label}")
    size = f"0 -22 {_WIDTH} {_HEIGHT + 44}"
    return f'<svg viewBox="{size}" width="{_WIDTH}" role="img" aria-label="{name}">{"".join(parts)}</svg>'

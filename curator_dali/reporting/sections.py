"""The parts of a report's page: pure functions from what is known of an output to HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curator_dali import html
from curator_dali.report import Report
from curator_dali.reporting.reasons import Threshold
from curator_dali.reporting.scan import Group, Key, Row, Scan
from curator_dali.reporting.sketch import Sketch

__all__ = ["alike", "distributions", "dropped", "failed", "flow", "head", "kept", "lineage", "throughput"]

Cards = Callable[..., list[html.Card]]
"""Rows (and `marked`) to cards."""

_MOST_CLASSES = 12
_MOST_SHEETS = 24  # of reasons; those of more are counted


def head(report: Report) -> str:
    """The numbers to be seen first."""

    def share(count: int) -> str:
        return f"{count / report.samples:.1%}" if report.samples else ""

    values = [
        (f"{report.samples:,}", "samples in", ""),
        (f"{report.kept:,}", "kept", share(report.kept)),
        (f"{report.num_dropped:,}", "dropped", share(report.num_dropped)),
        (f"{report.num_failed:,}", "failed", share(report.num_failed)),
    ]
    return html.tiles(values)


def flow(report: Report) -> str:
    """From input to kept."""
    chart = html.flow(report.samples, report.dropped, report.failed, report.kept)
    return html.section("flow", "From input to kept", chart)


def distributions(found: Scan, limits: Mapping[str, Threshold]) -> str:
    """A histogram of every score, those that decided first, and bars of classes."""
    names = sorted(found.scores, key=lambda name: (name not in limits, name in ("width", "height")))
    charts = [(name, *_histogram(name, found, limits.get(name, (None, None)))) for name in names]
    charts = [chart for chart in charts if chart[1]]
    for name, counted in found.classes.items():
        top = dict(counted.most_common(_MOST_CLASSES))
        rest = len(counted) - len(top)
        text = _of(sum(counted.values()), found.missing[name]) + (f"; {rest:,} other values" if rest else "")
        charts.append((name, html.bars(top, sum(counted.values())), text))
    return html.section("scores", "Scores", html.figures(charts))


def kept(report: Report, rows: Sequence[Row], cards: Cards) -> str:
    """Some of what stayed."""
    return html.section("kept", "Kept", html.sheet(cards(rows)), note=_shown(len(rows), report.kept))


def dropped(report: Report, samples: Mapping[Key, Sequence[Row]], cards: Cards) -> str:
    """Some of what went, for each reason."""
    order = [
        ("dropped", stage, kind)
        for stage, kinds in report.dropped.items()
        for kind in sorted(kinds, key=lambda kind: -kinds[kind])
    ]
    # what no count names: reasons of a stage of one's own that has a new one for every image
    order += [key for key in samples if key[0] == "dropped" and key not in order]
    order = [key for key in order if samples.get(key)]
    parts = [
        html.group(kind, cards(samples[status, stage, kind]), f"{stage} · {_some(samples, report, stage, kind)}", 3)
        for status, stage, kind in order[:_MOST_SHEETS]
    ]
    if rest := len(order) - _MOST_SHEETS:
        parts += [html.note(f"{html.count(rest, 'more reason')} not shown")] if rest > 0 else []
    return html.section("dropped", "Dropped", *parts, note=html.count(report.num_dropped, "image"))


def failed(report: Report, samples: Mapping[Key, Sequence[Row]], cards: Cards) -> str:
    """Some of what could not be decoded, for each reason."""
    keys = sorted((key for key in samples if key[0] == "failed"), key=lambda key: -report.failed.get(key[2], 0))
    parts = [
        html.group(key[2], cards(samples[key]), _shown(len(samples[key]), report.failed.get(key[2], 0)), 3)
        for key in keys[:_MOST_SHEETS]
    ]
    if len(keys) > _MOST_SHEETS:
        parts.append(html.note(f"{html.count(len(keys) - _MOST_SHEETS, 'more reason')} not shown"))
    return html.section("failed", "Failed", *parts, note=html.count(report.num_failed, "image"))


def alike(found: Scan, cards: Cards) -> str:
    """Groups of duplicates side by side."""
    sheets = [
        html.group(_title(group), cards(group.rows, marked=True), _shown(len(group.rows), group.size), 3)
        for group in found.groups
    ]
    parts = [html.beside(sheets)]
    if rest := found.num_groups - len(found.groups):
        parts.append(html.note(f"{html.count(rest, 'more group')} not shown; `curator-dali duplicates` lists them"))
    note = f"{html.count(found.num_groups, 'group')} of {html.count(found.num_alike, 'image')}"
    return html.section("duplicates", "Duplicates", *parts, note=note)


def throughput(report: Report) -> str:
    """How long every stage took, and for how many images."""
    left, rows = report.samples, []
    for name, seconds in report.stages.items():
        if name == "write":
            left = report.samples
        rows.append((name, left, round(seconds, 3), left / seconds if seconds else None))
        left -= report.num_failed if name == "decode" else sum(report.dropped.get(name, {}).values())
    if not rows:
        return ""
    table = html.table(["stage", "images", "seconds", "images a second"], rows)
    text = "decode is the time that the first stage waited for images; write overlaps with all others."
    new = report.samples - report.earlier
    if report.seconds and new:
        speed = f"{html.count(new, 'image')} in {report.seconds:,.1f} s, {report.images_per_second:,.0f} a second"
        text = f"The last run: {speed}, on {report.device}. {text}"
    return html.section("throughput", "Throughput", table, html.note(text))


def lineage(report: Report, run: Mapping[str, Any]) -> str:
    """Which models, which settings and which version."""
    parts = []
    for stage, values in report.lineage.items():
        parts.append(f"<h3>{html.escape(stage)}</h3>{html.facts(_flat(values))}")
    settings = [
        (stage.get("type", ""), ", ".join(f"{k}={v!r}" for k, v in stage.items() if k != "type" and v is not None))
        for stage in run.get("settings", {}).get("stages", [])
    ]
    if settings:
        parts.append(f"<h3>Settings</h3>{html.table(['stage', 'as it was given'], settings)}")
    about = {"written by": f"curator_dali {run.get('version', '')}", "data set": report.source, "output": report.out}
    parts.append(f"<h3>Output</h3>{html.facts({**about, 'fingerprint': run.get('source')})}")
    return html.section("lineage", "Models and settings", *parts)


def _histogram(name: str, found: Scan, limit: Threshold) -> tuple[str, str]:
    """The chart and the text beneath it."""
    sketch: Sketch = found.scores[name]
    drawn = sketch.histogram(limit)
    if drawn is None:
        return "", ""
    text = [_of(drawn.total, found.missing[name])]
    text += [f"{drawn.below:,} lower ones are in the first bar"] if drawn.below else []
    text += [f"{drawn.above:,} higher ones are in the last bar"] if drawn.above else []
    text += [f"{sketch.infinite:,} infinite"] if sketch.infinite else []
    words = ("at least", "at most")
    kept = [
        f"{word} {html.number(float(bound))}" for word, bound in zip(words, limit, strict=True) if bound is not None
    ]
    text += [f"kept: {' and '.join(kept)}"] if kept else []
    return html.histogram(drawn.counts, drawn.edges, name, limit), "; ".join(text)


def _of(count: int, missing: int) -> str:
    return html.count(count, "image") + (f", {missing:,} without (failed, or dropped before)" if missing else "")


def _shown(shown: int, count: int) -> str:
    return html.count(count, "image") if shown >= count else f"{shown:,} of {html.count(count, 'image')}, by chance"


def _some(samples: Mapping[Key, Sequence[Row]], report: Report, stage: str, kind: str) -> str:
    shown = len(samples["dropped", stage, kind])
    return _shown(shown, report.dropped.get(stage, {}).get(kind, shown))


def _title(group: Group) -> str:
    return str(group.rows[0]["image_id"]) if group.rows else f"group {group.number}"


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Nested names and values as one level: a.b."""
    if not isinstance(values, Mapping):
        return {name: values if isinstance(values, (str, int, float, type(None))) else str(values)}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat

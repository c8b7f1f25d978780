"""Files that a finished run leaves beside its parts: `report.json`, `report.html` and the dataset card."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curator_dali._version import __version__
from curator_dali.arguments import checked
from curator_dali.errors import CuratorDaliError, OutputError, SourceError
from curator_dali.io import IMAGE_EXTENSIONS, explained, join, store, write_file
from curator_dali.outputs import CURATION, Manifest, Part, RowFiles
from curator_dali.report.report import Report, count_parts, read_report
from curator_dali.report.scan import Group, Key, Kinds, Row, Scan, Sketch, Threshold, scan, thresholds
from curator_dali.report.selection import Picture, encode_pictures, make_cards, read_pictures
from curator_dali.view import html

if TYPE_CHECKING:
    import torch

__all__ = ["CARD", "leave_report", "write_report"]

logger = logging.getLogger(__name__)

_PAGE = "report.html"
_PICTURE_BYTES = 1_000_000  # of all thumbnails; a third more as base64
_MOST_SHEETS = 24  # of reasons; those of more are counted, and have no pictures
_MOST_CLASSES = 12

_Cards = Callable[..., list[html.Card]]
"""Rows (and `marked`) to cards."""

CARD = "README.md"

# One configuration: `datasets` reads all that a card names with the reader of the first one's files.
_CARD_TEXT = """\
---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: "*{ending}"
{info}---

# An output of curator_dali

`load_dataset("parquet", data_files="PATH/*.parquet")` reads a row for every sample: what became of it, why, and its
scores. `load_dataset("PATH")` reads {about}.
"""
_CARD_CONFIGS = {
    ".tar": ("samples", "the samples that were kept, from the tars"),
    ".parquet": ("rows", "these rows, too"),
}
_CARD_MARK = "\n<!-- as written: {digest} -->\n"  # a card that was changed since is the user's own

# Types of the members that `datasets` decodes by their extensions. A JSON member is `json`, since fields of samples
# differ; an extension that is neither here nor an image's leaves all types to `datasets`.
_MEMBER_TYPES = {"txt": "string", "text": "string", "cls": "int64", "json": "json"}


def leave_report(
    manifest: Manifest,
    labels: Sequence[str],
    *,
    source: str,
    out: str,
    device: str,
    earlier: int,
    seconds: float,
    data: Any = None,
    page: bool = True,
) -> Report:
    """Leave the report of a run that has ended in its folder, as `report.json` and `report.html`, and its card.

    The page is not made again where the run had nothing to do. If it cannot be made a warning says so, and the run does
    not fail for it: what was curated is there and finished.

    Args:
        manifest: The output's.
        labels: The stages, in their order.
        source: See `Report`, as the next four.
        out: The output folder.
        device: Where the stages ran; pictures are decoded there, too.
        earlier: Samples in parts that an earlier run had finished.
        seconds: What this run took.
        data: The data set, for pictures; None: the output says how to open it.
        page: Whether to leave `report.html`.
    """
    about = {"source": source, "out": out, "device": device, "earlier": earlier, "seconds": seconds}
    parts = manifest.parts()
    report = count_parts(manifest, parts, labels, version=__version__, **about)
    _warn_of_misfits(parts)
    write_file(join(manifest.folder, "report.json"), json.dumps(report.as_dict(), indent=1).encode())
    if page and (earlier < report.samples or _PAGE not in store.names(manifest.folder)):
        _leave_page(manifest.folder, data, device)
    _leave_card(manifest)
    return report


def _leave_page(out: str, source: Any, device: str) -> None:
    try:
        write_report(out, source=source, device=device)
    except (CuratorDaliError, OSError, ImportError, RuntimeError, ValueError) as error:
        logger.warning("%s could not be written: %s", _PAGE, error)


def _warn_of_misfits(parts: Sequence[Part]) -> None:
    """Say how many values of the metadata were of another type than their column, and so counted as missing."""
    found: dict[str, list[tuple[int, str]]] = {}
    for part in parts:
        for name, (count, example) in part.info.get("misfits", {}).items():
            found.setdefault(name, []).append((count, example))
    for name, misfits in found.items():
        logger.warning(
            "%s values of %r are of another type than its column, as %s, and counted as missing: mend the metadata, or "
            "say its type, as metadata={%r: 'string'}",
            f"{sum(count for count, _ in misfits):,}", name, misfits[0][1], name,
        )  # fmt: skip


@checked
def write_report(
    out: str | os.PathLike[str],
    *,
    source: Any = None,
    to: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
) -> str:
    """Write `report.html` for an output that is there, from what lies in its folder and some pictures of its data set.

    In memory are a block of rows, a few thousand rows of the samples, and the thumbnails.

    Args:
        out: The output's folder or URL.
        source: The data set, where the output does not say how to open it, or it has moved. Without one that can be
            opened there are no pictures, and the report says why.
        to: The file or URL to write; by default `report.html` in the folder.
        device: Where to decode the pictures.

    Returns:
        Where it is.

    Raises:
        OutputError: There is no output, it is damaged or of another version, or the file cannot be written.
        SourceError: `source` was given, and is not the output's.
    """
    manifest = Manifest.load(os.fspath(out))
    report = read_report(manifest, os.fspath(out))
    found = _scan_rows(manifest, report)
    missing = ""
    shots: dict[int, Picture] = {}
    try:
        shots = _take_pictures(manifest, found, source, str(device))
    except SourceError as error:
        if source is not None:
            raise
        missing = str(error)
    target = join(manifest.folder, _PAGE) if to is None else os.fspath(to)
    write_file(target, _render_page(report, manifest, found, shots, missing).encode("utf-8"))
    return target


def _scan_rows(manifest: Manifest, report: Report) -> Scan:
    if not report.samples:
        return Scan()
    return scan(RowFiles(manifest.folder), Kinds(manifest.run.get("settings", {}), report.dropped))


def _take_pictures(manifest: Manifest, found: Scan, source: Any, device: str) -> dict[int, Picture]:
    rows: list[Row] = [row for group in found.groups for row in group.rows]
    kinds = 0
    for key, some in found.samples.items():
        kinds += key[0] == "dropped"
        rows += some if key[0] == "kept" or (key[0] == "dropped" and kinds <= _MOST_SHEETS) else []
    return read_pictures(manifest, (row["index"] for row in rows), source, device) if rows else {}


def _render_page(report: Report, manifest: Manifest, found: Scan, shots: dict[int, Picture], missing: str) -> str:
    limits = thresholds(manifest.run.get("settings", {}))
    scores = list(limits) or [name for name in found.scores if name not in ("width", "height")]
    cards = functools.partial(
        make_cards,
        pictures=shots,
        sources=encode_pictures(shots, _PICTURE_BYTES),
        scores=scores,
        without="no picture" if missing else "cannot be decoded now",
    )
    kept = next((rows for key, rows in found.samples.items() if key[0] == "kept"), [])
    parts = {
        "flow": ("Flow", _render_flow(report)),
        "scores": ("Scores", _render_scores(found, limits)),
        "kept": ("Kept", _render_kept(report, kept, cards)),
        "dropped": ("Dropped", _render_dropped(report, found.samples, cards)),
        "duplicates": ("Duplicates", _render_duplicates(found, cards)),
        "failed": ("Failed", _render_failed(report, found.samples, cards)),
        "throughput": ("Throughput", _render_throughput(report)),
        "lineage": ("Models and settings", _render_lineage(report, manifest.run)),
    }
    parts = {name: part for name, part in parts.items() if part[1]}
    notes = []
    if not report.complete:
        lacking = manifest.samples - report.samples
        notes.append(f"Not complete: {html.count(lacking, 'sample')} of {manifest.samples:,} are missing.")
    if missing:
        notes.append(f"Without pictures: {missing}")
    return html.page(
        f"Curation of {report.source}",
        [
            html.note(f"{report.out} · {report.device} · curator_dali {report.version}"),
            *(f'<p class="cd-warn">{html.escape(note, 1000)}</p>' for note in notes),
            _render_head(report),
            html.contents({name: title for name, (title, _) in parts.items()}),
            *(part for _, part in parts.values()),
        ],
    )


def _render_head(report: Report) -> str:
    """Render the counts at the top of the page."""

    def share(count: int) -> str:
        return f"{count / report.samples:.1%}" if report.samples else ""

    values = [
        (f"{report.samples:,}", "samples in", ""),
        (f"{report.kept:,}", "kept", share(report.kept)),
        (f"{report.num_dropped:,}", "dropped", share(report.num_dropped)),
        (f"{report.num_failed:,}", "failed", share(report.num_failed)),
    ]
    return html.tiles(values)


def _render_flow(report: Report) -> str:
    """Render the chart from input to kept."""
    chart = html.flow(report.samples, report.dropped, report.failed, report.kept)
    return html.section("flow", "From input to kept", chart)


def _render_scores(found: Scan, limits: Mapping[str, Threshold]) -> str:
    """Render a histogram of every score and bars of classes. Scores with a threshold come first."""
    names = sorted(found.scores, key=lambda name: (name not in limits, name in ("width", "height")))
    charts = [(name, *_render_histogram(name, found, limits.get(name, (None, None)))) for name in names]
    charts = [chart for chart in charts if chart[1]]
    for name, counted in found.classes.items():
        top = dict(counted.most_common(_MOST_CLASSES))
        rest = len(counted) - len(top)
        text = _describe_values(sum(counted.values()), found.missing[name]) + (
            f"; {rest:,} other values" if rest else ""
        )
        charts.append((name, html.bars(top, sum(counted.values())), text))
    return html.section("scores", "Scores", html.figures(charts))


def _render_kept(report: Report, rows: Sequence[Row], cards: _Cards) -> str:
    """Render a sample of the kept images."""
    return html.section("kept", "Kept", html.sheet(cards(rows)), note=_describe_sample(len(rows), report.kept))


def _render_dropped(report: Report, samples: Mapping[Key, Sequence[Row]], cards: _Cards) -> str:
    """Render a sample of the dropped images for each kind of reason."""
    order = [
        ("dropped", stage, kind)
        for stage, kinds in report.dropped.items()
        for kind in sorted(kinds, key=lambda kind: -kinds[kind])
    ]
    # reasons without a count: a custom stage may have a new reason for every image
    order += [key for key in samples if key[0] == "dropped" and key not in order]
    order = [key for key in order if samples.get(key)]
    parts = [
        html.group(
            kind, cards(samples[status, stage, kind]), f"{stage} · {_describe_reason(samples, report, stage, kind)}", 3
        )
        for status, stage, kind in order[:_MOST_SHEETS]
    ]
    if rest := len(order) - _MOST_SHEETS:
        parts += [html.note(f"{html.count(rest, 'more reason')} not shown")] if rest > 0 else []
    return html.section("dropped", "Dropped", *parts, note=html.count(report.num_dropped, "image"))


def _render_failed(report: Report, samples: Mapping[Key, Sequence[Row]], cards: _Cards) -> str:
    """Render a sample of the failed rows for each kind of reason."""
    keys = sorted((key for key in samples if key[0] == "failed"), key=lambda key: -report.failed.get(key[2], 0))
    parts = [
        html.group(key[2], cards(samples[key]), _describe_sample(len(samples[key]), report.failed.get(key[2], 0)), 3)
        for key in keys[:_MOST_SHEETS]
    ]
    if len(keys) > _MOST_SHEETS:
        parts.append(html.note(f"{html.count(len(keys) - _MOST_SHEETS, 'more reason')} not shown"))
    return html.section("failed", "Failed", *parts, note=html.count(report.num_failed, "image"))


def _render_duplicates(found: Scan, cards: _Cards) -> str:
    """Render groups of duplicates side by side."""
    sheets = [
        html.group(_name_group(group), cards(group.rows, marked=True), _describe_sample(len(group.rows), group.size), 3)
        for group in found.groups
    ]
    parts = [html.beside(sheets)]
    if rest := found.num_groups - len(found.groups):
        parts.append(html.note(f"{html.count(rest, 'more group')} not shown; `curator-dali duplicates` lists them"))
    note = f"{html.count(found.num_groups, 'group')} of {html.count(found.num_alike, 'image')}"
    return html.section("duplicates", "Duplicates", *parts, note=note)


def _render_throughput(report: Report) -> str:
    """Render the seconds and the number of images of every stage."""
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


def _render_lineage(report: Report, run: Mapping[str, Any]) -> str:
    """Render the models, the settings and the version."""
    parts = []
    for stage, values in report.lineage.items():
        parts.append(f"<h3>{html.escape(stage)}</h3>{html.facts(_flatten(values))}")
    settings = [
        (stage.get("type", ""), ", ".join(f"{k}={v!r}" for k, v in stage.items() if k != "type" and v is not None))
        for stage in run.get("settings", {}).get("stages", [])
    ]
    if settings:
        parts.append(f"<h3>Settings</h3>{html.table(['stage', 'as it was given'], settings)}")
    about = {"written by": f"curator_dali {run.get('version', '')}", "data set": report.source, "output": report.out}
    parts.append(f"<h3>Output</h3>{html.facts({**about, 'fingerprint': run.get('source')})}")
    return html.section("lineage", "Models and settings", *parts)


def _render_histogram(name: str, found: Scan, limit: Threshold) -> tuple[str, str]:
    """Render a histogram, and the text beneath it."""
    sketch: Sketch = found.scores[name]
    drawn = sketch.histogram(limit)
    if drawn is None:
        return "", ""
    text = [_describe_values(drawn.total, found.missing[name])]
    text += [f"{drawn.below:,} lower ones are in the first bar"] if drawn.below else []
    text += [f"{drawn.above:,} higher ones are in the last bar"] if drawn.above else []
    text += [f"{sketch.infinite:,} infinite"] if sketch.infinite else []
    words = ("at least", "at most")
    kept = [
        f"{word} {html.number(float(bound))}" for word, bound in zip(words, limit, strict=True) if bound is not None
    ]
    text += [f"kept: {' and '.join(kept)}"] if kept else []
    return html.histogram(drawn.counts, drawn.edges, name, limit), "; ".join(text)


def _describe_values(count: int, missing: int) -> str:
    return html.count(count, "image") + (f", {missing:,} without (failed, or dropped before)" if missing else "")


def _describe_sample(shown: int, count: int) -> str:
    return html.count(count, "image") if shown >= count else f"{shown:,} of {html.count(count, 'image')}, by chance"


def _describe_reason(samples: Mapping[Key, Sequence[Row]], report: Report, stage: str, kind: str) -> str:
    shown = len(samples["dropped", stage, kind])
    return _describe_sample(shown, report.dropped.get(stage, {}).get(kind, shown))


def _name_group(group: Group) -> str:
    return str(group.rows[0]["image_id"]) if group.rows else f"group {group.number}"


def _flatten(values: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested names and values to one level, as a.b."""
    if not isinstance(values, Mapping):
        return {name: values if isinstance(values, (str, int, float, type(None))) else str(values)}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{name}.{key}" if name else str(key))
    return flat


def _leave_card(manifest: Manifest) -> None:
    """Write `README.md` into an output with files in it. Another one, of the user's own, stays as it is.

    Raises:
        OutputError: It cannot be written.
    """
    parts = manifest.parts()
    names = [file.name for part in parts for file in part.files]
    ending = next((ending for ending in _CARD_CONFIGS if any(name.endswith(ending) for name in names)), None)
    url = join(manifest.folder, CARD)
    if ending is None:
        return
    card = _make_card(ending, _features(parts) if ending == ".tar" else {})
    if CARD in store.names(manifest.folder) and ((there := _read_card(url)) == card or not _is_ours(there)):
        return
    with explained(url):
        write_file(url, card)


def _make_card(ending: str, features: Mapping[str, str]) -> bytes:
    """The card of an output with tars, or with Parquet files alone; `features` are column -> type."""
    config, about = _CARD_CONFIGS[ending]
    lines = [f"  - name: {json.dumps(name)}\n    dtype: {kind}\n" for name, kind in features.items()]
    info = "".join([f"dataset_info:\n  config_name: {config}\n  features:\n", *lines]) if features else ""
    text = _CARD_TEXT.format(config=config, ending=ending, info=info, about=about)
    return (text + (_CARD_MARK.format(digest=_digest(text)) if info else "")).encode()


def _features(parts: Sequence[Part]) -> dict[str, str]:
    """The columns that `datasets` makes of the tars, with their types; none where it finds these itself, or must.

    `datasets` goes by the first five samples. Where others have other members, it leaves images of another format out
    without a word, and fails where only some samples have a caption.
    """
    with_tars = [part for part in parts if any(file.name.endswith(".tar") for file in part.files)]
    if not all("members" in part.info for part in with_tars):  # of an earlier version
        return {}
    counts: Counter[str] = Counter()
    for part in with_tars:
        counts.update(part.info["members"])
    if set(counts.values()) <= {sum(part.counts.get("kept", 0) for part in with_tars)}:
        return {}
    kinds = {name: _type_of(name) for name in sorted(counts, key=_place)}
    return {**kinds, "__key__": "string", "__url__": "string"} if all(kinds.values()) else {}


def _type_of(name: str) -> str:
    """The type of the members with an extension; empty for an unknown one."""
    ending = name.rpartition(".")[2].lower()
    return "image" if ending in IMAGE_EXTENSIONS else _MEMBER_TYPES.get(ending, "")


def _place(name: str) -> tuple[int, str]:
    """Images come first, what the curation wrote comes last."""
    return 2 if name == CURATION else 0 if _type_of(name) == "image" else 1, name


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read_card(url: str) -> bytes:
    """The content of a card; nothing of a folder, or of a file that may not be read."""
    try:
        return store.read(url) or b""
    except OutputError:
        return b""


def _is_ours(card: bytes) -> bool:
    """Whether a card is as it was written here, so that nothing of the user's is lost with it."""
    if card in [_make_card(ending, {}) for ending in _CARD_CONFIGS]:
        return True
    text = card.decode("utf-8", "replace")
    body, mark, _ = text.rpartition(_CARD_MARK.partition("{")[0])
    return bool(mark) and text == body + _CARD_MARK.format(digest=_digest(body))

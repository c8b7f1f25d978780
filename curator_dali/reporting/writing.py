"""The report of an output: `report.json`, and `report.html`, one file that a browser shows without any other."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from curator_dali import html
from curator_dali._version import __version__
from curator_dali.arguments import checked
from curator_dali.documents import parse_json
from curator_dali.errors import CuratorDaliError, OutputError, SourceError
from curator_dali.files import one_line, write_file
from curator_dali.reopening import reopen_source
from curator_dali.report import Report, add_up
from curator_dali.reporting import pictures, sections
from curator_dali.reporting.cards import cards_of
from curator_dali.reporting.reasons import Kinds, thresholds
from curator_dali.reporting.scan import Row, Scan, scan
from curator_dali.sinks import Manifest, Part, RowFiles, store
from curator_dali.sinks.card import leave_card
from curator_dali.sinks.explain import join

if TYPE_CHECKING:
    import torch

__all__ = ["NAME", "leave_report", "load_report", "write_report"]

logger = logging.getLogger(__name__)

NAME = "report.html"
_BUDGET = 1_000_000  # bytes of all thumbnails; a third more as base64
_MOST_SAMPLES = 24  # reasons with pictures


@checked
def load_report(out: str | os.PathLike[str]) -> Report:
    """The report of an output that is there, finished or not: the counts of its parts, the rest of its `report.json`.

    Raises:
        OutputError: There is no output, or it is of another version.
    """
    manifest = Manifest.load(os.fspath(out))
    return _report(manifest, os.fspath(out))


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
    report = _report(manifest, os.fspath(out))
    found = _scan(manifest, report)
    missing = ""
    shots: dict[int, pictures.Picture] = {}
    try:
        shots = _pictures(manifest, found, source, str(device))
    except SourceError as error:
        if source is not None:
            raise
        missing = str(error)
    target = join(manifest.folder, NAME) if to is None else os.fspath(to)
    write_file(target, _page(report, manifest, found, shots, missing).encode("utf-8"))
    return target


def _report(manifest: Manifest, out: str) -> Report:
    told = _read_report(join(manifest.folder, "report.json"))
    parts = manifest.parts()
    timed = [name for part in parts[:1] for name in part.info.get("seconds", {})]
    labels = [name for name in dict.fromkeys([*timed, *told.get("dropped", {})]) if name not in ("decode", "write")]
    known = {name: told.get(name, "not known") for name in ("source", "device")}
    took = {name: told.get(name, 0) for name in ("earlier", "seconds")}
    return _counted(manifest, parts, labels, out=out, version=manifest.run.get("version", ""), **known, **took)


def _read_report(url: str) -> dict[str, Any]:
    """Read `report.json`; nothing where it is gone or damaged, as the parts say most."""
    try:
        told = parse_json(store.read(url) or b"{}")
    except (ValueError, OutputError) as error:
        logger.warning("%s cannot be read: %s", url, one_line(error))
        return {}
    return told if isinstance(told, dict) else {}


def _counted(manifest: Manifest, parts: Sequence[Part], labels: Sequence[str], **about: Any) -> Report:
    """A report of what is there; `about` is what the output itself does not say."""
    counts = add_up(({"counts": part.counts, "info": part.info} for part in parts), labels)
    return Report(complete=not manifest.missing(), lineage=manifest.run.get("lineage", {}), **counts, **about)


def _scan(manifest: Manifest, report: Report) -> Scan:
    if not report.samples:
        return Scan()
    return scan(RowFiles(manifest.folder), Kinds(manifest.run.get("settings", {}), report.dropped))


def _pictures(manifest: Manifest, found: Scan, source: Any, device: str) -> dict[int, pictures.Picture]:
    rows: list[Row] = [row for group in found.groups for row in group.rows]
    kinds = 0
    for key, some in found.samples.items():
        kinds += key[0] == "dropped"
        rows += some if key[0] == "kept" or (key[0] == "dropped" and kinds <= _MOST_SAMPLES) else []
    if not rows:
        return {}
    opened = reopen_source(manifest, source)
    try:
        return pictures.take(opened, (row["index"] for row in rows), device)
    finally:
        if opened is not source:
            opened.close()


def _page(report: Report, manifest: Manifest, found: Scan, shots: dict[int, pictures.Picture], missing: str) -> str:
    limits = thresholds(manifest.run.get("settings", {}))
    scores = list(limits) or [name for name in found.scores if name not in ("width", "height")]
    cards = functools.partial(
        cards_of,
        pictures=shots,
        sources=pictures.encode(shots, _BUDGET),
        scores=scores,
        without="no picture" if missing else "cannot be decoded now",
    )
    kept = next((rows for key, rows in found.samples.items() if key[0] == "kept"), [])
    parts = {
        "flow": ("Flow", sections.flow(report)),
        "scores": ("Scores", sections.distributions(found, limits)),
        "kept": ("Kept", sections.kept(report, kept, cards)),
        "dropped": ("Dropped", sections.dropped(report, found.samples, cards)),
        "duplicates": ("Duplicates", sections.alike(found, cards)),
        "failed": ("Failed", sections.failed(report, found.samples, cards)),
        "throughput": ("Throughput", sections.throughput(report)),
        "lineage": ("Models and settings", sections.lineage(report, manifest.run)),
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
            sections.head(report),
            html.contents({name: title for name, (title, _) in parts.items()}),
            *(part for _, part in parts.values()),
        ],
    )


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
    report = _counted(manifest, parts, labels, version=__version__, **about)
    _warn_of_misfits(parts)
    write_file(join(manifest.folder, "report.json"), json.dumps(report.as_dict(), indent=1).encode())
    if page and (earlier < report.samples or NAME not in store.names(manifest.folder)):
        _leave_page(manifest.folder, data, device)
    leave_card(manifest)
    return report


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


def _leave_page(out: str, source: Any, device: str) -> None:
    try:
        write_report(out, source=source, device=device)
    except (CuratorDaliError, OSError, ImportError, RuntimeError, ValueError) as error:
        logger.warning("%s could not be written: %s", NAME, error)

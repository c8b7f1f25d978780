"""Files that a finished run leaves beside its parts: `report.json`, `report.html` and the dataset card."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curator_dali.arguments import checked
from curator_dali.errors import CuratorDaliError, OutputError
from curator_dali.io import IMAGE_EXTENSIONS, explained, join, store, write_file
from curator_dali.outputs import CURATION, IMAGES, Manifest, Part, RowFiles
from curator_dali.report.report import Report, read_report
from curator_dali.report.scan import Group, Histogram, Key, Scan, Threshold, scan, thresholds
from curator_dali.report.selection import Picture, make_cards, read_pictures
from curator_dali.view import embed_pictures, html

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_PAGE = "report.html"
_PICTURE_BYTES = 1_000_000  # of all thumbnails; a third more as base64
_MOST_SHEETS = 24  # of reasons; those of more are counted, and have no pictures
_MOST_CLASSES = 12
_SIZES = ("width", "height")
_KEPT = ("kept", "", "")

CARD = "README.md"

# File ending of what is kept -> the configuration, and what it reads.
_CARD_CONFIGS = {
    IMAGES: ("images", "the images that were kept, with what is known of each"),
    ".tar": ("samples", "the samples that were kept, from the tars"),
    ".parquet": ("rows", "these rows, too"),
}
_CARD_MARK = "\n<!-- as written: {digest} -->\n"  # a card that was changed since is the user's own

# Types of the members that `datasets` decodes by their extensions. A JSON member is `json`, since fields of samples
# differ; an extension that is neither here nor an image's leaves all types to `datasets`.
_MEMBER_TYPES = {"txt": "string", "text": "string", "cls": "int64", "json": "json"}


def leave_report(manifest: Manifest, report: Report, data: Any = None, page: bool = True) -> Report:
    """Leave the report of a run that has ended in its folder, as `report.json` and `report.html`, and its card.

    The page is not made again where the run had nothing to do. If it cannot be made a warning says so, and the run does
    not fail for it: what was curated is there and finished.

    Args:
        manifest: The output's.
        report: What the run did; pictures are decoded on its device.
        data: The data set, for pictures; None: the output says how to open it.
        page: Whether to leave `report.html`.
    """
    parts = manifest.parts()
    _warn_of_misfits(parts)
    _warn_of_idle_lists(manifest, report)
    write_file(join(manifest.folder, "report.json"), json.dumps(report.as_dict(), indent=1).encode())
    if page and (report.earlier < report.samples or _PAGE not in store.names(manifest.folder)):
        _leave_page(manifest.folder, data, report.device)
    _leave_card(manifest, parts)
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


def _warn_of_idle_lists(manifest: Manifest, report: Report) -> None:
    """Say which lists of images to leave out named no image at all: a takedown must not fail in silence."""
    deciding = [f"Exclude({stage.get('by')})" for stage in manifest.run["settings"].get("stages", ())]
    for label, about in manifest.run.get("lineage", {}).items():  # also that of the output that was decided anew
        entries = about.get("entries") if isinstance(about, Mapping) else None
        if entries and label.partition(" #")[0] in deciding and label not in report.dropped:
            logger.warning(
                "%s dropped nothing: none of the %s entries of its list names an image that came to it",
                label,
                f"{entries:,}",
            )


@checked
def write_report(
    out: str | os.PathLike[str],
    *,
    source: Any = None,
    to: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
) -> str:
    """Write `report.html` for an output that is there, from what lies in its folder and some pictures of its data set.

    In memory are a block of rows, a few thousand rows of the samples, a million values of each score, and thumbnails.

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
    limits = thresholds(manifest.run.get("settings", {}))
    found = scan(RowFiles(manifest.folder), report.samples, report.dropped, limits) if report.samples else Scan()
    groups = [found.samples[key] for key in _order_kinds(report, found, "dropped")[:_MOST_SHEETS]]
    groups += [found.samples.get(_KEPT, []), *(group.rows for group in found.groups)]
    shots, missing = read_pictures(manifest, [row["index"] for rows in groups for row in rows], source, str(device))
    target = join(manifest.folder, _PAGE) if to is None else os.fspath(to)
    write_file(target, _render_page(report, manifest, found, limits, shots, missing).encode("utf-8"))
    return target


def _order_kinds(report: Report, found: Scan, status: str) -> list[Key]:
    """Order the kinds of reasons that have samples: by the stages, and by how many there are."""
    stages = list(report.dropped)
    return sorted(
        (key for key in found.samples if key[0] == status),
        key=lambda key: (stages.index(key[1]) if key[1] in stages else len(stages), -_count_of(report, key)),
    )


def _count_of(report: Report, key: Key) -> int:
    """The count of a kind of reason; 0 where it is none, as a custom stage may have a new reason for every image."""
    status, stage, kind = key
    return int((report.failed if status == "failed" else report.dropped.get(stage, {})).get(kind, 0))


def _render_page(
    report: Report,
    manifest: Manifest,
    found: Scan,
    limits: Mapping[str, Threshold],
    shots: Mapping[int, Picture],
    missing: str,
) -> str:
    """Fill the template `report.html`: numbers and names of this report, and cards of pictures."""
    scores = list(limits) or [name for name in found.scores if name not in _SIZES]
    without = "no picture" if missing else "cannot be decoded now"
    cards = functools.partial(make_cards, pictures=shots, scores=scores, without=without)
    shown = {"kept": [("", _describe_sample(len(kept := found.samples.get(_KEPT, [])), report.kept), cards(kept))]}
    hidden = {"duplicates": found.num_groups - len(found.groups)}
    shown["duplicates"] = [
        (_name_group(group), _describe_sample(len(group.rows), group.size), cards(group.rows, marked=True))
        for group in found.groups
    ]
    for status in ("dropped", "failed"):
        keys = _order_kinds(report, found, status)
        hidden[status], shown[status] = len(keys) - _MOST_SHEETS, []
        for key in keys[:_MOST_SHEETS]:
            rows = found.samples[key]
            note = _describe_sample(len(rows), _count_of(report, key) or len(rows))
            shown[status].append((key[2], f"{key[1]} · {note}" if status == "dropped" else note, cards(rows)))
    embed_pictures((card for made in shown.values() for _, _, some in made for card in some), _PICTURE_BYTES)
    return str(
        html.render(
            "report.html",
            title=f"Curation of {report.source}",
            report=report,
            run=manifest.run,
            lacking=0 if report.complete else manifest.samples - report.samples,
            samples=manifest.samples,
            missing=missing,
            found=found,
            shown=shown,
            hidden=hidden,
            histograms=_describe_histograms(found, limits),
            bars=_describe_classes(found),
            throughput=_list_throughput(report),
            lineage={stage: _flatten(values) for stage, values in report.lineage.items()},
            settings=[
                (
                    stage.get("type", ""),
                    ", ".join(f"{k}={v!r}" for k, v in stage.items() if k != "type" and v is not None),
                )
                for stage in manifest.run.get("settings", {}).get("stages", [])
            ],
        )
    )


def _describe_histograms(found: Scan, limits: Mapping[str, Threshold]) -> list[tuple[str, Histogram, Threshold, str]]:
    """List name, histogram, bounds and the text beneath of each score. Scores with a threshold come first."""
    listed = []
    for name in sorted(found.scores, key=lambda name: (name not in limits, name in _SIZES)):
        drawn, limit = found.scores[name], limits.get(name, (None, None))
        text = [_describe_values(drawn.total, found.missing[name])]
        text += [f"{drawn.below:,} lower ones are in the first bar"] if drawn.below else []
        text += [f"{drawn.above:,} higher ones are in the last bar"] if drawn.above else []
        text += [f"{drawn.infinite:,} infinite"] if drawn.infinite else []
        bounds = zip(("at least", "at most"), limit, strict=True)
        kept = [f"{word} {html.number(float(bound))}" for word, bound in bounds if bound is not None]
        text += [f"kept: {' and '.join(kept)}"] if kept else []
        listed.append((name, drawn, limit, "; ".join(text)))
    return listed


def _describe_classes(found: Scan) -> list[tuple[str, dict[str, int], int, str]]:
    """List name, the most frequent values, the number of images and the text beneath of each class."""
    listed = []
    for name, counted in found.classes.items():
        rest = len(counted) - _MOST_CLASSES
        text = _describe_values(counted.total(), found.missing[name]) + (f"; {rest:,} other values" if rest > 0 else "")
        listed.append((name, dict(counted.most_common(_MOST_CLASSES)), counted.total(), text))
    return listed


def _list_throughput(report: Report) -> list[tuple[str, int, float, float | None]]:
    """List name, images, seconds and images a second of each stage."""
    left, rows = report.samples, []
    for name, seconds in report.stages.items():
        if name == "write":
            left = report.samples
        rows.append((name, left, round(seconds, 3), left / seconds if seconds else None))
        left -= report.num_failed if name == "decode" else sum(report.dropped.get(name, {}).values())
    return rows


def _describe_values(count: int, missing: int) -> str:
    return html.count(count, "image") + (f", {missing:,} without (failed, or dropped before)" if missing else "")


def _describe_sample(shown: int, count: int) -> str:
    return html.count(count, "image") if shown >= count else f"{shown:,} of {html.count(count, 'image')}, by chance"


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


def _leave_card(manifest: Manifest, parts: Sequence[Part]) -> None:
    """Write `README.md` into an output with files in it. Another one, of the user's own, stays as it is.

    Raises:
        OutputError: It cannot be written.
    """
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
    """The card of an output whose samples are in files with an ending; `features` are column -> type."""
    config, about = _CARD_CONFIGS[ending]
    columns = {json.dumps(name): kind for name, kind in features.items()}
    rows = "*[0-9].parquet" if ending == IMAGES else "*.parquet"  # a name ends with the number behind its last sample
    text = str(html.render("card.md", config=config, ending=ending, columns=columns, about=about, rows=rows)) + "\n"
    return (text + (_CARD_MARK.format(digest=_digest(text)) if features else "")).encode()


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

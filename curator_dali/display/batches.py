"""A batch as a contact sheet in HTML, or as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator_dali import arrays, checks, html
from curator_dali.arguments import checked
from curator_dali.batch import ImageBatch, ImageObject
from curator_dali.display import thumbnails
from curator_dali.wording import terminal_safe

__all__ = ["Sheet", "image_html", "show"]

BUDGET = 200_000  # bytes of JPEG in one display; as base64 a third more
_FROM_GROUP = 4  # images of a group that are shown, at the least
_NOT_SCORES = ("width", "height")


@dataclass(frozen=True, repr=False)
class Sheet:
    """What `show` returns: HTML in a notebook, a table of text in a terminal.

    Attributes:
        parts: HTML.
        text: The same without pictures.
    """

    parts: tuple[str, ...]
    text: str

    def save(self, path: str | Path, title: str = "curator_dali") -> Path:
        """Write it as a page for a browser, which needs no other file; returns the path."""
        path = Path(path)
        path.write_text(html.page(title, self.parts), "utf-8")
        return path

    def _repr_html_(self) -> str:
        return html.block(*self.parts)

    def __repr__(self) -> str:
        return self.text


@checked
def show(
    batch: ImageBatch,
    n: int = 24,
    *,
    sort_by: str | None = None,
    descending: bool = False,
    columns: Sequence[str] | None = None,
    group_by: Any = None,
    view: Sequence[Any] | None = None,
) -> Sheet:
    """See `ImageBatch.show`."""
    if n < 0:
        raise ValueError(f"n is {n}; give the number of images to show, at least 0")
    if sort_by is not None and not (group_by is None or isinstance(group_by, str)):
        raise ValueError("group_by with row numbers means the rows as they are; leave sort_by out")
    if sort_by is not None:
        batch = batch.sort_by(sort_by, descending=descending)
    fields = None if columns is None else {name: batch.values(name) for name in columns}
    if group_by is not None:
        groups = _groups(batch, group_by)
        each = max(_FROM_GROUP, n // max(len(groups), 1))
        picked: list[tuple[str, list[int], int]] = []
        room = n
        for title, rows in groups:
            if room:
                picked.append((title, rows[: min(each, room)], len(rows)))
                room -= len(picked[-1][1])
        shown = [row for _, rows, _ in picked for row in rows]
        marks = None if not hasattr(group_by, "kept") else np.where(group_by.kept, "kept", "dropped")
        cards = iter(_cards(batch, shown, fields, view, marks))
        head = html.note(html.count(len(groups), "group") + (f" by {group_by}" if isinstance(group_by, str) else ""))
        parts = [head] + [
            html.group(title, [next(cards) for _ in rows], _of(len(rows), size)) for title, rows, size in picked
        ]
    else:
        shown = list(range(min(n, len(batch))))
        parts = [
            html.note(" · ".join(_about(batch))),
            html.sheet(_cards(batch, shown, fields, view)),
        ]
    hidden = len(batch) - len(shown)
    rest = f"{html.count(hidden, 'more image')} not shown" if hidden else ""
    parts += [html.note(rest)] if rest else []
    text = "\n".join([repr(batch), *_lines(batch, shown[:20], fields), *([rest] if rest else [])])
    return Sheet(tuple(parts), text)


def image_html(item: ImageObject) -> str:
    """One image with all that is known of it, for `ImageObject._repr_html_`."""
    size = _size(tuple(item.image_data.shape)) if item.image_data is not None else (3, 4)
    source, missing = "", "pixels are not on the host"
    if item.image_data is not None:
        (source,), (missing,) = _pictures([item.image_data], height=300)
    picture = (
        f'<img src="{html.escape(source, len(source))}" alt="{html.escape(item.image_id)}">'
        if source
        else f'<div class="cd-none" style="--a:1.5;min-width:150px">{html.escape(missing)}</div>'
    )
    values = {
        "id": item.image_id,
        "path": item.image_path,
        "pixels": f"{size[1]} × {size[0]}" if item.image_data is not None else None,
        "aesthetic score": item.aesthetic_score,
        "nsfw score": item.nsfw_score,
        "embedding": None if item.embedding is None else f"{item.embedding.size} {item.embedding.dtype}",
        **{f"metadata {key}": value for key, value in item.metadata.items()},
    }
    return html.block(f'<div class="cd-one"><div class="cd-pic">{picture}</div><div>{html.facts(values)}</div></div>')


def _about(batch: ImageBatch) -> list[str]:
    """How many images, of which sizes, and where."""
    about = [html.count(len(batch), "image")]
    if batch.images is not None and len(batch):
        sizes = sorted(map(_size, arrays.shapes(batch.images)), key=lambda size: (size[0] * size[1], size))
        ends = dict.fromkeys(f"{size[1]} × {size[0]}" for size in (sizes[0], sizes[-1]))
        about.append(f"{' to '.join(ends)} {checks.dtype_of(batch.images[0])}")
    elif batch.images is None:
        about.append("a view" if batch.views else "no pixels on the device")
    if batch.embeddings is not None:
        about.append(f"embeddings of {batch.embeddings.shape[1]}")
    return [*about, batch.device]


def _groups(batch: ImageBatch, by: Any) -> list[tuple[str, list[int]]]:
    """Title and rows of each group, in the order in which the batch has them; a mapping's own order."""
    if hasattr(by, "members"):
        return [(batch.data[keeper].image_id, rows) for keeper, rows in by.members().items()]
    if not isinstance(by, str):
        return [(str(key), [int(row) for row in rows]) for key, rows in by.items() if len(rows)]
    found: dict[str, list[int]] = {}
    for row, value in enumerate(batch.values(by)):
        found.setdefault(html.number(value) or "none", []).append(row)
    return [(f"{by} {title}", rows) for title, rows in found.items()]


def _of(shown: int, size: int) -> str:
    return html.count(size, "image") if shown == size else f"{shown:,} of {html.count(size, 'image')}"


def _cards(
    batch: ImageBatch,
    rows: Sequence[int],
    fields: Mapping[str, Any] | None,
    view: Sequence[Any] | None,
    marks: Any = None,
) -> list[html.Card]:
    pixels = _pixels(batch, rows, view)
    pictures, missing = _pictures(pixels)
    cards = []
    for row, image, source, reason in zip(rows, pixels, pictures, missing, strict=True):
        item = batch.data[row]
        shape = (3, 4) if image is None else _size(tuple(image.shape))
        cards.append(
            html.Card(
                source,
                width=shape[1],
                height=shape[0],
                title=item.image_id,
                facts=_facts(batch, row, shape if image is not None else None, fields),
                text="" if fields is not None else str(item.metadata.get("caption") or ""),
                mark="" if marks is None else str(marks[row]),
                missing=reason,
            )
        )
    return cards


def _pixels(batch: ImageBatch, rows: Sequence[int], view: Sequence[Any] | None) -> list[Any]:
    """The images of some rows where they lie: of `images`, else the first view, else of what `data` has."""
    if view is not None:
        batch.to_torch(view)  # says what is missing
        return [batch.views[tuple(view)][row] for row in rows]
    if batch.images is not None:
        return [batch.images[row] for row in rows]
    if batch.views:
        first = next(iter(batch.views.values()))
        return [first[row] for row in rows]
    return [batch.data[row].image_data for row in rows]


def _pictures(pixels: Sequence[Any], height: int = 168) -> tuple[list[str], list[str]]:
    """A data URI an image, "" where there is none, and why there is none."""
    missing = ["no pixels" if image is None else _trouble(image) for image in pixels]
    good = [row for row, reason in enumerate(missing) if not reason]
    small = thumbnails.encode(thumbnails.reduce([pixels[row] for row in good], height), BUDGET)
    found = dict(zip(good, map(html.data_uri, small), strict=True))
    return [found.get(row, "") for row in range(len(pixels))], missing


def _trouble(image: Any) -> str:
    shape = tuple(image.shape)
    is_picture = len(shape) == 3 and 0 not in shape and (shape[2] == 3 or shape[0] == 3)
    return "" if is_picture else f"no picture: shape {shape}"


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of an image of this shape: (H, W, 3), or (3, H, W) after a `Normalize`."""
    return shape[1:3] if len(shape) == 3 and shape[2] != 3 and shape[0] == 3 else (*shape, 1, 1)[:2]


def _facts(batch: ImageBatch, row: int, shape: tuple[int, ...] | None, fields: Mapping[str, Any] | None) -> list[str]:
    """Size and scores of an image, or the fields that were asked for."""
    if fields is not None:
        return [f"{name} {html.number(_plain(values[row])) or 'none'}" for name, values in fields.items()]
    item = batch.data[row]
    facts = []
    if all(name in batch.columns for name in _NOT_SCORES):
        facts.append(f"{batch.columns['width'][row]} × {batch.columns['height'][row]}")
    elif shape is not None:
        facts.append(f"{shape[1]} × {shape[0]}")
    values = {"aesthetic_score": item.aesthetic_score, "nsfw_score": item.nsfw_score}
    values |= {name: column[row] for name, column in batch.columns.items() if name not in _NOT_SCORES}
    return facts + [f"{name} {text}" for name, value in values.items() if (text := html.number(_plain(value)))]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _lines(batch: ImageBatch, rows: Sequence[int], fields: Mapping[str, Any] | None) -> list[str]:
    """A line an image for a terminal."""
    shapes = arrays.shapes(batch.images) if batch.images is not None else [None] * len(batch)
    ids = [" ".join(batch.data[row].image_id.split())[:40] for row in rows]
    width = max(map(len, ids), default=0)
    facts = [_facts(batch, row, shapes[row], fields) for row in rows]
    lines = [f"  {name:<{width}}  {' · '.join(about)}" for name, about in zip(ids, facts, strict=True)]
    return [terminal_safe(line) for line in lines]

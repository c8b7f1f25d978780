"""Contact sheets and tables in HTML, or as text in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curator_dali.errors import count, terminal_safe
from curator_dali.view import html, thumbnails

__all__ = ["Sheet", "draw_cards", "draw_image", "list_images", "loader_html", "size_of"]

_PICTURE_BYTES = 200_000  # bytes of JPEG in one display; as base64 a third more


@dataclass(frozen=True, repr=False)
class Sheet:
    """A contact sheet: HTML in a notebook, a table of text in a terminal.

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


def draw_cards(cards: Sequence[html.Card], pixels: Sequence[Any]) -> list[html.Card]:
    """Put thumbnails into cards, or the reasons why there are none.

    Args:
        cards: N cards.
        pixels: N images on any device, each (H, W, 3) or (3, H, W), or None.
    """
    sources, missing = _embed_thumbnails(pixels)
    return [
        replace(card, source=source, missing=reason)
        for card, source, reason in zip(cards, sources, missing, strict=True)
    ]


def draw_image(pixels: Any, title: str, facts: Mapping[str, Any]) -> str:
    """HTML of one image beside a table of facts.

    Args:
        pixels: (H, W, 3) or (3, H, W), or None.
        title: Text in place of the picture.
        facts: Name -> value; None and "" are left out.
    """
    source, missing = "", "pixels are not on the host"
    if pixels is not None:
        (source,), (missing,) = _embed_thumbnails([pixels], height=300)
    picture = (
        f'<img src="{html.escape(source, len(source))}" alt="{html.escape(title)}">'
        if source
        else f'<div class="cd-none" style="--a:1.5;min-width:150px">{html.escape(missing)}</div>'
    )
    return html.block(f'<div class="cd-one"><div class="cd-pic">{picture}</div><div>{html.facts(facts)}</div></div>')


def list_images(titles: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
    """A line for a terminal of each image's title and facts."""
    ids = [" ".join(title.split())[:40] for title in titles]
    width = max(map(len, ids), default=0)
    lines = [f"  {name:<{width}}  {' · '.join(about)}" for name, about in zip(ids, facts, strict=True)]
    return [terminal_safe(line) for line in lines]


def size_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of an image of this shape: (H, W, 3), or (3, H, W) after a `Normalize`."""
    return shape[1:3] if len(shape) == 3 and shape[2] != 3 and shape[0] == 3 else (*shape, 1, 1)[:2]


def _embed_thumbnails(pixels: Sequence[Any], height: int = 168) -> tuple[list[str], list[str]]:
    """A data URI an image, "" where there is none, and why there is none."""
    missing = ["no pixels" if image is None else _trouble(image) for image in pixels]
    good = [row for row, reason in enumerate(missing) if not reason]
    small = thumbnails.encode(thumbnails.reduce([pixels[row] for row in good], height), _PICTURE_BYTES)
    found = dict(zip(good, map(html.data_uri, small), strict=True))
    return [found.get(row, "") for row in range(len(pixels))], missing


def _trouble(image: Any) -> str:
    shape = tuple(image.shape)
    is_picture = len(shape) == 3 and 0 not in shape and (shape[2] == 3 or shape[0] == 3)
    return "" if is_picture else f"no picture: shape {shape}"


def loader_html(loader: Any) -> str:
    """What an `ImageLoader` reads, how, where it stands and what it did. Reads nothing."""
    position, stats, shard = loader.position, loader.stats, loader.shard
    done = f"{position.position:,} of {loader.num_samples:,} samples" if position.position else "at the beginning"
    values = {
        "source": repr(loader.source),
        "samples": loader.num_samples,
        "batch size": f"{loader.batch_size:,}",
        "device": loader.device,
        "images": _sequence(loader.transforms),
        "views": ", ".join(map(_sequence, loader.views)),
        "order": f"shuffled, seed {loader.shuffle.seed}" if loader.shuffle else "as the source has it",
        "rank": f"{shard.rank} of {shard.world_size}" if shard.world_size > 1 else "",
        "epoch": f"{position.epoch}, {done}",
    }
    parts = ["<h3>ImageLoader</h3>", html.facts(values)]
    if stats.batches or stats.failed:
        speed = f"{stats.images_per_second:,.0f} a second"
        seconds = {name: getattr(stats, f"{name}_seconds") for name in ("wait", "read", "gate", "decode")}
        parts += [
            "<h4>This pass</h4>",
            html.facts(
                {
                    "images": f"{stats.samples:,} in {stats.seconds:.2f} s, {speed}",
                    "left out": count(stats.failed, "image") if stats.failed else "",
                    "by Pillow": count(stats.fallback, "image") if stats.fallback else "",
                    "bytes read": f"{stats.bytes / 1e6:,.1f} MB",
                    "time": ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()),
                }
            ),
        ]
    return html.block(*parts)


def _sequence(transforms: Any) -> str:
    if transforms is None:
        return "none, only views"
    return ", ".join(map(repr, transforms)) or "as they are"

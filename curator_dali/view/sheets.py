"""Cards of images, made once for HTML and for Pillow; contact sheets of them, and what an `ImageLoader` shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import count, terminal_safe
from curator_dali.view import html, thumbnails
from curator_dali.view.html import Card

if TYPE_CHECKING:
    from PIL import Image, ImageFont

_PICTURE_BYTES = 200_000  # bytes of JPEG in one display; as base64 a third more
_MOST_LINES = 20  # images of a sheet that a terminal lists
_LONGEST_TITLE = 40  # characters there

_GROUND = "#fbfbfa"
_PLATE = "#efefec"  # behind a letterboxed image, so that its cell stays visible
_INK = "#1f2328"
_FAINT = "#6e7781"
_GAP = 14  # between cells, and half of it around the sheet
_FONT_SIZE = 12
_LINE_HEIGHT = 16


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


def make_card(
    title: str,
    shape: Sequence[int] | None,
    size: Sequence[int] | None,
    values: Mapping[str, Any],
    *,
    reason: str = "",
    **more: Any,
) -> Card:
    """Make the card of an image.

    Args:
        title: The id.
        shape: Width and height of the picture, or None where there is none.
        size: Width and height of the image, to be told; or None.
        values: Name -> value, to be told; missing ones are left out.
        reason: Why the image was dropped, to be told in place of values.
        more: Further fields of `Card`.
    """
    width, height = shape or (4, 3)
    told = [reason] if reason else [f"{name} {text}" for name, value in values.items() if (text := html.number(value))]
    return Card(title, width, height, facts=[*([f"{size[0]} × {size[1]}"] if size else []), *told], **more)


def take_pictures(cards: Sequence[Card], images: Sequence[Any], height: int = thumbnails.HEIGHT) -> None:
    """Put thumbnails into cards, or the reasons why there are none.

    Args:
        cards: N cards.
        images: N images on any device, each (H, W, 3) or (3, H, W), or None.
        height: Most rows of a thumbnail.
    """
    good = []
    for card, image in zip(cards, images, strict=True):
        shape = () if image is None else tuple(image.shape)
        if len(shape) == 3 and 0 not in shape and 3 in (shape[0], shape[2]):
            good.append((card, image))
        elif image is not None:
            card.missing = f"no picture: shape {shape}"
    for (card, _), pixels in zip(good, thumbnails.make_thumbnails([image for _, image in good], height), strict=True):
        card.pixels = pixels


def embed_pictures(cards: Iterable[Card], budget: int = _PICTURE_BYTES) -> None:
    """Encode the thumbnails of cards, each once. All files have at most `budget` bytes; base64 adds a third."""
    cards = list(cards)
    pixels = {id(card.pixels): card.pixels for card in cards if card.pixels is not None}
    sources = dict(zip(pixels, map(html.data_uri, thumbnails.encode([*pixels.values()], budget)), strict=True))
    for card in cards:
        card.source = sources.get(id(card.pixels), card.source)


def make_sheet(
    head: Sequence[str], groups: Sequence[tuple[str, str, Sequence[Card]]], hidden: int, first: str = ""
) -> Sheet:
    """Make a contact sheet.

    Args:
        head: Lines above the images.
        groups: Title, note and cards of each; a group without a title is the only one.
        hidden: Images that are not shown.
        first: The first line in a terminal, if not `head`.
    """
    cards = [card for _, _, members in groups for card in members]
    embed_pictures(cards)
    rest = [f"{count(hidden, 'more image')} not shown"] if hidden > 0 else []
    lines = [(" ".join(card.title.split())[:_LONGEST_TITLE], card) for card in cards[:_MOST_LINES]]
    width = max((len(title) for title, _ in lines), default=0)
    plain = [
        terminal_safe(f"  {title:<{width}}  {' · '.join(card.facts) or card.missing}".rstrip()) for title, card in lines
    ]
    made = html.macros()
    sheets = [made.group(title, some, note) if title else made.sheet(some) for title, note, some in groups]
    parts = [*map(made.note, head), *sheets, *map(made.note, rest)]
    return Sheet(tuple(map(str, parts)), "\n".join([first or head[0], *plain, *rest]))


def draw_image(pixels: Any, title: str, facts: Mapping[str, Any]) -> str:
    """HTML of one image beside a table of facts.

    Args:
        pixels: (H, W, 3) or (3, H, W), or None.
        title: Text in place of the picture.
        facts: Name -> value; None and "" are left out.
    """
    card = Card(title, missing="pixels are not on the host")
    take_pictures([card], [pixels], height=300)
    embed_pictures([card])
    return str(html.render("image.html", card=card, facts=facts))


def draw_contact_sheet(
    images: Sequence[NDArray[Any] | Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    thumb: int = 160,
) -> Image.Image:
    """Draw images with Pillow; see `batch.contact_sheet`.

    Raises:
        ValueError: There are no images, an image has another shape or type, or the number of captions differs.
    """
    from PIL import Image, ImageDraw

    if not len(images):
        raise ValueError("a contact sheet needs at least one image, got none")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"got {len(captions)} captions for {len(images)} images: give one an image")
    if thumb < 16:
        raise ValueError(f"thumb is {thumb}; give the side of a cell in pixels, at least 16")

    texts = [caption.split("\n") for caption in captions or [""] * len(images)]
    cards = [Card(title, facts=facts) for title, *facts in texts]
    arrays = [_check_image(image, number) for number, image in enumerate(images)]
    font = _find_font("".join(captions or ""))
    lines = max(1 + len(card.facts) for card in cards) if captions is not None else 0
    cell_height = thumb + (6 + lines * _LINE_HEIGHT if lines else 0)
    if columns is None:
        columns = max(1, round(math.sqrt(len(images) * 1.5 * cell_height / thumb)))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)

    size = (columns * (thumb + _GAP) + _GAP, rows * (cell_height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (card, pixels) in enumerate(
        zip(cards, thumbnails.make_thumbnails(arrays, thumb, thumb, enlarge=True), strict=True)
    ):
        left = _GAP + number % columns * (thumb + _GAP)
        top = _GAP + number // columns * (cell_height + _GAP)
        small = Image.fromarray(pixels)
        draw.rectangle((left, top, left + thumb - 1, top + thumb - 1), fill=_PLATE)
        sheet.paste(small, (left + (thumb - small.width) // 2, top + (thumb - small.height) // 2))
        for line, words in enumerate([card.title, *card.facts]):
            place = (left + thumb / 2, top + thumb + 6 + line * _LINE_HEIGHT)
            draw.text(place, _shorten(words, font, thumb), _FAINT if line else _INK, font, anchor="ma")
    return sheet


def _check_image(image: Any, number: int) -> Any:
    """Return pixels that can be drawn, where they are.

    Raises:
        ValueError: The image has another shape or type.
    """
    pixels = np.asarray(image.convert("RGB")) if hasattr(image, "convert") else image
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"image {number} must be (H, W, 3) uint8, got shape {pixels.shape} and dtype {pixels.dtype}")
    return pixels


def _find_font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, the same everywhere; for letters that it lacks, a wider one if the system has it."""
    from PIL import ImageFont

    if not text.isascii():
        for name in ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf"):
            with suppress(OSError):
                return ImageFont.truetype(name, _FONT_SIZE)
    return ImageFont.load_default(_FONT_SIZE)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Leave out the middle of what is too wide: the ends of an id tell the most."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # the most characters that fit: invariant `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if font.getlength(_without_middle(text, middle)) <= width else (low, middle)
    return _without_middle(text, low)


def _without_middle(text: str, keep: int) -> str:
    tail = keep // 2
    return text[: keep - tail] + "…" + text[len(text) - tail :]


def size_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of an image of this shape: (H, W, 3), or (3, H, W) after a `Normalize`."""
    return shape[1:3] if len(shape) == 3 and shape[2] != 3 and shape[0] == 3 else (*shape, 1, 1)[:2]


def loader_html(loader: Any) -> str:
    """What an `ImageLoader` reads, how, where it stands and what it did. Reads nothing."""
    position, stats, shard = loader.position, loader.stats, loader.shard
    total = f" of {loader.num_samples:,}" if loader.is_counted else ""
    done = f"{position.position:,}{total} samples" if position.position else "at the beginning"
    about = {
        "source": repr(loader.source),
        "samples": loader.num_samples if loader.is_counted else "not counted yet",
        "batch size": f"{loader.batch_size:,}",
        "device": loader.device,
        "images": _sequence(loader.transforms),
        "views": ", ".join(map(_sequence, loader.views)),
        "order": f"shuffled, seed {loader.shuffle.seed}" if loader.shuffle else "as the source has it",
        "rank": f"{shard.rank} of {shard.world_size}" if shard.world_size > 1 else "",
        "epoch": f"{position.epoch}, {done}",
    }
    passed: dict[str, str] = {}
    if stats.batches or stats.failed:
        seconds = {name: getattr(stats, f"{name}_seconds") for name in ("wait", "read", "gate", "decode")}
        passed = {
            "images": f"{stats.samples:,} in {stats.seconds:.2f} s, {stats.images_per_second:,.0f} a second",
            "left out": count(stats.failed, "image") if stats.failed else "",
            "by Pillow": count(stats.fallback, "image") if stats.fallback else "",
            "bytes read": f"{stats.bytes / 1e6:,.1f} MB",
            "time": ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()),
        }
    return str(html.render("loader.html", about=about, passed=passed))


def _sequence(transforms: Any) -> str:
    if transforms is None:
        return "none, only views"
    return ", ".join(map(repr, transforms)) or "as they are"

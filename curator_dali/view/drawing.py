"""Contact sheets as pictures, each image with its caption. The only file that draws with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["draw_contact_sheet", "thumbnail"]

_GROUND = "#fbfbfa"
_PLATE = "#efefec"  # behind a letterboxed image, so that its cell stays visible
_TEXT = "#1f2328"
_FAINT = "#6e7781"
_GAP = 14  # between cells, and half of it around the sheet
_FONT_SIZE = 12
_LINE = 16


def draw_contact_sheet(
    images: Sequence[NDArray[Any] | Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    thumb: int = 160,
) -> Image.Image:
    """Draw images as a grid of letterboxed thumbnails with a caption under each.

    Args:
        images: (H, W, 3) uint8 RGB arrays (numpy, CuPy) of any sizes, or Pillow images.
        captions: One text an image. Text after a line break goes onto a fainter line.
        columns: Cells a row, at least 1; by default so many that the sheet is about 3:2.
        thumb: Side of a cell's square in pixels.

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
    font = _font("".join(captions or ""))
    lines = max(len(text) for text in texts) if captions is not None else 0
    cell_height = thumb + (6 + lines * _LINE if lines else 0)
    if columns is None:
        columns = max(1, round(math.sqrt(len(images) * 1.5 * cell_height / thumb)))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)

    size = (columns * (thumb + _GAP) + _GAP, rows * (cell_height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        left = _GAP + number % columns * (thumb + _GAP)
        top = _GAP + number // columns * (cell_height + _GAP)
        small = thumbnail(image, thumb, f"image {number}")
        draw.rectangle((left, top, left + thumb - 1, top + thumb - 1), fill=_PLATE)
        sheet.paste(small, (left + (thumb - small.width) // 2, top + (thumb - small.height) // 2))
        for line, words in enumerate(text):
            place = (left + thumb / 2, top + thumb + 6 + line * _LINE)
            draw.text(place, _shorten(words, font, thumb), _FAINT if line else _TEXT, font, anchor="ma")
    return sheet


def thumbnail(image: NDArray[Any] | Image.Image, size: int = 160, name: str = "the image") -> Image.Image:
    """Scale an image so that its longer side has `size` pixels; small ones are enlarged.

    Args:
        image: (H, W, 3) uint8 RGB, or a Pillow image.
        size: Pixels of the longer side.
        name: What to call the image in an error.

    Raises:
        ValueError: The image has another shape or type.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        array = np.asarray(image.get() if hasattr(image, "get") else image)  # .get(): CuPy to the host
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
            raise ValueError(f"{name} must be (H, W, 3) uint8, got shape {array.shape} and dtype {array.dtype}")
        image = Image.fromarray(array)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
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

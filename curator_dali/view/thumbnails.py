"""Thumbnails of images that lie on a device, and contact sheets that Pillow draws."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.threads import import_whole
from curator_dali.view.html import WIDEST_CARD

if TYPE_CHECKING:
    import torch
    from PIL import Image, ImageFont

__all__ = ["draw_contact_sheet", "encode", "reduce", "thumbnail"]

# (pixels of the height, JPEG quality), until all images of a sheet fit into its bytes
_JPEG_SETTINGS = ((320, 84), (168, 82), (152, 76), (136, 70), (120, 62), (104, 52), (80, 40), (56, 35), (40, 30))
_AVERAGED_PIXELS = 4  # rows and columns to be averaged for one of the thumbnail; all beyond are skipped

_GROUND = "#fbfbfa"
_PLATE = "#efefec"  # behind a letterboxed image, so that its cell stays visible
_INK = "#1f2328"
_FAINT = "#6e7781"
_GAP = 14  # between cells, and half of it around the sheet
_FONT_SIZE = 12
_LINE_HEIGHT = 16


def reduce(images: Sequence[Any], height: int = 168) -> list[NDArray[np.uint8]]:
    """Thumbnails, made where the images are; nothing else comes to the host.

    Huge images are thinned out before they are averaged, which bounds the memory: good to look at, not to measure on.
    Floating-point images (after a `Normalize`) are stretched from their lowest to their highest value.

    Args:
        images: Arrays (numpy, CuPy) or tensors, (H, W, 3) uint8, or (H, W, 3) or (3, H, W) floating point.
        height: Most rows of a thumbnail; its columns are at most 2.4 times as many. Small images stay as they are.

    Returns:
        (h, w, 3) uint8 on the host, one an image.

    Raises:
        ValueError: An image has another shape or is empty.
    """
    import_whole("torch")
    import torch

    with torch.inference_mode():
        small = [_reduce_image(image, height) for image in images]
    return [np.asarray(image) for image in arrays.to_host(small)] if small else []


def encode(thumbnails: Sequence[NDArray[np.uint8]], budget: int) -> list[bytes]:
    """Thumbnails as JPEGs that have at most `budget` bytes in all, smaller and coarser the more there are.

    Of more than some thousand thumbnails the budget is passed, for no size is left to take away.
    """
    encoded: list[bytes] = []
    for height, quality in _JPEG_SETTINGS:
        encoded = list(_encode_jpegs(thumbnails, height, quality, budget))
        if len(encoded) == len(thumbnails):
            break
    else:
        encoded = list(_encode_jpegs(thumbnails, *_JPEG_SETTINGS[-1], budget=None))
    return encoded


def _encode_jpegs(
    thumbnails: Sequence[NDArray[np.uint8]], height: int, quality: int, budget: int | None
) -> Iterator[bytes]:
    from PIL import Image

    used = 0
    for pixels in thumbnails:
        image = Image.fromarray(pixels)
        image.thumbnail((round(height * WIDEST_CARD), height))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        used += buffer.tell()
        if budget is not None and used > budget:
            return
        yield buffer.getvalue()


def _reduce_image(image: Any, height: int) -> torch.Tensor:
    """One thumbnail, (h, w, 3) uint8 on the image's device."""
    import torch
    from torch.nn import functional as F

    tensor: torch.Tensor = arrays.to_torch(image)
    if tensor.ndim == 3 and tensor.shape[2] != 3 and tensor.shape[0] == 3:
        tensor = tensor.permute(1, 2, 0)
    if tensor.ndim != 3 or tensor.shape[2] != 3 or not tensor.numel():
        raise ValueError(f"an image to show must be (H, W, 3) or (3, H, W), got {tuple(tensor.shape)}")
    rows, columns = tensor.shape[:2]
    scale = min(height / rows, height * WIDEST_CARD / columns, 1.0)
    size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    tensor = tensor[:: max(1, rows // (_AVERAGED_PIXELS * size[0])), :: max(1, columns // (_AVERAGED_PIXELS * size[1]))]
    is_float = tensor.is_floating_point()
    planes = tensor.permute(2, 0, 1)[None].float()
    if is_float:
        planes = torch.nan_to_num(planes, nan=0.0, posinf=0.0, neginf=0.0)
        low, high = planes.aminmax()
        planes = (planes - low) * (255 / (high - low).clamp(min=1e-6))
    if tuple(planes.shape[2:]) != size:
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous()


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
    cell_height = thumb + (6 + lines * _LINE_HEIGHT if lines else 0)
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
            place = (left + thumb / 2, top + thumb + 6 + line * _LINE_HEIGHT)
            draw.text(place, _shorten(words, font, thumb), _FAINT if line else _INK, font, anchor="ma")
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

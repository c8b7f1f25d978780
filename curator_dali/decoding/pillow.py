"""Decoding by Pillow, of images that DALI may not have: upright RGB of eight bits, or a reason that runs repeat."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import one_line

ORIENTATION = 0x0112
"""The tag of EXIF 2.3 that says which way up an image is, 1 to 8."""

TURNED = (5, 6, 7, 8)
"""Orientations that swap height and width."""

_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES, _COLOUR_MAP = 258, 262, 284, 320  # TIFF 6.0
# EPS runs Ghostscript, a program that can read and write files; the others are stubs that need a decoder of yours.
_NEVER_FORMATS = frozenset(["EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"])
_FIX = "convert the image to 8 bits a channel"
_DARKEST = 16  # grey levels; a brighter image of 16 bits has some of its upper four set


def open_image(data: Any) -> Any:
    """Open an encoded image without decoding it: a `PIL.Image.Image`, to be closed by the caller.

    Raises:
        Exception: Pillow's plugins raise almost anything on damaged headers.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        encoded = bytes(data)
        if not encoded.startswith(_PNG):
            raise
        image = Image.open(io.BytesIO(_drop_damaged_chunks(encoded)))
    if image.format in _NEVER_FORMATS:
        image.close()
        raise ValueError(f"{image.format} is no format of photographs: {_FIX}, as PNG or JPEG")
    return image


def decode(data: Any) -> NDArray[np.uint8]:
    """Decode an image to upright RGB.

    Equals `ImageOps.exif_transpose(image).convert("RGB")` where that is right. Damaged EXIF data leave an image as it
    lies. Samples of 12 and 16 bits keep their upper eight.

    Returns:
        (H, W, 3) uint8 on the host.

    Raises:
        ToneError: Eight bits cannot hold the image's values.
        Exception: Pillow's plugins raise almost anything on damaged files.
    """
    with open_image(data) as image:
        tags = getattr(image, "tag_v2", {})
        # the tiles say how Pillow unpacks samples, until these are loaded
        deep = ";16" in repr(image.tile) or max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8
        if deep and tags.get(_PLANES) == 2:
            raise ToneError(f"a TIFF of 16 bits whose channels lie apart, which Pillow mixes up: {_FIX}")
        image.load()
        colours = tags.get(_COLOUR_MAP, ())
        if image.mode == "P" and colours and max(colours) < 256:  # some writers leave the upper byte out; so libtiff
            image.putpalette(np.array(colours, np.uint8).reshape(3, -1).T.tobytes())
        upright = _turn(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            grey = _upper_bits(np.asarray(upright), tags)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode in ("I", "F"):
            _check_range(np.asarray(upright))
        rgb = np.array(upright.convert("RGB"))
        if deep and rgb.max(initial=0) < _DARKEST:
            raise ToneError(f"an image of 16 bits without any of its upper four, all but black in 8 bits: {_FIX}")
        return rgb


def upright_size(data: Any) -> tuple[int, int]:
    """Height and width of an image as `decode` returns it, in pixels.

    Raises:
        Exception: Pillow's plugins raise almost anything on damaged headers.
    """
    with open_image(data) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in TURNED else (height, width)


def describe(error: Exception) -> str:
    """Why an image cannot be decoded, in one line. Equal files give equal lines: no address of an object is in them."""
    if isinstance(error, ToneError):
        return f"tones would be lost: {error}"
    return f"cannot be decoded: {one_line(str(error)) or type(error).__name__}"[:200]


class ToneError(ValueError):
    """An image whose values do not fit into eight bits: all but its extremes would be lost."""


def _drop_damaged_chunks(png: bytes) -> bytes:
    """A PNG without those of its chunks that no decoder needs and whose checksum is wrong; libpng ignores these too."""
    at, kept = 8, [_PNG]
    while at + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        chunk = png[at : at + 12 + size]
        needed = not kind[0] & 0x20  # the case of its first letter
        if needed or chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4, "big"):
            kept.append(chunk)
        at += 12 + size
    return b"".join(kept)


def _orientation(image: Any) -> Any:
    """The tag's value, 1 to 8 where it makes sense; 1 where EXIF or XMP data are damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's reader of EXIF raises almost anything; the pixels are whole
        return 1


def _turn(image: Any) -> Any:
    """The image upright; `ImageOps.exif_transpose` would also rewrite its EXIF data, and fail at damaged ones."""
    from PIL.Image import Transpose

    method = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _upper_bits(values: NDArray[Any], tags: Any) -> NDArray[np.uint8]:
    """(H, W) the upper eight of 12 or 16 bits; `convert("RGB")` would clip them to white.

    Raises:
        ToneError: The upper four bits are all empty, as those of 12-bit values in 16-bit files are.
    """
    bits = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    wide = values.astype(np.uint16)
    if tags.get(_PHOTOMETRIC) == 0:  # TIFF's "white is zero"
        wide = np.uint16((1 << bits) - 1) - wide
    grey: NDArray[np.uint8] = (wide >> (bits - 8)).astype(np.uint8)
    if wide.any() and grey.max() < _DARKEST:
        raise ToneError(f"values of {bits} bits go to {wide.max()} only, all but black in 8 bits: {_FIX}")
    return grey


def _check_range(values: NDArray[Any]) -> None:
    """Refuse 32-bit integers and floats that are not whole numbers from 0 to 255.

    Raises:
        ToneError: `convert("RGB")` would clip these: floats from 0 to 1 come out black.
    """
    if values.size and not (
        values.min() >= 0 and 1 < values.max() <= 255 and np.array_equal(values, values.astype(np.uint8))
    ):
        raise ToneError(f"32-bit values from {values.min():.6g} to {values.max():.6g} do not fit into 8 bits: {_FIX}")

"""The gate in front of DALI: what an encoded image is, from its header alone, and which decoder may have it.

DALI 2.4 can crash the process when a file fails in its parser inside a batch, and JPEG 2000, TIFF and animated PNG
can crash it in the decoder. So nothing reaches DALI that its own parser refuses or that belongs to these; Pillow
decodes the rest.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dali.dali import quiet_import
from curator_dali.decoding import pillow
from curator_dali.decoding.exif import TURNED, jpeg_orientation

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_PIXELS", "Codec", "Header", "Refusal", "inspect", "upright_sizes"]

MAX_PIXELS = 178_956_970
"""Largest image, in pixels, that is decoded by default: where Pillow refuses a decompression bomb."""


class Codec(enum.IntEnum):
    """Format of an image and, by the value, who decodes it: below `OTHER` DALI, else Pillow."""

    UNKNOWN = 0
    JPEG = 1
    PNG = 2
    WEBP = 3
    BMP = 4
    OTHER = 16
    JPEG2000 = 17
    TIFF = 18
    GIF = 19
    AVIF = 20
    HEIC = 21
    # DALI's formats in a variant that only Pillow decodes as we want it
    JPEG_PILLOW = 33
    PNG_PILLOW = 34
    WEBP_PILLOW = 35
    BMP_PILLOW = 36

    @property
    def for_dali(self) -> bool:
        """Whether DALI decodes it."""
        return 0 < self < Codec.OTHER

    @property
    def format(self) -> str:
        """The format's usual name, in lower case."""
        return self.name.removesuffix("_PILLOW").lower()


@dataclass(frozen=True)
class Header:
    """Height and width in pixels as stored, the codec, and the EXIF orientation (1 to 8; 0: only decoding tells)."""

    height: int
    width: int
    codec: Codec
    orientation: int = 1


@dataclass(frozen=True)
class Refusal:
    """Why an image cannot be decoded."""

    reason: str


_PILLOW_FORMATS = {
    "JPEG": Codec.JPEG_PILLOW,
    "MPO": Codec.JPEG_PILLOW,
    "PNG": Codec.PNG_PILLOW,
    "WEBP": Codec.WEBP_PILLOW,
    "BMP": Codec.BMP_PILLOW,
    "DIB": Codec.BMP_PILLOW,
    "JPEG2000": Codec.JPEG2000,
    "TIFF": Codec.TIFF,
    "GIF": Codec.GIF,
    "AVIF": Codec.AVIF,
    "HEIF": Codec.HEIC,
}
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _code_stream(buffer: NDArray[np.uint8]) -> Any:
    with quiet_import():
        from nvidia import nvimgcodec

    global _code_stream
    _code_stream = nvimgcodec.CodeStream  # the import runs once; afterwards the name is the class itself
    return _code_stream(buffer)


def inspect(buffer: NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> Header | Refusal:
    """Read an encoded image's header; microseconds, no pixels.

    Args:
        buffer: The file's bytes, one-dimensional uint8.
        max_pixels: Larger images are refused.

    Returns:
        The header, or why the image cannot be decoded.
    """
    data = buffer.data
    codec = _codec_for_dali(data)
    if codec is None:
        return _inspect_with_pillow(data, max_pixels) if len(data) else Refusal("the image has no bytes")
    try:
        stream = _code_stream(buffer)
        height, width, channels = int(stream.height), int(stream.width), stream.num_channels
        taken = stream.codec_name == codec.format and stream.dtype == np.uint8 and channels in (1, 3, 4)
    except (RuntimeError, ValueError, TypeError):  # reading dtype may raise too
        taken = False
    if not taken:
        return _inspect_with_pillow(data, max_pixels)
    if height * width > max_pixels:
        return _too_large(height, width, max_pixels)
    if codec is not Codec.JPEG:
        return Header(height, width, codec)
    orientation = jpeg_orientation(data)
    if channels == 4:
        orientation = None  # CMYK: DALI takes ink for light where Adobe's marker is missing
    # the end marker is all but always last; behind it some cameras and editors put more
    if data[-2:] != _END_OF_IMAGE:
        encoded = bytes(data)
        end = encoded.rfind(_END_OF_IMAGE)
        if end < 0:
            return Refusal("truncated: the JPEG has no end-of-image marker")
        if end < encoded.rfind(_START_OF_SCAN):
            orientation = None  # likely cut off behind a whole thumbnail: Pillow tells, and no batch fails
    if orientation is None:
        return Header(height, width, Codec.JPEG_PILLOW, 0)
    return Header(height, width, codec, orientation)


def upright_sizes(headers: NDArray[np.void]) -> NDArray[np.int64]:
    """Heights and widths of images once they are upright.

    Args:
        headers: (N,) `HEADER_DTYPE`.

    Returns:
        (N, 2) int64 (height, width) in pixels; as stored where the orientation is not known.
    """
    sizes = np.stack([headers["height"], headers["width"]], axis=1).astype(np.int64)
    return np.where(np.isin(headers["orientation"], TURNED)[:, None], sizes[:, ::-1], sizes)


def _codec_for_dali(data: memoryview) -> Codec | None:
    """Which of DALI's formats this claims to be, if it is a variant of which DALI makes Pillow's upright RGB."""
    head = bytes(data[:12])
    if head.startswith(b"\xff\xd8"):
        return Codec.JPEG
    if head.startswith(b"\x89PNG"):
        return Codec.PNG if _plain_png(data) else None
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return Codec.WEBP if _plain_webp(data) else None
    if head.startswith(b"BM"):
        return Codec.BMP if _plain_bmp(data) else None
    return None


def _too_large(height: int, width: int, max_pixels: int) -> Refusal:
    return Refusal(f"too large: {width}x{height} is over the limit of {max_pixels:,} pixels")


def _inspect_with_pillow(data: memoryview, max_pixels: int) -> Header | Refusal:
    """The header of what DALI may not have, as Pillow reads it."""
    from PIL import Image

    try:
        with pillow.open_image(data) as image:
            width, height = image.size
            codec = _PILLOW_FORMATS.get(image.format or "", Codec.OTHER)
    except Image.DecompressionBombError as error:
        return Refusal(f"too large: {error}")
    except Exception as error:  # Pillow's plugins raise almost anything on damaged headers
        return Refusal(_why_unreadable(data, error))
    if height * width > max_pixels:
        return _too_large(height, width, max_pixels)
    return Header(height, width, codec, 0)


def _why_unreadable(data: memoryview, error: Exception) -> str:
    head = bytes(data[:512])
    text = head[:24].decode("latin-1")
    if all(c.isprintable() or c.isspace() for c in text) and text.isascii():
        return f"not an image: it begins with the text {text!r}"
    if head.startswith(b"\xff\xd8"):
        return _deep_jpeg(data) or "a JPEG whose header is damaged or cut off"
    if type(error).__name__ == "UnidentifiedImageError":
        if head[:4] in _TIFF:
            return "a TIFF whose header is damaged, or whose samples Pillow does not read (floats of 16 or 64 bits)"
        return f"not an image of a known format: it begins with the bytes {head[:8].hex(' ')}"
    return pillow.describe(error)


def _deep_jpeg(data: memoryview) -> str | None:
    """That this is a JPEG of more bits than anybody here decodes, if it is one."""
    at = 2
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker, bits = data[at + 1], data[at + 4]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame; those are tables and reserved
            return f"a JPEG of {bits} bits a sample: only 8 can be decoded" if bits != 8 else None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _plain_png(data: memoryview) -> bool:
    """Neither animated, oriented by EXIF or XMP, nor 16 bits deep; every chunk inside the file."""
    if len(data) < 33 or data[24] == 16:
        return False
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"acTL", b"eXIf") or (kind in (b"zTXt", b"tEXt", b"iTXt") and _names_exif(data[at + 8 : at + 48])):
            return False
        if kind == b"IEND":
            return True
        at += 12 + size
    return False  # cut off: Pillow says how


def _names_exif(text: memoryview) -> bool:
    return bytes(text).startswith((b"Raw profile type exif", b"XML:com.adobe.xmp"))


def _plain_webp(data: memoryview) -> bool:
    """Simple or extended without EXIF (0x08), XMP (0x04) and animation (0x02) flags; not cut off."""
    if len(data) < 21 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        return False
    return bytes(data[12:16]) != b"VP8X" or not data[20] & 0x0E


def _plain_bmp(data: memoryview) -> bool:
    """24 bits, uncompressed: palettes, run lengths, bit fields and alpha are Pillow's; not cut off."""
    if len(data) < 54:
        return False
    (start,) = struct.unpack_from("<I", data, 10)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    row = (3 * width + 3) // 4 * 4  # bytes; rows begin at multiples of four
    return bool(bits == 24 and compression == 0 and start + row * abs(height) <= len(data))

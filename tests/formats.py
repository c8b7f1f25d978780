"""Files of every format that people have, made from one real photograph, and how files break."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).parent / "data"
ORIENTATION = 0x0112


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def png_of(pixels: np.ndarray, colour_type: int, bits: int) -> bytes:
    """A PNG of any colour type and depth, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def bmp_of(width: int, height: int, bits: int, compression: int, palette: bytes, data: bytes) -> bytes:
    offset = 54 + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 2835, 2835, len(palette) // 4, 0
    )
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + data


def run_length_bmp(grey: np.ndarray) -> bytes:
    height, width = grey.shape
    lines = b"".join(b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in grey[::-1].tolist()) + b"\0\1"
    return bmp_of(width, height, 8, 1, bytes(c for i in range(256) for c in (i, i, i, 0)), lines)


def high_colour_bmp(rgb: np.ndarray) -> bytes:
    """16 bits a pixel: five a channel."""
    height, width = rgb.shape[:2]
    five = rgb.astype(np.uint16) >> 3
    packed = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2])[::-1]
    padded = np.zeros((height, (width + 1) // 2 * 2), "<u2")
    padded[:, :width] = packed
    return bmp_of(width, height, 16, 0, b"", padded.tobytes())


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG with a whole one inside, in an application segment as cameras have it."""
    thumbnail = save(Image.new("RGB", (16, 16)), "JPEG")
    return jpeg[:2] + b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]


def cmyk_files(photo: Image.Image) -> dict[str, bytes]:
    """Name -> a JPEG of four colours, as Photoshop and as other programs mark it."""
    cmyk = save(photo.convert("CMYK"), "JPEG", quality=90)
    at = cmyk.index(b"Adobe")
    return {
        "jpeg cmyk": cmyk,
        "jpeg cmyk progressive": save(photo.convert("CMYK"), "JPEG", progressive=True),
        "jpeg cmyk without Adobe's marker": cmyk[: at - 4] + cmyk[at + 12 :],
        "jpeg ycck": cmyk[: at + 11] + b"\x02" + cmyk[at + 12 :],
    }


def good_files(photo: Image.Image) -> dict[str, bytes]:
    """Name -> a file that must decode to Pillow's upright RGB."""
    small = photo.resize((61, 47))
    grey, palette = small.convert("L"), small.quantize(64)
    alpha = small.copy()
    alpha.putalpha(grey)
    turned = small.rotate(90, expand=True)
    wide = np.asarray(grey).astype(np.uint16) * 257
    files = {
        "jpeg 4:2:0": save(small, "JPEG", quality=90),
        "jpeg 4:4:4": save(small, "JPEG", quality=90, subsampling=0),
        "jpeg 4:2:2": save(small, "JPEG", quality=90, subsampling=1),
        "jpeg grey": save(grey, "JPEG"),
        "jpeg progressive": save(small, "JPEG", progressive=True),
        "jpeg arithmetic": (DATA / "arithmetic.jpg").read_bytes(),
        "jpeg with bytes after its end": save(small, "JPEG") + b"\0" * 300,
        "jpeg with a thumbnail": with_thumbnail(save(small, "JPEG")),
        "jpeg with half a jpeg after its end": save(small, "JPEG") + save(small, "JPEG")[:-40],
        "jpeg of one pixel": save(small.crop((0, 0, 1, 1)), "JPEG"),
        "png": save(small, "PNG"),
        "png grey": save(grey, "PNG"),
        "png black and white": save(small.convert("1"), "PNG"),
        "png palette": save(palette, "PNG"),
        "png palette with transparency": save(palette, "PNG", transparency=3),
        "png alpha": save(alpha, "PNG"),
        "png grey with alpha": save(alpha.convert("LA"), "PNG"),
        "png 16 bit grey": png_of(wide, 0, 16),
        "png 16 bit colour": png_of(np.asarray(small).astype(np.uint16) * 257, 2, 16),
        "png animated": save(small, "PNG", save_all=True, append_images=[turned.resize(small.size)]),
        "webp": save(small, "WEBP", quality=80),
        "webp lossless": save(small, "WEBP", lossless=True),
        "webp alpha": save(alpha, "WEBP", lossless=True),
        "webp animated": save(small, "WEBP", lossless=True, save_all=True, append_images=[turned.resize(small.size)]),
        "bmp": save(small, "BMP"),
        "bmp palette": save(palette, "BMP"),
        "bmp 16 bit": high_colour_bmp(np.asarray(small)),
        "bmp run length": run_length_bmp(np.asarray(grey)),
        "bmp alpha": save(alpha, "BMP"),
        "tiff": save(small, "TIFF"),
        "tiff lzw": save(small, "TIFF", compression="tiff_lzw"),
        "jpeg 2000": save(small, "JPEG2000"),
        "gif": save(small, "GIF"),
        **cmyk_files(small),
        **{kind.lower(): save(small, kind) for kind in ("PPM", "TGA", "QOI", "PCX", "SGI", "AVIF")},
    }
    for orientation in range(1, 9):
        for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
            files[f"{kind.lower()} orientation {orientation}"] = save(small, kind, exif=exif(orientation), **options)
    return files


def bad_files(photo: Image.Image) -> dict[str, tuple[bytes, str]]:
    """Name -> (a file that cannot be decoded, what its reason must match)."""
    jpeg, png = save(photo.resize((61, 47)), "JPEG"), save(photo.resize((61, 47)), "PNG")
    webp = save(photo.resize((61, 47)), "WEBP")
    bomb = bytearray(jpeg)
    at = jpeg.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = struct.pack(">HH", 65500, 65500)
    return {
        "zero bytes": (b"", "no bytes"),
        "text": (b"Not found\n", "begins with the text 'Not found"),
        "html": (b"<!DOCTYPE html><html>gone</html>", "begins with the text"),
        "json": (b'{"error": 404}', "begins with the text"),
        "noise": (random.Random(0).randbytes(4000), "not an image of a known format"),
        "zeros": (b"\0" * 4000, "not an image of a known format"),
        "jpeg header only": (jpeg[: jpeg.index(b"\xff\xc0")], "damaged or cut off"),
        "jpeg without its end": (jpeg[:-2], "no end-of-image"),
        "jpeg cut at a half": (jpeg[: len(jpeg) // 2], "no end-of-image"),
        "jpeg cut behind its thumbnail": (with_thumbnail(jpeg)[: -len(jpeg) // 3], "cannot be decoded.*truncated"),
        "jpeg of 12 bits": ((DATA / "twelve_bits.jpg").read_bytes(), "a JPEG of 12 bits a sample"),
        "jpeg of 65500 x 65500": (bytes(bomb), "too large"),
        "png cut at a half": (png[: len(png) // 2], "cannot be decoded"),
        "webp cut at a half": (webp[: len(webp) // 2], "cannot be decoded|cannot be read|known format"),
        "gif header only": (b"GIF89a\x10\x00\x10\x00\x00\x00\x00", "cannot be decoded|cannot be read|known format"),
    }

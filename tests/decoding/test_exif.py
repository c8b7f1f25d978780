"""The orientation that is read from a JPEG's segments is the one that DALI and Pillow apply."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from curator_dali import ImageLoader
from curator_dali.decoding.headers import Codec, Header, inspect, jpeg_orientation, upright_sizes
from curator_dali.sources import HEADER_DTYPE
from tests import formats

XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def tiff(value: int, order: str = ">", kind: int = 3, count: int = 1, before: int = 0) -> bytes:
    """An EXIF directory with the orientation behind `before` other tags."""
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, before + 1)
    others = b"".join(struct.pack(f"{order}HHIHH", 0x0100 + n, 3, 1, 7, 0) for n in range(before))
    return head + others + struct.pack(f"{order}HHIHHI", 0x0112, kind, count, value, 0, 0)


def jpeg(photo: Image.Image, *segments: bytes) -> bytes:
    """A JPEG of 40 x 24 pixels with APP1 segments in front of its JFIF one."""
    buffer = io.BytesIO()
    photo.resize((40, 24)).save(buffer, "JPEG", quality=95)
    plain = buffer.getvalue()
    return plain[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + plain[2:]


def exif(value: int, **options: object) -> bytes:
    return b"Exif\0\0" + tiff(value, **options)


def xmp(value: int) -> bytes:
    return b"http://ns.adobe.com/xap/1.0/\0" + XMP % value


CASES = {
    **{f"value {value}": [exif(value)] for value in range(11)},
    **{f"little endian {value}": [exif(value, order="<", before=5)] for value in (1, 6, 8)},
    "no orientation": [b"Exif\0\0" + b"MM\0*" + struct.pack(">IHI", 8, 0, 0)],
    "two segments": [exif(6), exif(3)],
    "long instead of short": [exif(6, kind=4)],
    "two values": [exif(6, count=2)],
    "cut off": [exif(6)[:20]],
    "directory outside": [b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 9999)],
    "no tiff": [b"Exif\0\0" + b"hello"],
    "xmp alone": [xmp(6)],
    "xmp and exif": [xmp(3), exif(6)],
    "exif and xmp": [exif(6), xmp(3)],
}


@pytest.mark.parametrize("case", CASES)
def test_pixels_and_sizes_are_pillows(photo: Image.Image, case: str) -> None:
    data = jpeg(photo, *CASES[case])
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    with ImageLoader([data], device="cpu") as loader:
        (batch,) = loader
    assert np.array_equal(batch.images[0], expected)
    header = inspect(np.frombuffer(bytearray(data), np.uint8))
    assert isinstance(header, Header)
    headers = np.array([(header.height, header.width, header.codec, header.orientation)], HEADER_DTYPE)
    if header.orientation:
        assert upright_sizes(headers).tolist() == [list(expected.shape[:2])]
    else:
        assert header.codec is Codec.JPEG_PILLOW


def test_real_files_of_all_orientations(photo: Image.Image) -> None:
    for orientation in range(1, 9):
        data = memoryview(formats.save(photo, "JPEG", exif=formats.exif(orientation)))
        assert jpeg_orientation(data) == orientation


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60))
def test_nothing_makes_it_fail(noise: bytes, at: int) -> None:
    data = bytearray(b"\xff\xd8\xff\xe1\0\x40" + exif(6, before=1) + b"\xff\xdb\0\x04")
    data[at : at + len(noise)] = noise
    assert jpeg_orientation(memoryview(bytes(data))) in (None, *range(1, 9))

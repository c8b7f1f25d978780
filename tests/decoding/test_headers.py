"""The gate: what each format's header says, and why a file is refused."""

import numpy as np
import pytest
from PIL import Image

from curator_dali.decoding.headers import Codec, Header, Refusal, inspect
from tests import formats


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), np.uint8)


def test_headers_give_the_stored_size_and_the_format(photo: Image.Image) -> None:
    for name, data in formats.good_files(photo).items():
        header = inspect(as_array(data))
        assert isinstance(header, Header), name
        with Image.open(__import__("io").BytesIO(data)) as image:
            assert (header.width, header.height) == image.size, name
        known = name.split()[0] if not name.startswith("jpeg 2000") else "jpeg2000"
        others = ("ppm", "tga", "qoi", "pcx", "sgi")
        assert header.codec.format == ("other" if name in others else known), name


@pytest.mark.parametrize(
    "name",
    [
        "png 16 bit grey",
        "png animated",
        "png orientation 6",
        "webp orientation 3",
        "webp animated",
        "bmp 16 bit",
        "bmp run length",
        "tiff",
        "jpeg 2000",
        "gif",
    ],
)
def test_what_dali_may_not_have_goes_to_pillow(photo: Image.Image, name: str) -> None:
    header = inspect(as_array(formats.good_files(photo)[name]))
    assert isinstance(header, Header)
    assert not header.codec.for_dali


@pytest.mark.parametrize(
    "name", ["jpeg 4:2:0", "jpeg orientation 6", "jpeg progressive", "png", "png alpha", "webp", "bmp"]
)
def test_plain_files_go_to_dali(photo: Image.Image, name: str) -> None:
    header = inspect(as_array(formats.good_files(photo)[name]))
    assert isinstance(header, Header)
    assert header.codec in (Codec.JPEG, Codec.PNG, Codec.WEBP, Codec.BMP)


def test_dimensions_are_limited_before_decoding(photo: Image.Image) -> None:
    for name in ("jpeg 4:2:0", "png", "tiff"):
        data = as_array(formats.good_files(photo)[name])
        refusal = inspect(data, max_pixels=61 * 47 - 1)
        assert isinstance(refusal, Refusal), name
        assert "too large: 61x47 is over the limit of 2,866 pixels" in refusal.reason
        assert isinstance(inspect(data, max_pixels=61 * 47), Header)

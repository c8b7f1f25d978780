"""`FileInfo`: digests and headers of real files, and nothing personal that was not asked for."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

import curator_dali as cd
from curator_dali.errors import StageError
from curator_dali.stages.file_info import read_facts
from tests import helpers

ALL = (
    "sha256", "md5", "format", "color_mode", "color_profile", "camera_make", "camera_model", "taken_at", "latitude",
    "longitude",
)  # fmt: skip


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(helpers.load_photos()["chelsea"][:48, :64])


def make_exif(**changes: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "Canon\0", " EOS 350D ", "2009:01:02 03:04:05"
    exif.get_ifd(0x8769)[0x9003] = changes.get("taken", "2008:05:30 15:56:01")
    if "zone" in changes:
        exif.get_ifd(0x8769)[0x9011] = changes["zone"]
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[3], gps[4] = "S", changes.get("latitude", (33.0, 51.0, 24.84)), "E", (151.0, 12.0, 33.0)
    return exif


def encode(photo: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_every_fact(photo: Image.Image, format: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    data = encode(photo, format, exif=make_exif(), icc_profile=profile.tobytes())
    facts = read_facts(memoryview(data), ALL)
    assert facts == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "md5": hashlib.md5(data).hexdigest(),
        "format": format,
        "color_mode": "RGB",
        "color_profile": "sRGB built-in",
        "camera_make": "Canon",
        "camera_model": "EOS 350D",
        "taken_at": "2008-05-30T15:56:01",
        "latitude": pytest.approx(-33.8569),
        "longitude": pytest.approx(151.2091667),
    }


def test_what_is_not_there_or_damaged_is_none(photo: Image.Image) -> None:
    bare = read_facts(encode(photo.convert("L"), "jpeg"), ALL)
    assert {name for name, value in bare.items() if value is not None} == {"sha256", "md5", "format", "color_mode"}
    assert bare["color_mode"] == "L"
    assert set(read_facts(b"no image", ALL[2:]).values()) == {None}
    damaged = encode(photo, "jpeg", exif=make_exif(taken="0000:00:00 00:00:00", latitude=(99.0, 0.0, 0.0)))
    facts = read_facts(damaged, ALL)
    assert (facts["taken_at"], facts["latitude"]) == (None, None)
    assert (facts["camera_make"], facts["longitude"]) == ("Canon", pytest.approx(151.2091667))
    broken_profile = read_facts(encode(photo, "jpeg", icc_profile=b"no profile"), ALL)
    assert (broken_profile["color_profile"], broken_profile["format"]) == (None, "jpeg")
    for at in range(0, len(damaged), 37):  # whatever byte is wrong, a value is read or is None
        data = bytearray(damaged)
        data[at] ^= 0x55
        assert read_facts(bytes(data), ALL)["sha256"] == hashlib.sha256(data).hexdigest()


def test_zones(photo: Image.Image) -> None:
    for zone, expected in (("+02:00", "2008-05-30T15:56:01+02:00"), ("nowhere", "2008-05-30T15:56:01")):
        assert read_facts(encode(photo, "jpeg", exif=make_exif(zone=zone)), ["taken_at"]) == {"taken_at": expected}


def test_columns_of_an_output(photo: Image.Image, tmp_path: Path) -> None:
    images = {"a": encode(photo, "jpeg", exif=make_exif()), "b": encode(photo, "png"), "c": b"broken"}
    options: dict[str, Any] = {"device": "cpu", "html": False, "tars": False}
    cd.curate(images, tmp_path / "plain", stages=[cd.FileInfo()], **options)
    table = pq.read_table(next((tmp_path / "plain").glob("*.parquet")))
    assert table["format"].to_pylist() == ["jpeg", "png", None]
    assert table["sha256"].to_pylist()[:2] == [hashlib.sha256(images[key]).hexdigest() for key in "ab"]
    assert not {*ALL[5:]} & {*table.column_names}  # nothing personal
    cd.curate(images, tmp_path / "all", stages=[cd.FileInfo(ALL), cd.Filter("latitude", max=0)], **options)
    table = pq.read_table(next((tmp_path / "all").glob("*.parquet")))
    assert table["status"].to_pylist() == ["kept", "dropped", "failed"]
    assert table["latitude"].to_pylist()[0] == pytest.approx(-33.8569)
    cd.rethreshold(
        tmp_path / "all", tmp_path / "new", stages=[cd.FileInfo(ALL), cd.Filter("format", equals="png")],
        tars=False, html=False,
    )  # fmt: skip
    assert pq.read_table(next((tmp_path / "new").glob("*.parquet")))["status"].to_pylist()[:2] == ["dropped", "kept"]


def test_settings() -> None:
    for wrong in ((), ("sha1",), ("sha256", "sha256")):
        with pytest.raises(StageError, match=r"FileInfo\.columns is .*; allowed: some of sha256, md5"):
            cd.FileInfo(wrong)
    assert cd.FileInfo(["md5"]).columns == ("md5",)  # type: ignore[arg-type]
    assert np.dtype(cd.FileInfo(("latitude",)).writes["latitude"]) == np.float64

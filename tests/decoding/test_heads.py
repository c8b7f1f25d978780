"""Headers from the first bytes of images: the verdict of the whole file, for a fraction of the bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curator_dali.decoding import Codec, read_headers
from curator_dali.decoding.headers import Header, Refusal, inspect, inspect_head
from curator_dali.sources import FolderSource, Head, MemorySource, Mixture, Source, Subset, TarSource, Without
from tests import formats
from tests.helpers import encode, write_tar
from tests.sources.web_server import Server


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), np.uint8)


def files(photo: Image.Image) -> dict[str, bytes]:
    """Good and bad files of all kinds, and such whose headers are long."""
    large = photo.resize((900, 700))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "x" * 40_000
    found = {**formats.good_files(photo), **{name: encode(large, name) for name in ("JPEG", "PNG", "WEBP", "BMP")}}
    found["long EXIF"] = encode(large, exif=exif)
    found["long profile"] = encode(large, icc_profile=bytes(60_000))
    found["progressive"] = encode(large, progressive=True)
    found["CMYK"] = encode(large.convert("CMYK"))
    found["cut"] = found["JPEG"][:-100]
    found["cut, with a thumbnail"] = encode(large, exif=exif)[:30_000] + b"\xff\xd9" + bytes(3)
    found["more behind the end"] = found["JPEG"] + bytes(5000)
    found["zeros"] = bytes(30_000)
    found["text"] = b"<html>" * 5000
    found["zeros behind the start"] = b"\xff\xd8" + bytes(30_000) + b"\xff\xd9"
    return found


@pytest.mark.parametrize("length", [16, 300, 1000, 16 << 10, 64 << 10])
def test_a_head_tells_what_the_whole_file_tells_or_nothing(photo: Image.Image, length: int) -> None:
    told = 0
    for name, data in files(photo).items():
        for limit in (1 << 28, 61 * 47 - 1):
            verdict = inspect_head(Head(as_array(data[:length]), data[-2:], len(data)), limit)
            assert verdict in (None, inspect(as_array(data), limit)), name
            told += verdict is not None
    assert told >= {16: 0, 300: 2, 1000: 10}.get(length, 20)


def open_as(kind: str, folder: Path, samples: dict[str, bytes], server: Server) -> Source:
    if kind == "memory":
        return MemorySource(samples)
    if kind == "folder":
        for name, data in samples.items():
            (folder / name).write_bytes(data)
        return FolderSource(folder)
    tar = write_tar(folder / "a.tar", list(samples.items()))
    if kind == "tar":
        return TarSource(tar)
    server.files["/a.tar"] = tar.read_bytes()
    return TarSource(f"{server.url}/a.tar")


@pytest.mark.parametrize("kind", ["memory", "folder", "tar", "remote tar"])
def test_headers_of_a_source_are_those_of_whole_files(
    kind: str, photo: Image.Image, tmp_path: Path, server: Server
) -> None:
    samples = {f"{number:03}.jpg": data for number, data in enumerate([*files(photo).values(), b""])}
    source = open_as(kind, tmp_path, samples, server)
    (chunk,) = read_headers(source)
    for row, data in enumerate(samples.values()):
        verdict = inspect(as_array(data)) if data else Refusal("the image has no bytes")
        found = chunk.headers[row]
        if isinstance(verdict, Header):
            assert found.tolist() == (verdict.height, verdict.width, verdict.codec, verdict.orientation)
            assert row not in chunk.problems
        else:
            assert found["codec"] == Codec.UNKNOWN
            assert chunk.problems[row] == verdict.reason
        assert chunk.sizes[row] == len(data)
    (again,) = read_headers(source, max_pixels=61 * 47 - 1)
    assert "too large: 61x47 is over the limit of 2,866 pixels" in again.problems.values()


def test_derived_sources_forward_heads(photo: Image.Image, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", encode(photo.resize((300 + n, 200)))) for n in range(4)])
    views: list[tuple[Source, list[int]]] = [
        (Subset(TarSource(path), [3, 1]), [303, 301]),
        (Without(TarSource(path), {1: "no"}), [300, 0, 302, 303]),
        (Mixture({"a": Subset(TarSource(path), [2]), "b": Subset(TarSource(path), [0, 1])}), [302, 300, 301]),
    ]
    for view, widths in views:
        (chunk,) = read_headers(view)
        assert chunk.headers["width"].tolist() == widths
        heads = view.read_heads(np.arange(len(view)), 100)
        assert [0 if head is None else len(head.data) for head in heads] == [100 * (width > 0) for width in widths]
        assert chunk.problems == ({1: "no"} if 0 in widths else {})


def test_a_fraction_of_a_remote_tar_is_read(photo: Image.Image, tmp_path: Path, server: Server) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((1400, 1400), 90).convert("RGB").save(buffer, "JPEG", quality=97)
    data = buffer.getvalue()
    assert len(data) > 1_500_000
    samples = [(f"{n}.jpg", data) for n in range(8)]
    samples[3] = ("3.jpg", data[:-20])
    server.files["/a.tar"] = write_tar(tmp_path / "a.tar", samples).read_bytes()
    source = TarSource(f"{server.url}/a.tar")
    assert len(source) == 8
    server.requests.clear()
    (chunk,) = read_headers(source)
    assert chunk.headers["width"].tolist() == [1400] * 3 + [0] + [1400] * 4
    assert list(chunk.problems) == [3]
    ranges = server.ranges_sent("/a.tar")
    assert sum(end - begin for begin, end in ranges) < len(data) + 12 * (200 << 10)

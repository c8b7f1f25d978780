"""Images that Pillow decodes are upright and keep their tones, or are refused for a reason that runs repeat."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageOps

import curator_dali as cd
from curator_dali.decoding import pillow
from tests import formats

UPRIGHT_6 = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
XMP = b"http://ns.adobe.com/xap/1.0/\0"


@pytest.fixture
def small(photo: Image.Image) -> Image.Image:
    return photo.resize((64, 48))


def load(files: dict[str, bytes]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pixels and reasons by id; the sizes in the columns are those of the pixels."""
    with cd.ImageLoader(files, device="cpu", batch_size=16) as loader:
        found = {}
        for batch in loader:
            for row, item in enumerate(batch.data):
                found[item.image_id] = np.array(batch.images[row])
                size = (batch.columns["height"][row], batch.columns["width"][row])
                assert size == found[item.image_id].shape[:2], item.image_id
        return found, {error.image_id: error.reason for error in loader.errors}


def pillows(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """(offset, marker) of every segment in front of the first scan, and of that."""
    at = 2
    while True:
        yield at, jpeg[at + 1]
        if jpeg[at + 1] == 0xDA:
            return
        at += 2 + struct.unpack_from(">H", jpeg, at + 2)[0]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_of(photo: Image.Image, data: bytes, bits: int, photometric: int = 1, colours: bytes = b"") -> bytes:
    """A TIFF of one strip, with a depth or a colour map that Pillow cannot write."""
    width, height = photo.size
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(273, 4, 1, 0), (277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, len(data))]
    tags += [(320, 3, len(colours) // 2, 0)] if colours else []
    behind = 8 + 2 + 12 * len(tags) + 4
    where = {273: behind + len(colours), 320: behind}
    entries = b"".join(
        struct.pack("<HHII", tag, kind, count, where.get(tag, value)) for tag, kind, count, value in tags
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + colours + data


def pack_12_bits(values: np.ndarray) -> bytes:
    pairs = values.astype(np.uint32).reshape(-1, 2)
    joined = pairs[:, 0] << 12 | pairs[:, 1]
    return np.stack([joined >> 16, joined >> 8 & 255, joined & 255], axis=1).astype(np.uint8).tobytes()


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_is_upright_wherever_its_orientation_stands(small: Image.Image, options: dict[str, bool]) -> None:
    jpeg = formats.save(small, "JPEG", **options)
    exif, xmp = segment(0xE1, b"Exif\0\0" + UPRIGHT_6), segment(0xE1, XMP + b'<x tiff:Orientation="6"/>')
    files = {
        f"{name} before segment {marker:x} at {at}": jpeg[:at] + more + jpeg[at:]
        for at, marker in segments(jpeg)
        for name, more in (("exif", exif), ("xmp", xmp))
    }
    sos = next(at for at, marker in segments(jpeg) if marker == 0xDA)
    files["behind a long comment"] = jpeg[:sos] + segment(0xFE, b"c" * 9000) + exif + jpeg[sos:]
    files["behind fill bytes"] = jpeg[:2] + b"\xff\xff" + exif + jpeg[2:]
    found, errors = load(files)
    assert errors == {}
    for name, data in files.items():
        assert found[name].shape == (64, 48, 3), name
        assert np.array_equal(found[name], pillows(data)), name
    lying = {
        "scan": jpeg[:-2] + exif + jpeg[-2:],
        "behind the end": jpeg + exif,
        "APP2": jpeg[:2] + b"\xff\xe2" + exif[2:] + jpeg[2:],
    }
    found, _ = load(lying)
    assert all(np.array_equal(found[name], pillows(data)) for name, data in lying.items())
    assert found["APP2"].shape == (48, 64, 3)


def test_damaged_metadata_cost_no_image_its_pixels(small: Image.Image) -> None:
    png, webp = formats.save(small, "PNG"), formats.save(small, "WEBP", lossless=True)
    extended = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + bytes((63, 0, 0, 47, 0, 0)) + webp[12:]
    wrong = chunk(b"eXIf", UPRIGHT_6)[:-4] + b"\0\0\0\0"
    files = {}
    for name, body in {"junk": b"junk", "text": b"http://ns.example.com/", "cut": UPRIGHT_6[:11], "empty": b""}.items():
        files[f"png {name}"] = png[:33] + chunk(b"eXIf", body) + png[33:]
        files[f"png {name} at the end"] = png[:-12] + chunk(b"eXIf", body) + png[-12:]
        riff = extended + b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
        files[f"webp {name}"] = b"RIFF" + struct.pack("<I", len(riff)) + riff
        files[f"jpeg {name}"] = segments_before(small, segment(0xE1, b"Exif\0\0" + body))
    raw = b"Raw profile type exif\0\0"
    files["png raw profile that is no hex"] = (
        png[:33] + chunk(b"zTXt", raw + zlib.compress(b"\nexif\n 4\nzzzz\n")) + png[33:]
    )
    files["png raw profile not compressed"] = png[:33] + chunk(b"zTXt", raw + b"garbage") + png[33:]
    files["png text that is no XMP"] = png[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe") + png[33:]
    files["png with a flipped bit in its exif"] = png[:33] + wrong + png[33:]
    files["png with a flipped bit in two chunks"] = png[:33] + wrong + chunk(b"tEXt", b"a\0b")[:-1] + b"!" + png[33:]
    found, errors = load(files)
    assert errors == {}
    for name, image in found.items():
        expected = pillows(segments_before(small)) if name.startswith("jpeg") else np.asarray(small)
        assert np.array_equal(image, expected), name


def segments_before(photo: Image.Image, more: bytes = b"") -> bytes:
    jpeg = formats.save(photo, "JPEG", quality=90)
    return jpeg[:2] + more + jpeg[2:]


def test_a_damaged_chunk_that_decoders_need_is_still_refused(small: Image.Image) -> None:
    png = bytearray(formats.save(small, "PNG"))
    png[29] ^= 1
    _, errors = load({"a": bytes(png)})
    assert errors == {"a": "cannot be decoded: cannot identify image file"}


def test_the_tones_of_twelve_and_sixteen_bits_are_kept(small: Image.Image) -> None:
    grey = np.asarray(small.convert("L"))
    wide, expected = grey.astype(np.uint16) * 257, np.repeat(grey[:, :, None], 3, axis=2)
    palette = small.quantize(64)
    colours = np.zeros((256, 3), "<u2")
    used = np.array(palette.getpalette(), np.uint16).reshape(-1, 3)
    colours[: len(used)] = used
    files = {
        "tiff of 12 bits": tiff_of(small, pack_12_bits(wide >> 4), 12),
        "tiff of 16 bits": tiff_of(small, wide.astype("<u2").tobytes(), 16),
        "tiff of 16 bits, white is zero": tiff_of(small, (65535 - wide).astype("<u2").tobytes(), 16, photometric=0),
        "pgm of 16 bits": b"P5 64 48 65535\n" + wide.astype(">u2").tobytes(),
        "pgm of 16 bits as text": b"P2 64 48 65535\n" + b" ".join(b"%d" % value for value in wide.ravel()),
        "pgm of 10 bits": b"P5 64 48 1020\n" + (grey.astype(np.uint16) * 4).astype(">u2").tobytes(),
        "png of 16 bits": formats.png_of(wide, 0, 16),
        "jpeg 2000 of 16 bits": formats.save(Image.fromarray(wide), "JPEG2000"),
        "32-bit integers from 0 to 255": formats.save(Image.fromarray(grey.astype(np.int32)), "TIFF"),
        "floats from 0 to 255": formats.save(Image.fromarray(grey.astype(np.float32)), "TIFF"),
        "all black in 16 bits": formats.png_of(wide * 0, 0, 16),
    }
    found, errors = load(files)
    assert errors == {}
    assert not found.pop("all black in 16 bits").any()
    for name, image in found.items():
        assert np.array_equal(image, expected), name
    rows = np.asarray(palette)
    found, _ = load(
        {
            "16": tiff_of(small, rows.tobytes(), 8, 3, (colours.T * 257).astype("<u2").tobytes()),
            "8": tiff_of(small, rows.tobytes(), 8, 3, colours.T.astype("<u2").tobytes()),
        }
    )
    assert np.array_equal(found["16"], np.asarray(palette.convert("RGB")))
    assert np.array_equal(found["8"], found["16"])


def test_an_image_whose_tones_eight_bits_lose_is_told(small: Image.Image) -> None:
    grey = np.asarray(small.convert("L"))
    wide = grey.astype(np.uint16) * 257
    as_floats = (grey / 255).astype(np.float32)
    files = {
        "12 bits in 16": (formats.png_of(wide >> 4, 0, 16), "values of 16 bits go to"),
        "12 bits in 16 of a tiff": (tiff_of(small, (wide >> 4).astype("<u2").tobytes(), 16), "values of 16 bits go to"),
        "12 bits in 16, three channels": (
            formats.png_of(np.asarray(small).astype(np.uint16) * 16, 2, 16),
            "without any of its upper four",
        ),
        "floats from 0 to 1": (formats.save(Image.fromarray(as_floats), "TIFF"), "32-bit values from 0"),
        "floats from 0 to 1 in pfm": (b"Pf\n64 48\n-1.0\n" + as_floats.tobytes(), "32-bit values from 0"),
        "floats that are no numbers": (formats.save(Image.fromarray(as_floats * np.nan), "TIFF"), "from nan"),
        "a mask of zeros and ones": (
            formats.save(Image.fromarray((grey > 99).astype(np.int32)), "TIFF"),
            "from 0 to 1 ",
        ),
        "large integers": (
            formats.save(Image.fromarray(grey.astype(np.int32) * 1000), "TIFF"),
            "do not fit into 8 bits",
        ),
    }
    found, errors = load({name: data for name, (data, _) in files.items()})
    assert found == {}
    for name, (_, reason) in files.items():
        assert errors[name].startswith("tones would be lost: "), name
        assert reason in errors[name], (name, errors[name])
        assert "convert the image to 8 bits a channel" in errors[name]


def test_channels_of_sixteen_bits_that_lie_apart_are_told(small: Image.Image) -> None:
    tifffile = pytest.importorskip("tifffile")
    planes = np.moveaxis(np.asarray(small).astype(np.uint16) * 257, 2, 0)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, photometric="rgb", planarconfig="separate")
    eight = io.BytesIO()
    tifffile.imwrite(eight, (planes >> 8).astype(np.uint8), photometric="rgb", planarconfig="separate")
    found, errors = load({"16": buffer.getvalue(), "8": eight.getvalue()})
    assert np.array_equal(found["8"], np.asarray(small))
    assert errors["16"].startswith("tones would be lost: a TIFF of 16 bits whose channels lie apart")


def test_no_program_is_run_for_a_file(small: Image.Image) -> None:
    _, errors = load({"a": formats.save(small, "EPS")})
    assert errors == {"a": "not an image: it begins with the text '%!PS-Adobe-3.0 EPSF-3.0\\n'"}


def test_a_tiff_that_pillow_does_not_read_is_called_one(small: Image.Image) -> None:
    _, errors = load({"a": tiff_of(small, b"\0" * 64 * 48 * 8, 64)})
    assert errors["a"].startswith("a TIFF whose header is damaged, or whose samples Pillow does not read")


def test_reasons_hold_no_address() -> None:
    error = OSError(f"cannot read {io.BytesIO()!r}\n of <PIL.Image at 0x7F00aa>")
    assert pillow.describe(error) == "cannot be decoded: cannot read of"
    assert pillow.describe(KeyError()) == "cannot be decoded: KeyError"


def test_two_runs_give_equal_reasons(photo: Image.Image) -> None:
    """Other batches, another order and other threads: the reasons are those of the files alone."""
    rnd = np.random.default_rng(3)
    files = {}
    for name, data in formats.good_files(photo).items():
        for n in range(6):
            damaged = bytearray(data)
            for at in rnd.integers(0, min(len(data), 300), 3 + n):
                damaged[at] ^= int(rnd.integers(1, 256))
            files[f"{name} {n}"] = bytes(damaged[: len(damaged) - n * 40])
    reasons = []
    for threads, keys in ((2, list(files)), (1, list(files)[::-1])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = {key: files[key] for key in keys}
            with cd.ImageLoader(source, device="cpu", batch_size=30 + threads, num_threads=threads) as loader:
                for _ in loader:
                    pass
                reasons.append({error.image_id: error.reason for error in loader.errors})
    assert reasons[0] == reasons[1]
    assert len(reasons[0]) > 100
    assert not [reason for reason in reasons[0].values() if re.search(r"0x[0-9a-f]{5,}|/tmp|object at", reason)]

"""Images written at training size: pixels, colours, names and rows, the same whichever way they are written."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

import curator_dali as cd
from curator_dali import transforms
from curator_dali.batch import ImageBatch
from curator_dali.cli import main
from curator_dali.curation import read_config
from curator_dali.curation.write import replace_image
from curator_dali.outputs import Manifest
from curator_dali.sources import MemorySource
from tests import formats, helpers
from tests.curation.helpers import FirstOfItsLabel, content, read_members, read_rows

OPTIONS: dict[str, Any] = {"device": "cpu", "html": False, "stages": []}
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))  # XYZ, for D50
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def make_display_p3() -> bytes:
    """sRGB's profile with the primaries and the name of Display P3, which has sRGB's tone curve and white."""
    data = bytearray(SRGB)
    (count,) = struct.unpack_from(">I", data, 128)
    tags = {data[132 + 12 * n :][:4].decode(): struct.unpack_from(">II", data, 136 + 12 * n)[0] for n in range(count)}
    for tag, primary in zip(("rXYZ", "gXYZ", "bXYZ"), P3, strict=True):
        struct.pack_into(">3i", data, tags[tag] + 8, *(round(value * 65536) for value in primary))
    return bytes(data).replace("sRGB built-in".encode("utf-16-be"), "Display P3   ".encode("utf-16-be"))


DISPLAY_P3 = make_display_p3()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]]) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    helpers.write_shards(folder, helpers.photo_samples(photos, 24), per_shard=10)
    return folder


def curated(
    source: Any, out: Path, write: cd.Write | None, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, bytes]]]:
    """Rows, and the kept samples' members."""
    cd.curate(source, out, write=write, **{**OPTIONS, **options})
    return read_rows(out), list(read_members(out).values())


def open_all(members: list[dict[str, bytes]], extension: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(found[extension])) for found in members]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("side", ["shortest", "longest"])
@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_images_are_scaled_and_encoded_from_the_decoded_pixels(
    photos: dict[str, NDArray[np.uint8]], tmp_path: Path, side: Any, format: Any
) -> None:
    pixels = [photos["coffee"], photos["chelsea"][:100, :90], photos["rocket"][:, :200]]
    given = [helpers.encode(image, "PNG") for image in pixels]
    write = cd.Write(resize=128, side=side, format=format, quality=88)
    rows, members = curated(MemorySource(given), tmp_path / "out", write)
    name = {"jpeg": "jpg"}.get(format, format)
    small = transforms.apply(pixels, transforms.ResizeSide(128, side=side, passes=1))
    options = {"compress_level": 6} if format == "png" else {"quality": 88}
    for number, (row, found, scaled) in enumerate(zip(rows, members, small, strict=True)):
        kept = format == "png" and scaled.shape == pixels[number].shape
        expected = given[number] if kept else helpers.encode(scaled, format.upper(), **options)
        assert found[name] == expected
        height, width = scaled.shape[:2]
        assert (row["written_width"], row["written_height"], row["written_format"]) == (width, height, format)
        assert (row["height"], row["width"]) == pixels[number].shape[:2]
        assert (row["sha256"], row["written_sha256"]) == (digest(given[number]), digest(expected))
        assert row["written_bytes"] == len(expected)
        quality = "" if format == "png" else " q88"
        assert row["written_as"] == ("original" if kept else f"{format} {width}x{height}{quality}")
        about = json.loads(found["curation.json"])
        assert about["written_as"] == row["written_as"]
    assert min(small[0].shape[:2] if side == "shortest" else [max(small[0].shape)]) == 128
    assert small[1].shape == (100, 90, 3)  # never enlarged unless asked
    sizes = [image.size for image in open_all(members, name)]
    with cd.ImageLoader(str(tmp_path / "out"), device="cpu") as loader:
        assert [image.shape[1::-1] for batch in loader for image in batch.images] == sizes


def test_images_that_fit_keep_their_bytes(photos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    pixels = photos["china"][:64, :96]
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    given = {
        "small": helpers.encode(pixels, exif=exif.tobytes()),
        "grey": helpers.encode(Image.fromarray(pixels).convert("L")),
        "in sRGB": helpers.encode(pixels, icc_profile=SRGB),
        "progressive": helpers.encode(pixels, progressive=True),
    }
    other = {
        "png": helpers.encode(pixels, "PNG"),
        "in P3": helpers.encode(pixels, icc_profile=DISPLAY_P3),
        "large": helpers.encode(photos["china"]),
        "cmyk": helpers.encode(Image.fromarray(pixels).convert("CMYK")),
        "turned": helpers.encode(pixels, exif=formats.exif(6)),
    }
    everything = {**given, **other}
    write = cd.Write(resize=96, side="longest", format="jpeg")
    rows, members = curated(MemorySource(everything), tmp_path / "out", write)
    found = {row["image_id"]: (row["written_as"], sample["jpg"]) for row, sample in zip(rows, members, strict=True)}
    for name, data in given.items():
        assert found[name] == ("original", data), name
    for name, data in other.items():
        assert found[name][0].startswith("jpeg "), name
        assert found[name][1] != data


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_colours_become_srgb_as_pillow_converts_them(
    photos: dict[str, NDArray[np.uint8]], tmp_path: Path, format: Any
) -> None:
    pixels = photos["coffee"]
    given = [helpers.encode(pixels, kind, icc_profile=DISPLAY_P3) for kind in ("JPEG", "PNG", "WEBP")]
    rows, members = curated(MemorySource(given), tmp_path / "out", cd.Write(resize=200, format="png"))
    for data, row, image in zip(given, rows, open_all(members, "png"), strict=True):
        assert row["written_as"] == "png 300x200, Display P3 -> sRGB"
        assert "icc_profile" not in image.info
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        (small,) = transforms.apply([whole], transforms.ResizeSide(200, passes=1))
        source, target = io.BytesIO(DISPLAY_P3), ImageCms.createProfile("sRGB")
        expected = ImageCms.profileToProfile(Image.fromarray(small), source, target, outputMode="RGB")
        assert expected is not None
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert np.abs(np.asarray(image).astype(int) - small).max() > 10  # the profile matters
    rows, members = curated(
        MemorySource(given), tmp_path / "kept", cd.Write(resize=200, format=format, profile="keep", quality=90)
    )
    name = {"jpeg": "jpg"}.get(format, format)
    quality = "" if format == "png" else " q90"
    for row, image in zip(rows, open_all(members, name), strict=True):
        assert row["written_as"] == f"{format} 300x200{quality}, Display P3"
        assert image.info["icc_profile"] == DISPLAY_P3


def test_profiles_that_do_not_fit_count_as_none_and_the_row_says_so(
    photos: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    pixels = photos["coffee"][:80, :100]
    spaces = {name: SRGB[:16] + name.encode() + SRGB[20:] for name in ("GRAY", "CMYK")}
    given = {
        "damaged": helpers.encode(pixels, icc_profile=b"this is no profile"),
        "cut": helpers.encode(pixels, icc_profile=DISPLAY_P3[:300]),
        "GRAY": helpers.encode(Image.fromarray(pixels).convert("L"), icc_profile=spaces["GRAY"]),
        "CMYK": helpers.encode(Image.fromarray(pixels).convert("CMYK"), icc_profile=spaces["CMYK"]),
    }
    notes = {"cut": "damaged profile left out", "damaged": "damaged profile left out"}
    for profile in ("srgb", "keep"):
        write = cd.Write(resize=40, format="jpeg", profile=profile)  # type: ignore[arg-type]
        rows, members = curated(MemorySource(given), tmp_path / profile, write)
        for row, image, data in zip(rows, open_all(members, "jpg"), given.values(), strict=True):
            name = row["image_id"]
            assert row["written_as"] == f"jpeg 50x40 q95, {notes.get(name, f'{name} profile left out')}"
            assert "icc_profile" not in image.info
            assert (image.size, image.mode) == ((50, 40), "RGB")
            whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((50, 40), Image.Resampling.BICUBIC))
            assert np.abs(np.asarray(image).astype(int) - whole).mean() < 4


def test_written_images_are_upright_and_have_no_exif(photos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    pixels = photos["coffee"][:120, :90]
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.0)}
    given = [helpers.encode(pixels, kind, exif=exif.tobytes()) for kind in ("JPEG", "PNG", "WEBP")]
    rows, members = curated(MemorySource(given), tmp_path / "out", cd.Write(resize=300))
    for row, found, extension in zip(rows, members, ("jpg", "png", "webp"), strict=True):
        (image,) = open_all([found], extension)
        assert (row["written_width"], row["written_height"]) == image.size == (120, 90)
        assert not dict(image.getexif())
        assert b"a camera" not in found[extension]


def test_the_format_stays_unless_it_is_none_to_write(photos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    image = Image.fromarray(photos["coffee"])
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
    given = [helpers.encode(image, kind) for kind in kinds] + [helpers.encode(image.convert("CMYK"))]
    rows, members = curated(MemorySource(given), tmp_path / "out", cd.Write(resize=64))
    assert [row["written_format"] for row in rows] == ["jpeg", "png", "webp", "jpeg", "jpeg", "jpeg", "jpeg"]
    for row, found in zip(rows, members, strict=True):
        (extension,) = set(found) - {"curation.json"}
        assert extension == {"jpeg": "jpg"}.get(row["written_format"], row["written_format"])
        (image,) = open_all([found], extension)
        assert image.format is not None
        assert image.format.lower() == row["written_format"]


def test_all_other_members_and_the_key_stay(photos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    pixels = photos["coffee"][:100, :100]
    png, mask = helpers.encode(pixels, "PNG"), helpers.encode(pixels[:, :, 0], "PNG")
    members = {
        "JPEG": helpers.encode(pixels),
        "mask.png": mask,
        "json": b'{"a": [1, null]}',
        "npy": b"123",
        "cls": b"3",
    }
    beside = {"png": png, "jpg": b"not the sample's image", "other.jpg": b"\0", "txt": b"caption"}
    source = helpers.write_tar(
        tmp_path / "a.tar",
        [
            *((f"x/key.{extension}", data) for extension, data in members.items()),
            *((f"b.{extension}", data) for extension, data in beside.items()),
        ],
    )
    cd.curate(str(source), tmp_path / "out", write=cd.Write(resize=50, format="jpeg"), **OPTIONS)
    found = {key: sample for (_, key), sample in read_members(tmp_path / "out").items()}
    first = found["x/key"]
    assert list(first) == ["jpg", "mask.png", "json", "npy", "cls", "curation.json"]
    assert {name: first[name] for name in list(members)[1:]} == {name: members[name] for name in list(members)[1:]}
    assert list(found["b"]) == ["jpg", "other2.jpg", "other.jpg", "txt", "curation.json"]
    assert (found["b"]["other2.jpg"], found["b"]["other.jpg"]) == (beside["jpg"], beside["other.jpg"])
    with cd.ImageLoader(str(tmp_path / "out" / "*.tar"), device="cpu") as loader:
        (batch,) = loader
        assert [image.shape for image in batch.images] == [(50, 50, 3)] * 2  # readers find the written image
        assert [dict(item.metadata) for item in batch.data] == [{"a": [1, None], "label": 3}, {"caption": "caption"}]


def test_compound_extensions() -> None:
    found, image = replace_image({"0001.png": 1, "0002.png": 2}, "0001.png", 3, "jpg")
    assert (found, image) == ({"0001.jpg": 3, "0002.png": 2}, "0001.jpg")
    assert list(replace_image({"png": 1, "JPG": 2}, "png", 3, "jpg")[0].items()) == [("jpg", 3), ("other.JPG", 2)]


def run_each_way(source: Any, folder: Path, write: cd.Write, **options: Any) -> list[list[dict[str, bytes]]]:
    """What a streaming run, one with a global stage, and `rethreshold` write."""
    stages = [cd.Quality(), cd.Filter("sharpness", min=100)]
    found = [curated(source, folder / "streaming", write, stages=stages, **options)[1]]
    twice = [*stages, cd.Deduplicate(exact="bytes")]
    found.append(curated(source, folder / "twice", write, stages=twice, **options)[1])
    cd.curate(source, folder / "first", **{**OPTIONS, **options, "stages": [cd.Quality()]})
    new = folder / "anew"
    report = cd.rethreshold(folder / "first", new, stages=stages[1:], write=write, device="cpu", html=False)
    assert report.complete
    return [*found, list(read_members(new).values())]


@pytest.mark.parametrize("write", [cd.Write(resize=100, format="jpeg"), cd.Write(format="webp", quality=60)])
def test_every_way_writes_the_same_bytes(shards: Path, tmp_path: Path, write: cd.Write) -> None:
    streaming, twice, anew = run_each_way(str(shards), tmp_path, write, part_size=7, batch_size=3)
    assert 5 < len(streaming) < 24
    names = [name for name in streaming[0] if name != "curation.json"]
    for one, two, three in zip(streaming, twice, anew, strict=True):
        assert {name: one[name] for name in names} == {name: two[name] for name in names}
        assert one == three
        about = json.loads(one["curation.json"])
        assert about.items() <= json.loads(two["curation.json"]).items()
    rows = {name: read_rows(tmp_path / name) for name in ("streaming", "twice", "anew")}
    for name in ("sha256", "written_sha256", "written_as", "status"):
        assert len({str([row[name] for row in found]) for found in rows.values()}) == 1
    curated(str(shards), tmp_path / "other", write, stages=[cd.Quality(), cd.Filter("sharpness", min=100)], part_size=7)
    assert content(tmp_path / "other") == content(tmp_path / "streaming")  # other batches change nothing
    for name in ("streaming", "twice", "anew"):
        assert Manifest.load(str(tmp_path / name)).verify(deep=True) == []


def test_another_decision_writes_the_original_bytes_again(shards: Path, tmp_path: Path) -> None:
    curated(str(shards), tmp_path / "small", cd.Write(resize=50))
    cd.rethreshold(tmp_path / "small", tmp_path / "whole", stages=[cd.Filter("width", min=150)], html=False)
    (first, *_) = rows = read_rows(tmp_path / "whole")
    assert not [name for name in first if name.startswith("written")]
    for row in rows:
        found = read_members(tmp_path / "whole").get((row["tar"], row["key"]))
        assert (found is None) == (row["status"] != "kept")
        assert found is None or digest(found["jpg"]) == row["sha256"]


@dataclass(frozen=True)
class Interrupting(cd.Stage):
    """A user who presses Ctrl-C when a file of the output has appeared."""

    folder: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return {"type": "Interrupting"}

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        if self.folder and list(Path(self.folder).glob("*.parquet")):
            raise KeyboardInterrupt
        return batch


@pytest.mark.parametrize("last", [[], [FirstOfItsLabel()]])
def test_an_interrupted_run_ends_with_the_same_bytes(shards: Path, tmp_path: Path, last: list[cd.Stage]) -> None:
    write = cd.Write(resize=64, format="jpeg")
    options: dict[str, Any] = {"part_size": 5, "batch_size": 2}
    curated(str(shards), tmp_path / "whole", write, stages=[Interrupting(), *last], **options)
    out = tmp_path / "out"
    folder = str(out / "_scored" if last else out)
    with pytest.raises(KeyboardInterrupt):
        curated(str(shards), out, write, stages=[Interrupting(folder), *last], **options)
    seen = [0]

    def interrupt(count: int) -> None:
        seen[0] += count
        if seen[0] > 30:  # of the second pass
            raise KeyboardInterrupt

    if last:
        with pytest.raises(KeyboardInterrupt):
            curated(str(shards), out, write, stages=[Interrupting(), *last], progress=interrupt, **options)
    assert Manifest.load(str(out)).missing()
    with pytest.raises(cd.OutputError, match=r"settings\.write"):
        curated(str(shards), out, cd.Write(resize=65, format="jpeg"), stages=[Interrupting(), *last], **options)
    curated(str(shards), out, write, stages=[Interrupting(), *last], **options)
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_ray_writes_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    write = cd.Write(resize=64, format="jpeg")
    curated(str(shards), tmp_path / "here", write, part_size=8)
    curated(str(shards), tmp_path / "there", write, part_size=8, executor="ray")
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_an_image_that_the_format_cannot_hold_is_dropped_with_a_reason(tmp_path: Path) -> None:
    wide = helpers.encode(np.full((4, 17_000, 3), 90, np.uint8), "PNG")
    fine = helpers.encode(np.full((40, 50, 3), 90, np.uint8), "PNG")
    for stages in ([], [cd.Deduplicate()]):
        out = tmp_path / f"{len(stages)}"
        source = MemorySource([fine, wide])
        report = cd.curate(source, out, write=cd.Write(format="webp"), **{**OPTIONS, "stages": stages})
        limit = "webp holds at most 16,383 pixels a side"
        assert report.dropped == {"write": {f"cannot be written: {limit}": 1}}
        (kept, dropped) = read_rows(out)
        assert (kept["status"], kept["written_format"]) == ("kept", "webp")
        assert dropped["reason"] == f"cannot be written: 17000x4, and {limit}"
        assert (dropped["status"], dropped["stage"], dropped["tar"]) == ("dropped", "write", None)
        assert cd.Report.load(out).dropped == report.dropped
    cd.write_report(out)
    write, stages = cd.Write(format="png"), [cd.Filter("width", min=1)]
    again = cd.rethreshold(out, tmp_path / "png", stages=stages, write=write, source=source, device="cpu")
    assert again.kept == 2


def test_an_image_that_enlarging_makes_too_large_fails_alone(tmp_path: Path) -> None:
    thin = helpers.encode(np.full((1, 2000, 3), 90, np.uint8), "PNG")
    fine = helpers.encode(np.full((40, 50, 3), 90, np.uint8), "PNG")
    write = cd.Write(resize=500, enlarge=True, format="png")
    for stages in ([], [cd.Deduplicate()]):
        report = cd.curate(
            MemorySource([fine, thin]), tmp_path / f"{len(stages)}", write=write, **{**OPTIONS, "stages": stages}
        )
        assert report.failed == {"too large": 1}
        rows = read_rows(tmp_path / f"{len(stages)}")
        assert [row["written_as"] for row in rows] == ["png 625x500", None]
        assert [row["status"] for row in rows] == ["kept", "failed"]


def test_nothing_kept_and_nothing_there(shards: Path, tmp_path: Path) -> None:
    for name, source in (("none", str(shards)), ("empty", MemorySource([]))):
        for stages in ([cd.Filter("width", min=10_000)], [cd.Filter("width", min=10_000), cd.Deduplicate()]):
            out = tmp_path / f"{name}{len(stages)}"
            report = cd.curate(source, out, **{**OPTIONS, "stages": stages}, write=cd.Write(resize=9))
            assert (report.kept, list(out.glob("*.tar"))) == (0, [])


def test_a_remote_output(shards: Path, tmp_path: Path) -> None:
    import fsspec

    out = f"memory://write-{tmp_path.name}/out"
    write = cd.Write(resize=64)
    cd.curate(str(shards), out, write=write, part_size=10, **OPTIONS)
    curated(str(shards), tmp_path / "here", write, part_size=10)
    for name, data in content(tmp_path / "here").items():
        with fsspec.open(f"{out}/{name}") as file:
            assert file.read() == data


def test_the_default_is_as_without(shards: Path, tmp_path: Path) -> None:
    curated(str(shards), tmp_path / "a", None)
    rows, _ = curated(str(shards), tmp_path / "b", cd.Write())
    assert content(tmp_path / "a") == content(tmp_path / "b")
    settings = [Manifest.load(str(tmp_path / name)).run["settings"] for name in "ab"]
    assert settings[0] == settings[1]
    assert "written_as" not in rows[0]
    assert "sha256" not in rows[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": 0}, r"Write\.resize is 0; allowed: a whole number of pixels from 1 to 65500"),
        ({"resize": 5, "side": "long"}, r"Write\.side is 'long'; allowed: \"shortest\", \"longest\""),
        ({"format": "gif"}, r"Write\.format is 'gif'; allowed: \"jpeg\", \"webp\", \"png\""),
        ({"format": "jpeg", "quality": 101}, r"Write\.quality is 101; allowed: a whole number from 1 to 100"),
        ({"quality": 80}, r"Write\.quality is 80, and says how to encode: give resize= or format= too"),
        ({"profile": "keep"}, r"Write\.profile is 'keep', and says how to encode"),
        ({"side": "longest"}, r"Write\.side is 'longest', and says how to resize: give resize= too"),
        ({"enlarge": True, "format": "png"}, r"Write\.enlarge is True, and says how to resize"),
        ({"resize": 20_000, "format": "webp"}, r"Write\.resize is 20000, and webp holds at most 16,383 pixels a side"),
    ],
)
def test_errors_name_the_value_and_the_fix(arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cd.Write(**arguments)


def test_errors_come_before_work(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tars is False, which writes no images: leave one of them out"):
        cd.curate(str(shards), tmp_path / "out", write=cd.Write(resize=9), tars=False, **OPTIONS)
    with pytest.raises(ValueError, match=r"write is \{'resize': 9\}; allowed: a Write, None"):
        cd.curate(str(shards), tmp_path / "out", write={"resize": 9}, **OPTIONS)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    members = [("a.jpg", helpers.encode(np.zeros((9, 9, 3), np.uint8))), ("a.json", b'{"written_as": "x"}')]
    source = str(helpers.write_tar(tmp_path / "a.tar", members))
    stages = [cd.Filter("written_as", equals="x")]
    with pytest.raises(
        cd.StageError, match="write= makes the column 'written_as', which a stage makes too, or which is a field"
    ):
        cd.curate(source, tmp_path / "out", write=cd.Write(resize=9), **{**OPTIONS, "stages": stages})


@dataclass(frozen=True)
class Digests(cd.Stage):
    """Writes a column of the name that a written image has for its own hash."""

    @property
    def writes(self) -> Mapping[str, str]:
        return {"sha256": "string"}

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        batch.columns["sha256"] = np.array([f"of {item.image_id}" for item in batch.data], object)
        return batch


def test_a_column_of_a_stage_is_not_made_twice(shards: Path, tmp_path: Path) -> None:
    rows, _ = curated(str(shards), tmp_path / "out", cd.Write(resize=64), stages=[Digests()])
    assert [row["sha256"] for row in rows] == [f"of {row['image_id']}" for row in rows]
    assert all(len(row["written_sha256"]) == 64 for row in rows)


def test_in_a_file_and_on_the_command_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "curate.toml"
    config.write_text("device = 'cpu'\n[write]\nresize = 64\nside = 'longest'\nformat = 'png'\n")
    write = cd.Write(resize=64, side="longest", format="png")
    assert read_config(config)["write"] == write == pickle.loads(pickle.dumps(write))
    curated(str(shards), tmp_path / "here", cd.Write(resize=48, side="longest", format="jpeg", quality=70))
    flags = ["--config", str(config), "--resize", "48", "--format", "jpeg", "--write-quality", "70", "--no-html"]
    assert main(["curate", str(shards), str(tmp_path / "there"), *flags]) == 0
    assert content(tmp_path / "there") == content(tmp_path / "here")
    limits = ["--min", "width=1", *flags[2:], "--side", "longest", "--device", "cpu"]
    assert main(["rethreshold", str(tmp_path / "here"), str(tmp_path / "anew"), *limits]) == 0
    assert len(read_members(tmp_path / "anew")) == 24
    capsys.readouterr()
    assert main(["curate", str(shards), str(tmp_path / "no"), "--side", "longest", "--device", "cpu"]) != 0
    assert "says how to resize: give resize= too" in capsys.readouterr().err
    config.write_text("[write]\nresiz = 64\n")
    with pytest.raises(ValueError, match=r"write: there is no 'resiz' \(did you mean 'resize'\?\)"):
        read_config(config)
    config.write_text("write = 64\n")
    with pytest.raises(ValueError, match=r"write is 64; give a table, as write = \{resize = 512\}"):
        read_config(config)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4),
    resize=st.integers(1, 100),
    side=st.sampled_from(["shortest", "longest"]),
    enlarge=st.booleans(),
    format=st.sampled_from([None, "jpeg", "webp", "png"]),
)
def test_sizes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], resize: int, side: Any, enlarge: bool,
    format: Any,
) -> None:  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    given = [helpers.encode(np.ascontiguousarray(pixels[:h, :w]), ("JPEG", "PNG")[(h + w) % 2]) for h, w in sizes]
    out = tmp_path_factory.mktemp("sizes")
    write = cd.Write(resize=resize, side=side, enlarge=enlarge, format=format)
    rows, members = curated(MemorySource(given), out / "out", write)
    for (height, width), row, found in zip(sizes, rows, members, strict=True):
        before = (min if side == "shortest" else max)(height, width)
        after = resize if enlarge else min(before, resize)
        expected = max(after * width // before, 1), max(after * height // before, 1)
        assert (row["written_width"], row["written_height"]) == expected
        (extension,) = set(found) - {"curation.json"}
        image = Image.open(io.BytesIO(found[extension]))
        assert image.size == expected
        assert image.format == row["written_format"].upper()

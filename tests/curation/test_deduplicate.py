"""Deduplicate in a curation: what is dropped, for what, and what earlier outputs have to do with it."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

import curator_dali as cd
from curator_dali.batch.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.similarity import dhash, phash, to_hex
from curator_dali.similarity.hashes import from_hex
from curator_dali.stages import Deduplicate, Embed, Filter
from tests import helpers
from tests.curation.helpers import make_older, read_members, read_rows
from tests.index.outputs import write_output
from tests.stages.helpers import BlindEncoder, ColourEncoder


def small(pixels: NDArray[np.uint8], side: int = 200) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    return image


@pytest.fixture(scope="module")
def corpus(photos: dict[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """Photographs with copies: key is NAME-WHAT."""
    found = {}
    for name in ("coffee", "chelsea", "china", "rocket"):
        image = small(photos[name])
        found[f"{name}-a"] = helpers.encode(image, "PNG")
        found[f"{name}-b-file"] = found[f"{name}-a"]
        found[f"{name}-c-pixels"] = helpers.encode(image, "PNG", compress_level=1)
        found[f"{name}-d-jpeg"] = helpers.encode(image, quality=60)
        found[f"{name}-e-smaller"] = helpers.encode(image.resize((image.width * 3 // 4, image.height * 3 // 4)))
        found[f"{name}-f-brighter"] = helpers.encode(ImageEnhance.Brightness(image).enhance(1.1))
    found["broken"] = b"no image"
    return found


def run(source: Any, out: Path, *stages: Any, **options: Any) -> dict[str, dict[str, Any]]:
    cd.curate(source, out, stages=list(stages), device="cpu", batch_size=8, part_size=10, **options)
    return {row["image_id"]: row for row in read_rows(out)}


def reasons(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {key: row["reason"] for key, row in rows.items() if row["status"] == "dropped"}


def test_exact_duplicates_by_bytes_by_pixels_and_by_both(corpus: dict[str, bytes], tmp_path: Path) -> None:
    names = ("coffee", "chelsea", "china", "rocket")
    by_bytes = run(corpus, tmp_path / "bytes", Deduplicate("bytes", keep="first"))
    assert reasons(by_bytes) == {f"{n}-b-file": f"duplicate of {n}-a (same bytes)" for n in names}
    by_pixels = reasons(run(corpus, tmp_path / "pixels", Deduplicate("pixels", keep="first")))
    assert by_pixels == {
        f"{n}-{what}": f"duplicate of {n}-a (same pixels)" for n in names for what in ("b-file", "c-pixels")
    }
    both = run(corpus, tmp_path / "both", Deduplicate(keep="first"))
    assert reasons(both) == by_pixels | reasons(by_bytes)
    for name in names:
        group = {both[f"{name}-{what}"]["duplicate_group"] for what in ("a", "b-file", "c-pixels")}
        assert len(group) == 1 and group != {-1}  # noqa: PT018
        assert both[f"{name}-b-file"]["duplicate_of"] == f"{name}-a"
        assert both[f"{name}-a"]["duplicate_of"] is None
        assert both[f"{name}-d-jpeg"]["duplicate_group"] == -1
    assert both["broken"]["status"] == "failed"
    assert {row["image_id"] for row in both.values() if row["status"] == "kept"} == {
        json.loads(members["curation.json"])["image_id"] for members in read_members(tmp_path / "both").values()
    }


def test_never_across_different_content(tmp_path: Path, photos: dict[str, NDArray[np.uint8]]) -> None:
    pixels = np.array(small(photos["coffee"]))
    crafted = {"same": helpers.encode(pixels, "PNG")}
    for number, (y, x, channel) in enumerate([(0, 0, 0), (5, 7, 1), (pixels.shape[0] - 1, pixels.shape[1] - 1, 2)]):
        other = pixels.copy()
        other[y, x, channel] ^= 1  # one bit of one value
        crafted[f"bit-{number}"] = helpers.encode(other, "PNG")
    crafted["swapped"] = helpers.encode(np.ascontiguousarray(pixels[:, ::-1]), "PNG")
    blank = np.zeros((8, 18, 3), np.uint8)
    crafted |= {f"blank-{h}": helpers.encode(blank.reshape(h, -1, 3), "PNG") for h in (8, 12, 16, 18)}  # 144 pixels
    crafted["longer"] = crafted["same"] + b"\0"  # the same pixels, another file
    rows = run(crafted, tmp_path / "out", Deduplicate(keep="first"))
    assert reasons(rows) == {"longer": "duplicate of same (same pixels)"}
    assert reasons(run(crafted, tmp_path / "bytes", Deduplicate("bytes", keep="first"))) == {}


@pytest.mark.parametrize("hash", ["phash", "dhash"])
def test_near_duplicates(hash: Any, corpus: dict[str, bytes], tmp_path: Path) -> None:
    rows = run(corpus, tmp_path / "out", Deduplicate(False, near=6, keep="first", hash=hash))
    told = reasons(rows)
    assert {key for key in told if not key.startswith("rocket")} >= {
        f"{n}-{what}" for n in ("coffee", "chelsea", "china") for what in ("d-jpeg", "e-smaller")
    }
    assert all(reason.startswith(f"duplicate of {key.split('-')[0]}-") for key, reason in told.items())
    label = {"phash": "pHash", "dhash": "dHash"}[hash]
    assert all(f"({label} distance " in reason for reason in told.values())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dropped"] == {"Deduplicate": {f"duplicate: {label} distance <= 6": len(told)}}


@pytest.mark.parametrize("hash", ["phash", "dhash"])
def test_hashes_are_text_wherever_they_are_written(hash: Any, corpus: dict[str, bytes], tmp_path: Path) -> None:
    """As integers, most would arrive as other numbers in pandas, and overflow the readers of JSON."""
    images = corpus | {"blank": helpers.encode(Image.new("RGB", (90, 90)), "PNG")}
    report = cd.curate(images, tmp_path / "out", stages=[Deduplicate(False, near=6, hash=hash)], device="cpu")
    ours = {"phash": phash, "dhash": dhash}[hash]
    wanted = {
        key: None if key in ("blank", "broken") else to_hex(ours([np.asarray(Image.open(io.BytesIO(data)))]))[0]
        for key, data in images.items()
    }
    assert {row["image_id"]: row[hash] for row in read_rows(tmp_path / "out")} == wanted
    for (_, key), members in read_members(tmp_path / "out").items():
        assert json.loads(members["curation.json"]).get(hash) == wanted[key]
    frame = report.kept().to_pandas()
    for key, text in zip(frame["image_id"], frame[hash], strict=True):
        assert (None if pandas.isna(text) else text) == wanted[key]
    for name in ("index", "width", "height", "image_bytes", "duplicate_group"):
        assert frame[name].dtype.kind == "i", name
    batch = report.dropped().load(3, images=False)
    assert batch.columns[hash].tolist() == [wanted[item.image_id] for item in batch.data]


@pytest.mark.parametrize("hash", ["phash", "dhash"])
def test_an_output_with_hashes_of_an_earlier_version(hash: Any, corpus: dict[str, bytes], tmp_path: Path) -> None:
    near = Deduplicate(False, near=6, keep="first", hash=hash)
    old, new = tmp_path / "old", tmp_path / "new"
    images = corpus | {"blank": helpers.encode(Image.new("RGB", (90, 90)), "PNG")}
    rows = run(images, new, near)
    shutil.copytree(new, old)
    make_older(old)
    assert {row[hash] for row in read_rows(old)} == {
        None if row[hash] is None else int(row[hash], 16) for row in rows.values()
    }
    assert (
        cd.Report.load(old).kept().to_table()[hash].to_pylist()
        == cd.Report.load(new).kept().to_table()[hash].to_pylist()
    )
    cd.write_report(old, source=images)
    assert cd.duplicate_groups(old) == cd.duplicate_groups(new)
    found = []
    for name in ("read", "indexed"):
        found.append([(leak.image_id, leak.other, leak.why) for leak in cd.leaks(new, old, near=2)])
        assert found[-1] == [(leak.image_id, leak.other, leak.why) for leak in cd.leaks(old, new, near=2)]
        again = run(images, tmp_path / name, Deduplicate(False, near=6, keep="first", hash=hash, against=str(old)))
        assert {key for key, row in again.items() if row["status"] == "kept"} == {"blank"}
        cd.write_index(old)
    assert found[0] == found[1]
    assert len(found[0]) == sum(row["status"] == "kept" and row[hash] is not None for row in rows.values())
    cd.rethreshold(old, tmp_path / "again", stages=[near], tars=False)
    assert {row["image_id"]: (row["status"], row["reason"], row[hash]) for row in read_rows(tmp_path / "again")} == {
        key: (row["status"], row["reason"], row[hash]) for key, row in rows.items()
    }


def test_a_half_done_output_with_hashes_of_an_earlier_version_is_refused(
    corpus: dict[str, bytes], tmp_path: Path
) -> None:
    near = Deduplicate(False, near=6, keep="first")
    run(corpus, tmp_path / "out", near)
    make_older(tmp_path / "out")
    run(corpus, tmp_path / "out", near)  # whole: nothing is to be done
    last = sorted((tmp_path / "out" / "_manifest" / "parts").iterdir())[-1]
    last.unlink()
    with pytest.raises(cd.OutputError, match="'phash' is uint64 there and string now"):
        run(corpus, tmp_path / "out", near)
    shutil.copytree(tmp_path / "out", tmp_path / "half")
    run(corpus, tmp_path / "new", near)
    with pytest.raises(cd.OutputError, match=r"holds the output of another run|'phash' is uint64 there and string now"):
        cd.rethreshold(tmp_path / "new", tmp_path / "half", stages=[near], tars=False)


@pytest.fixture(scope="module")
def blanks(photos: dict[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """Images of one colour, one as a JPEG, and a photograph."""
    found = {
        name: helpers.encode(Image.new("RGB", (200, 150), name), "PNG") for name in ("white", "black", "red", "grey")
    }
    found["white jpeg"] = helpers.encode(Image.new("RGB", (210, 150), "white"), quality=40)
    return found | {"coffee": helpers.encode(small(photos["coffee"]), "PNG")}


@pytest.mark.parametrize("hash", ["phash", "dhash"])
def test_images_of_one_colour_are_no_near_duplicates(hash: Any, blanks: dict[str, bytes], tmp_path: Path) -> None:
    near = Deduplicate(False, near=6, hash=hash)
    rows = run(blanks | {"copy": helpers.encode(small_copy(blanks["coffee"]))}, tmp_path / "old", near)
    assert list(reasons(rows)) == ["copy"]
    for key, row in rows.items():
        assert row[f"{hash}_blank"] == (key not in ("coffee", "copy"))
        assert (row[hash] is None) == row[f"{hash}_blank"]
        assert (row["duplicate_group"] == -1) == row[f"{hash}_blank"]
    again = Deduplicate(False, near=6, hash=hash, against=tmp_path / "old")
    wanted = {"coffee": f"duplicate of coffee in {tmp_path / 'old'} "}
    for name in ("read", "indexed"):
        found = reasons(run(blanks, tmp_path / name, again))
        assert {key: reason.partition("(")[0] for key, reason in found.items()} == wanted
        leaked = cd.leaks(tmp_path / "read", tmp_path / "old", near=6)
        assert leaked == []  # what is not blank was dropped there
        if name == "read":
            cd.write_index(tmp_path / "old")
    cd.rethreshold(
        tmp_path / "old", tmp_path / "new", stages=[Deduplicate(False, near=4, hash=hash, keep="first")], tars=False
    )
    new = {row["image_id"]: row for row in read_rows(tmp_path / "new")}
    assert [key for key, row in new.items() if row["status"] == "dropped"] == ["copy"]  # and none as "missing"
    assert new["white"][f"{hash}_blank"]


def small_copy(image: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(image))
    return opened.resize((opened.width * 3 // 4, opened.height * 3 // 4))


@pytest.mark.parametrize(("hash", "constants"), [("phash", [1 << 63, 0]), ("dhash", [0, 2**64 - 1])])
@pytest.mark.parametrize("indexed", [False, True])
def test_hashes_of_blank_images_in_an_older_output_are_compared_with_nothing(
    hash: Any, constants: list[int], indexed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {hash: np.array([*constants, *constants, 0x5A5A5A5A00003039, 0x5A5A5A5A00003038], np.uint64)}
    write_output(tmp_path / "old", old, older=True)
    if indexed:
        with monkeypatch.context() as patch:  # as that version did
            patch.setattr(
                "curator_dali.index.index.find_comparable",
                lambda values, name: (np.arange(len(values)), from_hex(values)),
            )
            cd.write_index(tmp_path / "old")
    write_output(tmp_path / "new", {hash: np.array([*constants, constants[0] ^ 1, 0x5A5A5A5A0000303B], np.uint64)})
    leaked = cd.leaks(tmp_path / "new", tmp_path / "old", near=4)
    assert [(leak.image_id, leak.other) for leak in leaked] == [("image-3", "image-4")]
    stages = [Deduplicate(False, near=4, hash=hash, keep="first")]
    cd.rethreshold(tmp_path / "old", tmp_path / "again", stages=stages, tars=False)
    assert [row["status"] for row in read_rows(tmp_path / "again")] == ["kept"] * 5 + ["dropped"]


def test_keep_rules(corpus: dict[str, bytes], tmp_path: Path) -> None:
    largest = run(corpus, tmp_path / "largest", Deduplicate(False, near=8, keep="largest"))
    coffee = [row for key, row in largest.items() if key.startswith("coffee")]
    best = max(coffee, key=lambda row: (row["width"] * row["height"], row["image_bytes"]))
    assert best["status"] == "kept"
    options = {"near": 8, "keep": "best", "score": "brightness"}
    rows = run(corpus, tmp_path / "best", cd.Quality(), Deduplicate(False, **options))
    coffee = [row for key, row in rows.items() if key.startswith("coffee")]
    assert max(coffee, key=lambda row: row["brightness"])["status"] == "kept"


@pytest.fixture(scope="module")
def colours() -> dict[str, bytes]:
    """Images of one colour, near red or near green, and black: which has no direction."""
    values = {
        "red": (250, 0, 0), "reddish": (250, 20, 0), "green": (0, 250, 0), "greenish": (0, 250, 10),
        "blue": (0, 0, 250),
        "black-1": (0, 0, 0), "black-2": (1, 0, 0),
    }  # fmt: skip
    return {key: helpers.encode(np.full((20, 30, 3), rgb, np.uint8), "PNG") for key, rgb in values.items()}


def test_semantic_duplicates_and_embeddings_of_no_use(
    colours: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    black = helpers.encode(np.zeros((9, 9, 3), np.uint8), "PNG")
    source = colours | {"black-2": black}  # zero embeddings, twice
    with caplog.at_level(logging.WARNING):
        rows = run(source, tmp_path / "out", Embed(ColourEncoder()), Deduplicate(False, similarity=0.99, keep="first"))
    assert reasons(rows) == {
        "reddish": "duplicate of red (cosine 0.996)",
        "greenish": "duplicate of green (cosine 0.999)",
    }
    assert "2 of 7 embeddings are NaN, infinite or zero" in caplog.text


def test_against_an_earlier_output(colours: dict[str, bytes], tmp_path: Path) -> None:
    stages = [Embed(ColourEncoder()), Deduplicate("bytes", similarity=0.99, keep="first")]
    old = {key: colours[key] for key in ("red", "green")}
    run(old, tmp_path / "old", *stages, embeddings=True)
    new = {key: colours[key] for key in ("reddish", "green", "blue", "greenish")}
    against = Deduplicate("bytes", similarity=0.99, keep="first", against=tmp_path / "old")
    rows = run(new, tmp_path / "new", stages[0], against, embeddings=True)
    assert reasons(rows) == {
        "reddish": f"duplicate of red in {tmp_path / 'old'} (cosine 0.996)",
        "green": f"duplicate of green in {tmp_path / 'old'} (same bytes)",
        "greenish": f"duplicate of green in {tmp_path / 'old'} (cosine 0.999)",
    }
    assert rows["green"]["duplicate_group"] == rows["greenish"]["duplicate_group"] >= 0
    assert rows["blue"]["duplicate_group"] == -1
    both = run(old | {"blue": colours["blue"], "x": colours["reddish"]}, tmp_path / "whole", *stages)
    assert {k for k, r in both.items() if r["status"] == "kept"} == {"red", "green", "blue"}


def test_a_chain_that_leads_to_an_earlier_image(tmp_path: Path) -> None:
    def at(angle: float) -> bytes:
        rgb = np.array([np.cos(angle), np.sin(angle), 0]) * 250
        return helpers.encode(np.full((20, 30, 3), rgb.round(), np.uint8), "PNG")

    run({"old": at(0.0)}, tmp_path / "old", Embed(ColourEncoder()), Deduplicate("bytes"), embeddings=True)
    new = {"far": at(0.2), "near": at(0.1), "apart": at(1.0)}
    told = {}
    for linkage in ("star", "components"):
        options: Any = {"similarity": 0.994, "keep": "first", "linkage": linkage}
        stage = Deduplicate("bytes", against=str(tmp_path / "old"), **options)
        told[linkage] = reasons(run(new, tmp_path / linkage, Embed(ColourEncoder()), stage))
    assert list(told["star"]) == ["near"]
    assert list(told["components"]) == ["far", "near"]
    assert told["components"]["far"].endswith("(by a chain of others)")


def test_what_cannot_be_compared_with_is_refused_before_work(colours: dict[str, bytes], tmp_path: Path) -> None:
    run(colours, tmp_path / "plain", Embed(ColourEncoder()), Filter("width", min=1))
    run(colours, tmp_path / "stored", Embed(ColourEncoder()), Deduplicate("bytes"), embeddings=True)
    other = ColourEncoder()
    other.lineage = {"model": "colours", "weights": {"a": "b"}}

    def refused(match: str, encoder: Any, **options: Any) -> None:
        with pytest.raises(cd.CuratorDaliError, match=match):
            run(colours, tmp_path / "new", Embed(encoder), Deduplicate(**options))
        assert not (tmp_path / "new").exists()

    refused("no column 'content_hash'", ColourEncoder(), exact="bytes", against=tmp_path / "plain")
    refused("stores no embeddings", ColourEncoder(), exact=False, similarity=0.9, against=tmp_path / "plain")
    refused("have 3 numbers, the new ones 4", BlindEncoder(), exact=False, similarity=0.9, against=tmp_path / "stored")
    refused("cosines between them mean nothing", other, exact=False, similarity=0.9, against=tmp_path / "stored")
    refused("no output of a curation", ColourEncoder(), against=tmp_path / "nowhere")
    path = tmp_path / "stored" / "_manifest" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    refused("format 99", ColourEncoder(), exact="bytes", against=tmp_path / "stored")
    with pytest.raises(StageError, match="put Embed before it"):
        run(colours, tmp_path / "new", Deduplicate(similarity=0.9))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"exact": False}, "compares nothing"),
        ({"exact": "byte"}, "allowed: True or False, .bytes., .pixels."),
        ({"near": 17}, "0 to 16 bits"),
        ({"near": True}, "0 to 16 bits"),
        ({"similarity": 1.5}, "at most 1"),
        ({"similarity": float("nan")}, "at most 1"),
        ({"keep": "best"}, "needs the column"),
        ({"score": "width"}, "needs the column"),
        ({"max_pairs": 0}, "at least 1"),
        ({"keep": "worst"}, "allowed: .largest."),
        ({"linkage": "chain"}, "allowed: .star."),
    ],
)
def test_settings_that_mean_nothing(options: dict[str, Any], match: str) -> None:
    with pytest.raises(StageError, match=match):
        Deduplicate(**options)


@pytest.mark.parametrize("options", [{"near": 16}, {"similarity": 0.9}])
def test_too_many_pairs_say_what_to_do(
    options: dict[str, Any], tmp_path: Path, photos: dict[str, NDArray[np.uint8]]
) -> None:
    pixels = np.asarray(small(photos["coffee"], 64)) // 2
    images = {}
    for n in range(8):
        lighter = pixels.copy()
        lighter[: 5 * n] += np.uint8(30)
        images[f"{n}"] = helpers.encode(lighter, "PNG")
    stages = [Embed(ColourEncoder()), Deduplicate(False, max_pairs=5, **options)]
    say = r"more than 5 pairs are this alike .* with max_pairs .*a lower near=, or a Deduplicate\(\) of exact"
    with pytest.raises(StageError, match=say):
        run(images, tmp_path / "out", *stages)
    enough = Deduplicate(False, max_pairs=28, **options)
    assert len(reasons(run(images, tmp_path / "enough", stages[0], enough))) > 0


def test_nothing_and_one(corpus: dict[str, bytes], tmp_path: Path) -> None:
    stages = [Filter("width", min=100), Deduplicate(near=4)]
    assert reasons(run({"one": corpus["coffee-a"]}, tmp_path / "one", *stages)) == {}
    rows = run({"broken": b"x"}, tmp_path / "none", *stages)
    assert [row["status"] for row in rows.values()] == ["failed"]
    rows = run({"one": corpus["coffee-a"]}, tmp_path / "dropped", Filter("width", min=1000), stages[1])
    assert [row["stage"] for row in rows.values()] == ["Filter(width)"]


def test_needs_the_bytes(corpus: dict[str, bytes]) -> None:
    with pytest.raises(StageError, match="keep_encoded=True"):
        Deduplicate("bytes")(ImageBatch())

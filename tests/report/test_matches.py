"""Searching an output, and what two outputs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.models import NoTextTowerError, WeightsError
from curator_dali.report.matches import SearchError
from curator_dali.stages import Deduplicate, Embed, Filter
from tests import helpers
from tests.stages.helpers import BlindEncoder, ColourEncoder

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "teal": (0, 120, 130), "black": (0, 0, 0)}


def image(*rgb: int, side: int = 24) -> bytes:
    return helpers.encode(np.full((side, side, 3), rgb, np.uint8), "PNG")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    (folder / "in").mkdir()
    for name, rgb in COLOURS.items():
        (folder / "in" / f"{name}.png").write_bytes(image(*rgb))
    (folder / "in" / "small.png").write_bytes(image(240, 10, 0, side=10))
    (folder / "in" / "broken.png").write_bytes(b"x")
    stages = [Embed(ColourEncoder()), Filter("width", min=20), Deduplicate()]
    cd.curate(str(folder / "in"), folder / "out", stages=stages, device="cpu", embeddings=True, part_size=3)
    return folder / "out"


def find(out: Path, **options: Any) -> cd.Found:
    return cd.search(out, **{"encoder": ColourEncoder(), "device": "cpu", **options})


def test_by_image_text_embedding_and_id(out: Path) -> None:
    assert find(out, text="a red bus", k=2).ids[0] == "red"
    assert find(out, image=image(0, 100, 100), k=1).ids == ["teal"]
    assert find(out, image=out.parent / "in" / "blue.png", k=1).ids == ["blue"]
    found = find(out, embedding=[0, 1, 1], k=9)
    assert found.ids == ["teal", "blue", "green", "red"] or found.ids == ["teal", "green", "blue", "red"]  # not black
    assert (np.diff(found.cosines) <= 0).all()
    assert find(out, id="teal", k=1).ids[0] in ("green", "blue")
    assert "small" in find(out, text="red", dropped=True).ids
    assert "small" not in find(out, text="red").ids


def test_the_images_come_from_the_source(out: Path) -> None:
    found = find(out, embedding=[0, 1, 0.9], k=3)
    batch = found.batch(device="cpu")
    assert [item.image_id for item in batch.data] == found.ids
    assert batch.columns["cosine"].tolist() == found.cosines.tolist()
    assert batch.images[0][0, 0].tolist() == list(COLOURS[found.ids[0]])


def test_blocks_give_what_one_block_gives(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find(out, embedding=[0.2, 0.5, 0.3], k=4)
    monkeypatch.setattr("curator_dali.report.matches._BLOCK_ROWS", 1)
    assert find(out, embedding=[0.2, 0.5, 0.3], k=4).ids == whole.ids


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, SearchError, "give one of image, text, embedding, id"),
        ({"text": "red", "id": "red"}, SearchError, "not text and id"),
        ({"text": "red", "k": 0}, SearchError, "k is 0"),
        ({"id": "nobody"}, SearchError, "'nobody' is not in the output"),
        ({"id": "broken"}, SearchError, "has no embedding"),
        ({"embedding": [1, 2]}, SearchError, "the output's embeddings have 3"),
        ({"embedding": [0, 0, 0]}, SearchError, "nothing is like it"),
        ({"embedding": [0, np.nan, 0]}, SearchError, "nothing is like it"),
        ({"image": b"no image"}, SearchError, "cannot be used"),
        ({"image": "/nowhere.jpg"}, SearchError, "cannot read the image"),
        ({"image": "http://127.0.0.1:9/nowhere.jpg"}, SearchError, "cannot read the image.*Cannot connect to host"),
    ],
)
def test_bad_queries(out: Path, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        find(out, **options)


def test_other_weights_and_outputs_without_embeddings(out: Path, tmp_path: Path) -> None:
    other = ColourEncoder()
    other.lineage = {"model": "colours", "weights": {"file": "another"}}
    with pytest.raises(WeightsError, match="cosines between them mean nothing"):
        find(out, text="red", encoder=other)
    cd.curate({"a": image(1, 2, 3)}, tmp_path / "out", stages=[Filter("width", min=1)], device="cpu")
    with pytest.raises(cd.OutputError, match="stores no embeddings"):
        find(tmp_path / "out", text="red")
    with pytest.raises(cd.OutputError, match="no output"):
        find(tmp_path, text="red")
    assert issubclass(NoTextTowerError, cd.CuratorDaliError)


def test_one_image(tmp_path: Path) -> None:
    cd.curate({"a": image(9, 0, 0)}, tmp_path / "o", stages=[Embed(ColourEncoder())], device="cpu", embeddings=True)
    assert find(tmp_path / "o", text="red").ids == ["a"]
    assert find(tmp_path / "o", id="a").ids == []


def test_leaks(out: Path, tmp_path: Path) -> None:
    source = {"x": image(*COLOURS["red"]), "y": image(0, 250, 10), "z": image(200, 200, 200)}
    stages = [Embed(ColourEncoder()), Deduplicate()]
    cd.curate(source, tmp_path / "test", stages=stages, device="cpu", embeddings=True)
    found = cd.leaks(tmp_path / "test", out, similarity=0.99)
    assert [(leak.image_id, leak.other, leak.why) for leak in found] == [
        ("x", "red", "same bytes"),
        ("y", "green", "cosine 0.999"),
    ]
    assert [leak.image_id for leak in cd.leaks(tmp_path / "test", out)] == ["x"]
    cd.curate(source, tmp_path / "wide", stages=[Embed(BlindEncoder())], device="cpu", embeddings=True)
    with pytest.raises(cd.StageError, match="another model"):
        cd.leaks(tmp_path / "wide", out, similarity=0.9)
    with pytest.raises(cd.StageError, match="nothing to compare"):
        cd.leaks(tmp_path / "wide", out)
    with pytest.raises(cd.StageError, match="no column 'phash'"):
        cd.leaks(tmp_path / "test", out, near=2)


@pytest.mark.parametrize(("exact", "leaked"), [("bytes", ["x"]), ("pixels", ["x", "y"]), (None, ["x", "y"])])
def test_leaks_by_bytes_or_pixels(exact: Any, leaked: list[str], tmp_path: Path) -> None:
    """x is the same file, y the same pixels in another format."""
    pixels = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)
    train = {"a": image(250, 0, 0), "b": helpers.encode(pixels, "PNG")}
    test = {"x": train["a"], "y": helpers.encode(pixels, "BMP"), "z": image(9, 9, 9)}
    kind: Any = True if exact is None else exact
    for name, source in (("train", train), ("test", test)):
        cd.curate(source, tmp_path / name, stages=[Deduplicate(kind)], device="cpu")
    found = cd.leaks(tmp_path / "test", tmp_path / "train", exact=exact)
    assert [leak.image_id for leak in found] == leaked


def test_from_the_command_line(tmp_path: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    cd.curate(
        str(shards[0]),
        tmp_path / "out",
        stages=[Embed("efficientnet-lite0")],
        device="cpu",
        embeddings=True,
        tars=False,
    )
    sheet = tmp_path / "sheet.png"
    arguments = ["search", str(tmp_path / "out"), "--device", "cpu", "-k", "4"]
    assert main([*arguments, "--id", "000003", "-o", str(sheet), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert len(found) == 4
    assert found[0]["cosine"] >= found[-1]["cosine"]
    with Image.open(sheet) as drawn:
        assert drawn.width > 4 * 100
    assert main([*arguments, "--text", "a red bus"]) == 2
    assert "embeds images only" in capsys.readouterr().err


def test_what_was_found_is_printed_where_no_image_of_it_decodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    files = tmp_path / "in"
    files.mkdir()
    for name, colour in COLOURS.items():
        (files / f"{name}.png").write_bytes(image(*colour))
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    stages = [Embed("efficientnet-lite0")]
    cd.curate(str(files), out, stages=stages, device="cpu", embeddings=True, tars=False, html=False)
    for file in files.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    assert main(["search", str(out), "--id", "red", "--device", "cpu", "-k", "2", "-o", str(sheet)]) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "none of the 2 images found can be decoded now" in printed.err
    assert not sheet.exists()

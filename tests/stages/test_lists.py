"""`Exclude` and `Include`: by ids, fields, digests and perceptual hashes, live and from what an output stores."""

from __future__ import annotations

import hashlib
import json
import pickle
from datetime import datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import curator_dali as cd
from curator_dali.errors import StageError
from curator_dali.stages import Exclude, Include
from tests import helpers
from tests.curation.helpers import read_rows

OPTIONS: dict[str, Any] = {"device": "cpu", "html": False, "tars": False}
COUNT = 8
LARGE = 2**53  # beyond it a float does not hold every whole number


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    crops = helpers.crops(helpers.load_photos(), COUNT, shortest=64, longest=96)
    return [Image.fromarray(crop) for _, crop in crops]


@pytest.fixture(scope="module")
def source(photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> str:
    members = []
    for number, photo in enumerate(photos):
        fields: dict[str, Any] = {"uid": LARGE + number}
        fields |= {} if number % 2 else {"url": f"https://x/{number}.jpg"}
        members.append((f"k{number}.png", helpers.encode(np.asarray(photo), "png")))
        members.append((f"k{number}.json", json.dumps(fields).encode()))
    return str(helpers.write_tar(tmp_path_factory.mktemp("lists") / "a.tar", members))


def encoded(source: str, number: int) -> bytes:
    read = cd.open_source(source).read(np.array([number]))
    return read.images[0].tobytes()


def dropped(source: Any, out: Path, *stages: Any) -> dict[str, str]:
    cd.curate(source, out, stages=list(stages), **OPTIONS)
    return {row["image_id"]: row["reason"] for row in read_rows(out) if row["status"] == "dropped"}


def test_ids(source: str, tmp_path: Path) -> None:
    path = tmp_path / "takedown.txt"
    path.write_text("k3\n\nnobody\n  k5  \nk3\n")
    assert dropped(source, tmp_path / "out", Exclude(path)) == {
        "k3": "image_id is in takedown.txt, line 1",
        "k5": "image_id is in takedown.txt, line 4",
    }
    report = cd.curate(source, tmp_path / "out", stages=[Exclude(path)], **OPTIONS)
    assert report.dropped == {"Exclude(image_id)": {"image_id is in takedown.txt": 2}}
    kept = dropped(source, tmp_path / "in", Include(path))
    assert set(kept) == {"k0", "k1", "k2", "k4", "k6", "k7"}
    assert set(kept.values()) == {"image_id is not in takedown.txt"}
    assert dropped(source, tmp_path / "memory", Exclude(["k0"])) == {"k0": "image_id is in the list, item 1"}
    assert dropped(source, tmp_path / "none", Exclude([])) == {}
    assert len(dropped(source, tmp_path / "nobody", Include([]))) == COUNT


def test_fields_of_the_metadata(source: str, tmp_path: Path) -> None:
    urls = tmp_path / "optout.csv"
    urls.write_text("domain,url\nx,https://x/4.jpg\nx,https://x/5.jpg\n")
    found = dropped(source, tmp_path / "out", Exclude(urls, by="url", column="url"))
    assert found == {"k4": "url is in optout.csv, row 1"}
    assert dropped(source, tmp_path / "uid", Exclude([LARGE + 3, str(LARGE + 6)], by="uid")) == {
        "k3": "uid is in the list, item 1",
        "k6": "uid is in the list, item 2",
    }
    found = dropped(source, tmp_path / "include", Include(["https://x/0.jpg"], by="url"))
    assert found["k1"] == "url is missing"
    assert found["k2"] == "url is not in the list"
    assert "k0" not in found


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_digests(source: str, kind: str, tmp_path: Path) -> None:
    digest = hashlib.new(kind, encoded(source, 6)).hexdigest()
    (tmp_path / "list.txt").write_text(f"{'0' * len(digest)}\n{digest.upper()}\n")
    expected = {"k6": f"{kind} is in list.txt, line 2"}
    assert dropped(source, tmp_path / "live", Exclude(tmp_path / "list.txt", by=kind)) == expected
    info = cd.FileInfo((kind,))
    assert dropped(source, tmp_path / "column", info, Exclude(tmp_path / "list.txt", by=kind)) == expected
    assert dropped(source, tmp_path / "all", info) == {}
    cd.rethreshold(tmp_path / "all", tmp_path / "new", stages=[Exclude([digest], by=kind)], tars=False, html=False)
    (row,) = [row for row in read_rows(tmp_path / "new") if row["status"] == "dropped"]
    assert (row["image_id"], row["reason"]) == ("k6", f"{kind} is in the list, item 1")
    (tmp_path / "list.txt").write_text("abc\n")
    with pytest.raises(StageError, match=rf"list\.txt, line 1 is 'abc'; give {len(digest)} hexadecimal digits"):
        dropped(source, tmp_path / "bad", Exclude(tmp_path / "list.txt", by=kind))
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("kind", ["phash", "dhash"])
def test_perceptual_hashes(source: str, photos: list[Image.Image], kind: str, tmp_path: Path) -> None:
    hashes = [getattr(imagehash, kind)(photo) for photo in photos]
    near = [int(hashes[2] - other) for other in hashes]
    flipped = hashes[2].hash.copy()
    flipped[0, :3] ^= True
    path = tmp_path / "near.txt"
    path.write_text(f"{imagehash.ImageHash(flipped)}\n")
    exact = dropped(source, tmp_path / "exact", Exclude(path, by=kind))
    assert exact == {}
    assert dropped(source, tmp_path / "two", Exclude(path, by=kind, distance=2)) == {}
    three = {"k2": f"{kind} is within 3 bits of one in near.txt, line 1"}
    assert sorted(near)[1] > 6  # no other photograph comes near
    assert dropped(source, tmp_path / "three", Exclude(path, by=kind, distance=3)) == three
    cd.curate(source, tmp_path / "all", stages=[cd.Deduplicate(near=0, hash=kind)], **OPTIONS)
    stages = [Exclude(path, by=kind, distance=3)]
    cd.rethreshold(tmp_path / "all", tmp_path / "new", stages=stages, tars=False, html=False)
    assert {r["image_id"]: r["reason"] for r in read_rows(tmp_path / "new") if r["status"] == "dropped"} == three
    assert set(dropped(source, tmp_path / "include", Include(path, by=kind, distance=3))) == {
        f"k{n}" for n in range(COUNT) if n != 2
    }
    path.write_text("\nxyz\n")
    with pytest.raises(StageError, match=r"near\.txt, line 2: 'xyz' is no 64-bit hash"):
        dropped(source, tmp_path / "bad", Exclude(path, by=kind))


def test_a_run_goes_on_only_with_the_same_list(source: str, tmp_path: Path) -> None:
    path = tmp_path / "takedown.txt"
    path.write_text("k3\n")
    dropped(source, tmp_path / "out", Exclude(path))
    assert dropped(source, tmp_path / "out", Exclude(path)).keys() == {"k3"}
    path.write_text("k3\nk4\n")
    with pytest.raises(cd.OutputError, match=r"holds the output of another run.*Exclude\(image_id\)"):
        dropped(source, tmp_path / "out", Exclude(path))
    (stage,) = cd.stages_of(tmp_path / "out")
    assert stage == Exclude(path)
    dropped(source, tmp_path / "memory", Exclude(["k3"]))
    with pytest.raises(StageError, match=r"the list of Exclude in .* was in memory: name all stages anew"):
        cd.stages_of(tmp_path / "memory")


NOW = datetime(2024, 5, 1, 12, 30)
VALUES = [True, Decimal("2.50"), NOW, NOW.replace(tzinfo=timezone.utc), NOW.date(), b"x2", 1.5, 3, "text", time(1, 2)]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_entries_of_the_type_that_the_field_has(value: Any, tmp_path: Path) -> None:
    """Named in a list in memory, in a column of the same type, or as a number of another type."""
    image = helpers.encode(helpers.load_photos()["chelsea"][:32, :32])
    source = cd.MemorySource([image] * 3, [{"f": value}, {"f": None}, {}])
    entries: list[Any] = [[value], pa.table({"f": pa.array([None, value])})]
    entries += [[1.5], np.array([1.5], np.float32)] if value == 1.5 else [pa.table({"f": [3.0]})] if value == 3 else []
    for number, listed in enumerate(entries):
        found = dropped(source, tmp_path / f"{number}", Exclude(listed, by="f"))
        assert found.keys() == {"0"}, listed


def test_metadata_of_the_names_of_columns(tmp_path: Path) -> None:
    """COCO has an `image_id`, img2dataset a `sha256`: the sample's own id and digest count."""
    image = helpers.encode(helpers.load_photos()["chelsea"][:32, :32])
    about = {"image_id": "other", "sha256": "0" * 64, "tag": "cat"}
    source = cd.MemorySource({"mine": image}, {"mine": about})
    digest = hashlib.sha256(image).hexdigest()
    for number, (listed, by) in enumerate([("mine", "image_id"), (digest, "sha256"), ("cat", "tag")]):
        assert dropped(source, tmp_path / f"in{number}", Exclude([listed], by=by)).keys() == {"mine"}
    for number, (listed, by) in enumerate([("other", "image_id"), ("0" * 64, "sha256"), ("dog", "tag")]):
        assert not dropped(source, tmp_path / f"out{number}", Exclude([listed], by=by))


def test_large_numbers_of_an_output(tmp_path: Path) -> None:
    """A column of floats must not let a takedown hit other images, or none."""
    image = helpers.encode(helpers.load_photos()["chelsea"][:32, :32])
    source = cd.MemorySource([image] * 3, [{"pid": 1_750_000_000_000_000_000 + number} for number in range(3)])
    named = Exclude([1_750_000_000_000_000_002], by="pid")
    assert dropped(source, tmp_path / "out", named).keys() == {"2"}
    with pytest.raises(StageError, match=r"has 'pid' as floats, which do not hold whole numbers beyond 2\*\*53"):
        cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[named], source=source, html=False)


def test_a_list_that_names_nobody_is_told(source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dropped(source, tmp_path / "out", Exclude(["nobody", "k-3"]))
    assert "Exclude(image_id) dropped nothing: none of the 2 entries of its list names an image" in caplog.text
    caplog.clear()
    cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[cd.Filter("width", min=1)], tars=False, html=False)
    dropped(source, tmp_path / "few", Exclude(["nobody", "k3"]))
    assert "dropped nothing" not in caplog.text


def test_settings_that_cannot_be_meant(source: str, tmp_path: Path) -> None:
    for wrong in ({"entries": ""}, {"entries": 7}, {"entries": ["a"], "by": ""}, {"entries": ["a"], "distance": 3}):
        with pytest.raises(StageError):
            Exclude(**wrong)
    with pytest.raises(StageError, match=r"Exclude\(image_id\): no table there: .*none\.txt"):
        dropped(source, tmp_path / "out", Exclude(tmp_path / "none.txt"))
    with pytest.raises(StageError, match="reads 'nothing', which no earlier stage writes"):
        dropped(source, tmp_path / "out", Exclude(["a"], by="nothing"))
    assert not (tmp_path / "out").exists()


def test_a_stage_pickles_without_its_list(tmp_path: Path) -> None:
    stage = Exclude(["a", "b"])
    stage.setup("cpu")
    again = pickle.loads(pickle.dumps(stage))
    assert again == stage
    with pytest.raises(StageError, match="is not set up"):
        again.state  # noqa: B018


def test_a_long_list(source: str, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"id-{n}\n" for n in range(1_000_000)) + "k1\n")
    assert dropped(source, tmp_path / "out", Exclude(path)) == {"k1": "image_id is in long.txt, line 1000001"}

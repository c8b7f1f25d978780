"""Folders of images that are opened by their index: the same samples, without a listing where they are remote."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

import curator_dali as cd
from curator_dali.errors import SourceError
from curator_dali.sources import Source
from tests.helpers import load_photos, photo_samples, write_shards
from tests.sources.store_server import SimulatedStore

FOLDER = ".curator_dali_index"
COUNT = 25  # images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders with sidecars of some images, one without images, bad images, and files that are none."""
    root = tmp_path / "images"
    for number, (key, members) in enumerate(photo_samples(load_photos(), COUNT - 3)):
        folder = root / ("cats", "dogs/small", "über")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{key}.jpg").write_bytes(members["jpg"])
        if number % 2:
            (folder / f"{key}.TXT").write_bytes(members["txt"])
    (root / "cats" / "000000.JPEG").write_bytes(next(iter(root.glob("cats/*.jpg"))).read_bytes())
    (root / "cats" / "no.jpg").write_bytes(b"hello")
    (root / "cats" / "zero.png").write_bytes(b"")
    (root / "none" / "here").mkdir(parents=True)
    (root / "none" / "here" / "notes.md").write_bytes(b"-")
    return root


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings, but for that of the class folder without images."""
    found = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    return [text for text in found if "have no images" not in text]


def is_indexed(source: Source) -> bool:
    known = source.headers(np.arange(len(source)))["codec"] != 0
    return int(known.sum()) == len(source) - 2  # of bad images no header is known


def check_same(found: Source, expected: Source) -> None:
    """Check that two sources are the same in all that they tell."""
    assert len(found) == len(expected)
    assert found.fingerprint == expected.fingerprint
    assert (found.name, found.class_names, found.locations) == (expected.name, expected.class_names, expected.locations)
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(len(expected)), 2))
    assert found.read_ids(order).to_pylist() == expected.read_ids(order).to_pylist()
    for members in (False, True):
        one, other = found.read(order, members=members), expected.read(order, members=members)
        assert (one.errors, one.unread, one.shards) == (other.errors, other.unread, other.shards)
        assert [bytes(image) for image in one.images] == [bytes(image) for image in other.images]
        for item, wanted in zip(one.objects, other.objects, strict=True):
            assert (item.image_id, item.image_path) == (wanted.image_id, wanted.image_path)
            assert item.metadata == wanted.metadata
        if members:
            assert [dict(some) for some in one.members or ()] == [dict(some) for some in other.members or ()]


def test_the_same_samples_and_their_headers(images: Path) -> None:
    expected = cd.open_source(str(images))
    assert len(expected) == COUNT
    assert not is_indexed(expected)
    cd.prepare(str(images))
    found = cd.open_source(str(images))
    assert is_indexed(found)
    check_same(found, expected)
    again = pickle.loads(pickle.dumps(found))
    assert is_indexed(again)
    check_same(again, expected)
    assert is_indexed(cd.FolderSource(images))
    assert not is_indexed(cd.open_source(str(images), index="none"))
    order = np.arange(COUNT)[::-1]
    batch = found.read(order)
    assert found.image_sizes(order).tolist() == list(map(len, batch.images))
    headers = found.headers(order)
    good = np.flatnonzero(headers["codec"])
    sizes = [Image.open(io.BytesIO(bytes(batch.images[row]))).size for row in good]
    assert list(zip(headers["width"][good].tolist(), headers["height"][good].tolist(), strict=True)) == sizes
    learnt = headers[:1].copy()
    learnt["width"] = 7
    found.learn(order[:1], learnt)
    assert found.headers(order)["width"].tolist() == [7, *headers["width"][1:].tolist()]


def test_metadata_files_and_folders_that_are_no_classes(images: Path) -> None:
    (images / "cats" / "metadata.csv").write_text("file_name,breed\nno.jpg,none\n")
    expected = cd.open_source(str(images))
    cd.prepare(str(images))
    check_same(cd.open_source(str(images)), expected)
    plain = cd.open_source(str(images), label_from_folder=False, name="other")
    assert is_indexed(plain)
    check_same(plain, cd.open_source(str(images), label_from_folder=False, name="other", index="none"))


def test_images_that_are_new_changed_or_gone(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    cd.prepare(str(images))
    paths = sorted(images.rglob("*.jpg"))
    os.utime(paths[0], (1, 1))  # a copy
    shutil.copy(paths[5], paths[4])  # another image
    shutil.copy(paths[5], images / "dogs" / "new.jpg")
    (images / "dogs" / "new.txt").write_text("a new one")
    caplog.clear()
    found = cd.open_source(str(images))
    (warning,) = warnings_of(caplog)
    assert "2 of 26 images, such as 'cats/" in warning
    assert "`curator-dali prepare` brings it up to date" in warning
    check_same(found, cd.open_source(str(images), index="none"))
    unknown = np.flatnonzero(found.headers(np.arange(26))["codec"] == 0)
    ids = found.read_ids(unknown).to_pylist()
    changed = str(paths[4].relative_to(images))
    assert sorted(ids) == sorted(["cats/no", "cats/zero", "dogs/new", changed.removesuffix(".jpg")])
    assert cd.prepare(str(images)).indexed == 3  # also the one whose time is another
    caplog.clear()
    assert len(cd.open_source(str(images))) == 26
    assert warnings_of(caplog) == []
    paths[7].unlink()
    (images / "none" / "here" / "notes.md").unlink()  # is no image
    name = str(paths[7].relative_to(images))
    with pytest.raises(SourceError, match=rf"1 images of the index of .* are gone: '{name}'"):
        cd.open_source(str(images))
    cd.prepare(str(images))
    check_same(cd.open_source(str(images)), cd.open_source(str(images), index="none"))


def test_an_index_elsewhere_and_a_folder_that_moved(images: Path, tmp_path: Path) -> None:
    expected = cd.open_source(str(images)).fingerprint
    cd.prepare(str(images), tmp_path / "index")
    assert not (images / FOLDER).exists()
    assert is_indexed(cd.open_source(str(images), index=tmp_path / "index"))
    cd.prepare(str(images))
    images.rename(tmp_path / "moved")
    for index in ("cache", tmp_path / "index"):
        there = cd.open_source(str(tmp_path / "moved"), index=index)
        assert is_indexed(there)
        assert there.fingerprint == expected
    with pytest.raises(SourceError, match="holds no index of a data set"):
        cd.open_source(str(tmp_path / "moved"), index=tmp_path / "nowhere")


def test_states_go_on_with_and_without_it(images: Path) -> None:
    with cd.ImageLoader(str(images), batch_size=8, shuffle=1, on_error="skip", device="cpu") as loader:
        state = loader.state_dict()
        names = [item.image_id for batch in loader for item in batch.data]
    cd.prepare(str(images))
    with cd.ImageLoader(str(images), batch_size=8, shuffle=1, on_error="skip", device="cpu") as loader:
        loader.load_state_dict(state)
        assert names == [item.image_id for batch in loader for item in batch.data]


def test_damage(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = cd.open_source(str(images))
    cd.prepare(str(images))
    path = images / FOLDER / "files.arrow"
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        caplog.clear()
        assert cd.open_source(str(images)).fingerprint == expected.fingerprint
        assert ["cannot be read" in text for text in warnings_of(caplog)] == [True]
    for _ in range(60):
        damaged = bytearray(data)
        for at in generator.integers(0, len(data), 3):
            damaged[at] ^= int(generator.integers(1, 255))
        path.write_bytes(damaged)
        with suppress(SourceError):  # names are others, and these images are gone
            check_same(cd.open_source(str(images)), expected)
    assert cd.prepare(str(images)).complete
    assert is_indexed(cd.open_source(str(images)))


def test_tars_where_there_were_images(images: Path) -> None:
    cd.prepare(str(images))
    index = images / FOLDER / "files.arrow"
    kept = index.read_bytes()
    shutil.rmtree(images)
    write_shards(images, photo_samples(load_photos(), 10), 5)
    index.parent.mkdir()
    index.write_bytes(kept)
    assert len(cd.open_source(str(images))) == 10
    assert cd.prepare(str(images)).samples == 10
    assert len(cd.open_source(str(images))) == 10


def test_a_remote_folder_is_not_listed(images: Path, tmp_path: Path) -> None:
    with SimulatedStore(tmp_path, delay=0, rate=0) as store:
        url = f"{store.url}/images/"
        expected = cd.open_source(url, index="none")
        made = cd.prepare(url, tmp_path / "index")
        assert (made.samples, made.refused) == (COUNT, {"not an image": 1, "the image has no bytes": 1})
        store.reset()
        found = cd.open_source(url, index=tmp_path / "index")
        assert store.total().requests == 0
        assert is_indexed(found)
        check_same(found, expected)
        check_same(cd.FolderSource(url, index=tmp_path / "index"), expected)
        shutil.copytree(tmp_path / "index", images / FOLDER)
        store.reset()
        found = cd.open_source(url)
        assert store.counts().keys() == {f"/images/{FOLDER}/files.arrow"}
        assert store.total().requests == 1
        check_same(found, expected)


def test_an_index_that_was_made_of_a_copy(images: Path, memory: fsspec.AbstractFileSystem) -> None:
    cd.prepare(str(images))
    for path in images.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/bucket/{path.relative_to(images)}", path.read_bytes())
    expected = cd.open_source("memory://bucket", index="none")
    found = cd.open_source("memory://bucket")  # is listed, as the store may tell hashes that the copy had not
    assert is_indexed(found)
    check_same(found, expected)
    memory.pipe_file("/bucket/cats/zero.png", b"more")
    memory.pipe_file("/bucket/cats/later.png", b"more")
    assert len(cd.open_source("memory://bucket")) == COUNT + 1
    assert cd.prepare("memory://bucket").samples == COUNT + 1
    memory.pipe_file("/bucket/cats/latest.png", b"more")
    source = cd.open_source("memory://bucket")
    assert len(source) == COUNT + 1  # is not listed
    assert source.fingerprint != expected.fingerprint
    memory.pipe_file("/bucket/cats/later.png", b"les")
    errors = source.read(np.arange(COUNT + 1)).errors.values()
    assert [error for error in errors if "is older: `curator-dali prepare` brings it up to date" in error]
    longer = max(images.rglob("*.jpg"), key=lambda path: path.stat().st_size).read_bytes() + b"\0"
    memory.pipe_file("/bucket/cats/000000.JPEG", longer)  # a store may send more than it lists
    batch = source.read(np.arange(2))
    assert [batch.objects[row].image_path[-11:] for row in range(2)] == ["000000.JPEG", "/000000.jpg"]
    assert bytes(batch.images[0]) == longer
    assert (batch.headers["codec"] != 0).tolist() == [False, True]
    assert cd.prepare("memory://bucket").indexed == 3
    check_same(cd.open_source("memory://bucket/"), cd.open_source("memory://bucket/", index="none"))

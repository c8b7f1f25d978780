"""Trees of image files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from curator_dali.errors import SourceError
from curator_dali.sources import HEADER_DTYPE, FolderSource


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "dogs/b.JPG": b"dog b",
        "dogs/b.json": b'{"caption": "a dog", "n": 1}',
        "dogs/deep/er/c.png": b"dog c",
        "cats/a.jpg": b"cat a",
        "cats/a.txt": b"a cat\n",
        "cats/a.cls": b"9",
        "cats/a.webp": b"cat a again",
        "cats/notes.md": b"-",
        "cats/.hidden.jpg": b"-",
        ".cache/x.jpg": b"-",
    }
    for name, data in files.items():
        path = tmp_path / "animals" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "animals"


def read_all(source: FolderSource) -> dict[str, tuple[str, bytes]]:
    batch = source.read(np.arange(len(source)))
    assert batch.errors == {}
    return {obj.image_path: (obj.image_id, bytes(data)) for obj, data in zip(batch.objects, batch.images, strict=True)}


def test_files_keys_and_order(tree: Path) -> None:
    source = FolderSource(str(tree))
    assert source.name == "animals"
    assert list(read_all(source).items()) == [
        (f"{tree}/cats/a.jpg", ("cats/a.jpg", b"cat a")),  # two files of one stem: the extension stays in the id
        (f"{tree}/cats/a.webp", ("cats/a.webp", b"cat a again")),
        (f"{tree}/dogs/b.JPG", ("dogs/b", b"dog b")),
        (f"{tree}/dogs/deep/er/c.png", ("dogs/deep/er/c", b"dog c")),
    ]
    assert all(image.flags.writeable for image in source.read(np.arange(4)).images)


def test_labels_and_sidecars(tree: Path) -> None:
    source = FolderSource(str(tree))
    assert source.class_names == ["cats", "dogs"]
    a, again, b, c = (obj.metadata for obj in source.read(np.arange(4)).objects)
    assert a == again == {"caption": "a cat", "label": 9, "label_name": "cats"}  # .cls says more than the folder
    assert b == {"caption": "a dog", "n": 1, "label": 1, "label_name": "dogs"}
    assert c == {"label": 1, "label_name": "dogs"}
    assert FolderSource(str(tree), label_from_folder=False).read(np.array([3])).objects[0].metadata == {}
    (tree / "top.jpg").write_bytes(b"x")  # now not every image lies in a folder
    assert FolderSource(str(tree)).class_names == []


def test_metadata_is_read_late_and_a_lost_sidecar_costs_nothing(tree: Path) -> None:
    batch = FolderSource(str(tree)).read(np.array([2]))
    (tree / "dogs" / "b.json").unlink()
    assert "FileNotFoundError" in batch.objects[0].metadata["metadata_error"]
    assert bytes(batch.images[0]) == b"dog b"


def test_files_that_cannot_be_read_are_rows_with_errors(tree: Path) -> None:
    source = FolderSource(str(tree))
    (tree / "cats" / "a.jpg").unlink()
    (tree / "dogs" / "b.JPG").write_bytes(b"")
    batch = source.read(np.arange(4), members=True)
    assert "FileNotFoundError" in batch.errors[0]
    assert "no bytes" in batch.errors[2]
    assert sorted(batch.errors) == [0, 2]
    assert batch.objects[0].image_id == "cats/a.jpg"
    assert bytes(batch.images[3]) == b"dog c"


def test_members(tree: Path) -> None:
    batch = FolderSource(str(tree)).read(np.arange(4), members=True)
    assert batch.members is not None
    assert [{ext: bytes(data) for ext, data in m.items()} for m in batch.members] == [
        {"jpg": b"cat a", "txt": b"a cat", "cls": b"9", "json": b'{"label_name": "cats"}'},
        {"webp": b"cat a again", "txt": b"a cat", "cls": b"9", "json": b'{"label_name": "cats"}'},
        {"JPG": b"dog b", "txt": b"a dog", "json": b'{"n": 1, "label_name": "dogs"}', "cls": b"1"},
        {"png": b"dog c", "json": b'{"label_name": "dogs"}', "cls": b"1"},
    ]
    plain = FolderSource(str(tree), label_from_folder=False).read(np.arange(4), members=True)
    assert plain.members is not None
    assert [{ext: bytes(data) for ext, data in m.items()} for m in plain.members] == [
        {"jpg": b"cat a", "txt": b"a cat\n", "cls": b"9"},  # sidecars that say everything keep their bytes
        {"webp": b"cat a again", "txt": b"a cat\n", "cls": b"9"},
        {"JPG": b"dog b", "json": b'{"caption": "a dog", "n": 1}'},
        {"png": b"dog c"},
    ]


def test_links_are_followed_once(tree: Path, tmp_path: Path) -> None:
    (tree / "dogs" / "loop").symlink_to(tree)
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.jpg").write_bytes(b"z")
    (tree / "cats" / "dangling.jpg").symlink_to("nowhere")
    source = FolderSource(str(tree))
    batch = source.read(np.arange(len(source)))
    assert [obj.image_id for obj in batch.objects] == [
        "cats/a.jpg",
        "cats/a.webp",
        "cats/dangling",
        "dogs/b",
        "dogs/deep/er/c",
        "linked/z",
    ]
    assert "FileNotFoundError" in batch.errors[2]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as file:
        file.write(b"odd")
    batch = FolderSource(str(tmp_path)).read(np.array([0]))
    assert bytes(batch.images[0]) == b"odd"
    assert batch.objects[0].image_id == "\\xff"


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        FolderSource(str(tmp_path / "nowhere"))


def test_pickle_fingerprint_and_headers(tree: Path) -> None:
    source = FolderSource(str(tree))
    copy = pickle.loads(pickle.dumps(source))
    assert read_all(copy) == read_all(source)
    assert copy.fingerprint == source.fingerprint
    (tree / "dogs" / "new.jpg").write_bytes(b"")
    assert FolderSource(str(tree)).fingerprint != source.fingerprint
    headers = np.zeros(2, HEADER_DTYPE)
    headers["codec"] = [1, 0]
    source.learn(np.array([3, 0]), headers)
    assert source.headers(np.arange(4))["codec"].tolist() == [0, 0, 0, 1]

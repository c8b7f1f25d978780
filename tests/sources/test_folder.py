"""Trees of image files."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from curator_dali.errors import SourceError
from curator_dali.sources import HEADER_DTYPE, FolderSource
from curator_dali.sources.row_groups import is_unread


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


def make(root: Path, names: list[str], data: bytes = b"image") -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(data)
    return root


def test_a_class_without_images_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, ["a/1.jpg", "b/README", "c/2.jpg", "_manifest/run.json", ".cache/x.jpg"])
    source = FolderSource(str(tmp_path))
    assert source.class_names == ["a", "b", "c"]
    assert [item.metadata["label"] for item in source.read(np.arange(2)).objects] == [0, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 3 class folders in {tmp_path} have no images: 'b'. Each keeps its label; remove these folders if they "
        "are no classes, or give label_from_folder=False"
    ]


def test_images_beside_class_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, ["a/1.jpg", "b/2.jpg", "top.jpg"])
    assert FolderSource(str(tmp_path)).class_names == []
    assert "1 of 3 images lie beside the folders 'a', 'b', in no class. Move" in caplog.text
    caplog.clear()
    FolderSource(str(tmp_path), label_from_folder=False)
    (tmp_path / "flat").mkdir()
    FolderSource(str(make(tmp_path / "flat", ["1.jpg", "2.jpg"])))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("folders", "warned"),
    [
        (["train", "val"], True),
        (["Test", "dev"], True),
        (["train"], True),
        (["train", "extra"], True),
        (["test", "cat"], False),
        (["cat"], False),
    ],
)
def test_class_folders_named_like_splits(
    tmp_path: Path, folders: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, [f"{folder}/cat/1.jpg" for folder in folders])
    FolderSource(str(tmp_path))
    assert ("named like splits" in caplog.text) == warned
    assert not warned or f"open {tmp_path}/{sorted(folders)[0 if 'extra' not in folders else 1]} instead" in caplog.text
    caplog.clear()
    FolderSource(str(tmp_path), label_from_folder=False)
    assert caplog.records == []


@pytest.mark.parametrize("by_name", [False, True])
def test_the_case_of_a_sidecars_extension_does_not_matter(tmp_path: Path, by_name: bool) -> None:
    for name, data in {
        "IMG_1.JPG": b"1",
        "IMG_1.TXT": b"upper",
        "img_2.jpg": b"2",
        "img_2.Json": b'{"n": 2}',
        "img_2.CLS": b"5",
        "img_3.jpg": b"3",
        "img_3.txt": b"lower goes first",
        "img_3.TXT": b"-",
        "IMG_4.jpg": b"4",
        "img_4.txt": b"another stem",
    }.items():
        (tmp_path / name).write_bytes(data)
    names = ["IMG_1.JPG", "IMG_4.jpg", "img_2.jpg", "img_3.jpg"]
    source = FolderSource(str(tmp_path), files=names if by_name else None)
    batch = source.read(np.arange(4), members=True)
    assert [item.metadata for item in batch.objects] == [
        {"caption": "upper"},
        {},
        {"n": 2, "label": 5},
        {"caption": "lower goes first"},
    ]
    assert [sorted(members) for members in batch.members or []] == [
        ["JPG", "txt"],
        ["jpg"],
        ["cls", "jpg", "json"],
        ["jpg", "txt"],
    ]


def test_files_that_are_not_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "x", ["1.jpg", "1.txt", "README", "LICENSE.txt", "a.MD", "Thumbs.db", "0_stats.json", ".DS_Store"])
    make(tmp_path / "x", ["00000/1.jpg", "00000.parquet"])
    FolderSource(str(tmp_path / "x"), label_from_folder=False)
    assert caplog.records == []
    make(tmp_path / "x", ["a.mp4", "b.mp4", "c.MP4", "d", "jpg", "2.txt", "other.parquet"])
    make(tmp_path / "x", ["e/1.xyz", "e/2.xyz", "e/3.xyz"])
    FolderSource(str(tmp_path / "x"), label_from_folder=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"passing over 10 files of {tmp_path / 'x'}: 3 .mp4, 3 .xyz, 2 without an ending, 1 .txt, 1 .parquet"
    ]


def test_outputs_of_curations_below_are_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, ["a/1.jpg", "out/_manifest/run.json", "out/images/2.jpg", "a/out/_manifest/x", "a/out/3.jpg"])
    with caplog.at_level(logging.INFO):
        source = FolderSource(str(tmp_path))
    assert [item.image_id for item in source.read(np.arange(len(source))).objects] == ["a/1"]
    assert source.class_names == ["a"]
    assert f"{tmp_path}/a/out/ is the output of a curation" in caplog.text
    assert len(FolderSource(str(tmp_path / "out"))) == 1  # the folder itself may be one


def test_files_without_an_ending_have_keys_and_members(tmp_path: Path) -> None:
    make(tmp_path, ["a.b/k", "x.jpg_large"], b"\x89PNG\r\n")
    (tmp_path / "a.b" / "k.txt").write_text("a caption")
    batch = FolderSource(str(tmp_path), files=["./a.b/k", "x.jpg_large"]).read(np.arange(2), members=True)
    assert [item.image_id for item in batch.objects] == ["a.b/k", "x"]
    assert batch.objects[0].metadata == {"caption": "a caption"}
    assert [list(members) for members in batch.members or []] == [["png", "txt"], ["png"]]


def test_fingerprints_are_of_what_the_files_hold(tmp_path: Path) -> None:
    make(tmp_path / "x", ["a/1.jpg", "a/1.txt", "b/2.jpg"])
    source = FolderSource(str(tmp_path / "x"))
    shutil.copytree(tmp_path / "x", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "a" / "1.jpg", (1, 1))
    assert FolderSource(str(tmp_path / "copy")).fingerprint == source.fingerprint
    prints = {source.fingerprint}
    for name, data in {"a/1.jpg": b"longer than before", "a/1.txt": b"a caption", "c/README": b""}.items():
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_bytes(data)
        prints.add(FolderSource(str(tmp_path / "x")).fingerprint)
    assert len(prints) == 4  # also the empty class


def test_what_could_not_be_read_now_is_told_from_what_is_bad(tmp_path: Path) -> None:
    make(tmp_path, ["0.jpg", "1.jpg", "1.txt", "2.jpg", "3.jpg", "5.jpg"])
    (tmp_path / "4.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "6.jpg")
    source = FolderSource(str(tmp_path))
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "1.txt").unlink()
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "3.jpg").mkdir()
    batch = source.read(np.arange(7))
    assert (sorted(batch.errors), batch.unread) == ([0, 2, 3, 4, 6], {0})
    whole = source.read(np.arange(7), members=True)  # an output would lose the caption
    assert (sorted(whole.errors), whole.unread) == ([0, 1, 2, 3, 4, 6], {0, 1})
    named = FolderSource(str(tmp_path), files=["never.jpg", "5.jpg"])
    (tmp_path / "5.jpg").unlink()
    batch = named.read(np.arange(2))
    assert (sorted(batch.errors), batch.unread) == ([0, 1], {1})


@pytest.mark.parametrize(
    ("error", "unread"),
    [
        (OSError(errno.EIO, ""), True),
        (OSError(errno.ESTALE, ""), True),
        (OSError(errno.ETIMEDOUT, ""), True),
        (OSError(errno.ENETDOWN, ""), True),
        (OSError(errno.EMFILE, ""), True),
        (OSError("became shorter"), True),
        (OSError(errno.ENOENT, ""), True),
        (OSError(errno.EACCES, ""), False),
        (OSError(errno.EISDIR, ""), False),
        (OSError(errno.ELOOP, ""), False),
    ],
)
def test_which_failures_say_nothing_of_a_file(error: OSError, unread: bool) -> None:
    assert is_unread(error, "/a.jpg") == unread
    assert is_unread(error, "s3://a.jpg")
    assert is_unread(FileNotFoundError(), "https://a.jpg", listed=False) is False


def test_ids_are_unique(tmp_path: Path) -> None:
    make(tmp_path, ["a.jpg", "a.jpg.jpg", "a.jpg.jpg.jpg", "a.png", "b.jpg", "c.jpg.jpg"])
    source = FolderSource(str(tmp_path))
    expected = ["a.jpg", "a.jpg.jpg", "a.jpg.jpg.jpg", "a.png", "b", "c.jpg"]
    assert [item.image_id for item in source.read(np.arange(len(source))).objects] == expected
    named = FolderSource(str(tmp_path), files=["a.jpg.jpg", "a.jpg"])
    assert [item.image_id for item in named.read(np.arange(2)).objects] == ["a.jpg.jpg", "a"]


def test_names_that_only_begin_like_a_readme_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, ["1.jpg", "license_plate_1.cr2", "license_1.txt", "readme2.xyz", "Readme.txt", "LICENSE"])
    FolderSource(str(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"passing over 3 files of {tmp_path}: 1 .txt, 1 .cr2, 1 .xyz"
    ]


@pytest.mark.parametrize("by_name", [False, True])
def test_sidecars_that_do_not_count_beside_others_are_counted(
    tmp_path: Path, by_name: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, ["a.jpg", "b.jpg"])
    for name in ("a.TXT", "a.txt", "b.TXT", "b.Txt"):
        (tmp_path / name).write_text(name)
    source = FolderSource(str(tmp_path), files=["a.jpg", "b.jpg"] if by_name else None)
    captions = [item.metadata["caption"] for item in source.read(np.arange(2)).objects]
    assert captions == ["a.txt", "b.TXT"]
    assert [record.getMessage() for record in caplog.records] == [
        "passing over 2 sidecars that differ from another in nothing but the case of the extension, such as 'a.TXT': "
        "lower case goes first, then the first by name"
    ]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "a.json"):
        (tmp_path / name).write_bytes(b"whole")
        if name != "a.jpg":
            os.truncate(tmp_path / name, 5 << 40)  # a hole, which takes no space on the disk
    for members in (False, True):
        batch = FolderSource(str(tmp_path)).read(np.arange(2), members=members)
        assert list(batch.errors) == [1]
        assert "5,497,558,138,880 bytes are over the limit of 1,073,741,824" in batch.errors[1]
        assert "are over the limit of" in batch.objects[0].metadata["metadata_error"]
        assert batch.unread == set()

"""Warnings about tars: what they tell, that each opening tells them, and that they are few."""

from __future__ import annotations

import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator_dali.io.stats import Stat
from curator_dali.sources import TarSource
from curator_dali.sources.tar_index import index_path, load_index, peek_index, save_index
from tests.helpers import write_tar


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "curator_dali.sources")


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What was logged at a level since the last call, without the folder of the shards."""
    found = [record.getMessage().rpartition("/")[2] for record in caplog.records if record.levelno == level]
    caplog.clear()
    return found


def tar(path: Path, *names: str) -> str:
    return str(write_tar(path, [(name, name.encode()) for name in names]))


def test_each_opening_tells_the_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = write_tar(tmp_path / "1.tar", [("a.jpg", b"1"), ("README", b"x")])
    whole = write_tar(tmp_path / "2.tar", [("b.jpg", b"1")])
    one.write_bytes(one.read_bytes() + whole.read_bytes() + b"rubbish")
    expected = [
        "1.tar: samples behind an end marker within the tar: 1 (they are read; tars were joined, or a download has a "
        "hole that took others); 7 bytes behind its end marker are no members of a tar; "
        "members without an extension are passed over: 1, the first: 'README'"
    ]
    for keep in ("cache", "cache", "beside", "beside", "none", "none"):
        source = TarSource([str(one), str(whole)], index=keep)  # type: ignore[arg-type]
        assert [bytes(image) for image in source.read(np.arange(3)).images] == [b"1"] * 3
        assert lines(caplog) == expected


def test_links_and_pipes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as file:
        for name, kind in (("a.jpg", tarfile.REGTYPE), ("b.jpg", tarfile.SYMTYPE), ("c", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            file.addfile(member)
    assert len(TarSource(str(tmp_path / "links.tar"))) == 1
    assert lines(caplog) == ["links.tar: links and special members that are passed over: 2"]


def test_a_peek_is_one_small_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = load_index(index_path(url := tar(tmp_path / "a.tar", "a.jpg"), "cache"), TarSource(url)._shards.stats[0])
    assert index is not None
    reads: list[int] = []
    real = os.fdopen

    class Counted:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.file = real(*args, **options)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def fileno(self) -> int:
            number: int = self.file.fileno()
            return number

        def read(self, size: int) -> bytes:
            reads.append(size)
            data: bytes = self.file.read(size)
            return data

    monkeypatch.setattr(os, "fdopen", Counted)
    path, stat = tmp_path / "x.cdindex", Stat(10, -5)
    for warnings, expected in (((), 1), (("short",), 1), (("é" * 3000, "x"), 2)):
        summary = index.summary._replace(warnings=warnings)
        save_index(path, stat, type(index)(index.table, index.names, index.first, index.members, summary))
        reads.clear()
        assert peek_index(path, stat) == summary
        assert len(reads) == expected
        assert reads[0] <= 4096
        loaded = load_index(path, stat)
        assert loaded is not None
        assert loaded.summary == summary


def test_many_shards_with_warnings_do_not_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = [tar(tmp_path / f"{n:02d}.tar", "a.jpg", f"README{n}") for n in range(15)]
    for _ in range(2):
        TarSource(urls)
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
        assert [url for url, line in zip(urls[10:], told, strict=True) if line.startswith(url)] == urls[10:]
        shown = lines(caplog)
        assert [line[:2] for line in shown[:10]] == [f"{n:02d}" for n in range(10)]
        assert shown[10:] == ["5 more shards have warnings: log level DEBUG shows them"]


PLURAL = {
    "numbers": ["scan.0001.jpg", "scan.0002.jpg", "scan.0003.jpg"],
    "times": ["IMG 12.30.15.jpg", "IMG 12.31.02.jpg", "IMG 13.01.01.jpg"],
    "frames of two videos": ["v.01.jpg", "v.02.jpg", "w.01.jpg", "w.02.jpg"],
    "words": ["a.draft.jpg", "a.final.jpg", "b.other.jpg", "b.last.jpg"],
    "one sample proves nothing": ["a.draft.jpg", "a.final.jpg"],
    "two formats, once": ["a.jpg", "a.png", "b.jpg"],
}


@pytest.mark.parametrize("names", PLURAL.values(), ids=PLURAL)
def test_images_whose_names_share_what_stands_before_the_first_dot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str]
) -> None:
    source = TarSource(tar(tmp_path / "a.tar", *names))
    told = lines(caplog)
    assert len(told) == 1
    further = len(names) - len(source)
    assert f"image members that are not the image of their sample: {further}, such as '{names[1]}'" in told[0]
    assert f"whose image is '{names[0]}'" in told[0]
    assert "first dot" in told[0]


LEGITIMATE = {
    "stereo": ["1.left.jpg", "1.right.jpg", "1.json", "2.left.jpg", "2.right.jpg"],
    "masks": ["1.jpg", "1.mask.png", "2.png", "2.MASK.png"],
    "depth": ["1.jpg", "1.png", "2.jpg", "2.png", "3.jpg", "3.png"],
}


@pytest.mark.parametrize("names", LEGITIMATE.values(), ids=LEGITIMATE)
def test_stereo_pairs_and_masks_are_told_once_and_are_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str]
) -> None:
    urls = [tar(tmp_path / f"{n}.tar", *names) for n in range(3)]
    for _ in range(2):
        source = TarSource(urls)
        batch = source.read(np.array([0]), members=True)
        assert batch.members is not None
        assert len(batch.members[0]) >= 2
        told = lines(caplog, logging.INFO)
        assert len(told) == 1
        assert "image members that are not the image of their sample" in told[0]
        assert "(such shards: 3 of 3)" in told[0]
        assert lines(caplog) == []


def test_what_is_not_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [".DS_Store", "._a.jpg", "__MACOSX/b", "__MACOSX/._a.jpg", ".git/HEAD", "./d/.hidden", "a.jpg", "a.npy"]
    path = Path(tar(tmp_path / "a.tar", *names))
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    assert len(TarSource(str(path))) == 1
    assert lines(caplog) == lines(caplog, logging.INFO) == []
    TarSource(tar(tmp_path / "b.tar", "./README", "a/LICENSE", "a.jpg"))
    assert lines(caplog) == ["README'"]  # of "members without an extension are passed over: 2, the first: './README'"


def test_long_and_odd_names_in_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    TarSource(str(write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("line\nbreak" * 99, b"x")], format=2)))
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "\n" not in told
    assert len(told) < 500

"""Making the index of a folder of images: by threads, processes and ranks; taken up again; brought up to date."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import curator_dali as cd
from curator_dali.cli import main
from curator_dali.errors import SourceError
from curator_dali.preparation import images as module
from tests.helpers import encode

FOLDER = ".curator_dali_index"
COUNT = 60


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make groups of five, so that few images are many groups."""
    monkeypatch.setattr(module, "_FEWEST_IMAGES", 5)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number in range(COUNT):
        path = root / f"class{number % 3}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((8, 8 + number, 3), number, np.uint8)))
    (root / "class1" / "001.json").write_text('{"a": 1}')
    (root / "class2" / "bad.png").write_bytes(b"hello")
    return root


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_file(folder / "files.arrow").read_all().to_pylist()
    return rows


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_however_it_is_made_it_is_the_same(images: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    made = cd.prepare(str(images), tmp_path / "threads", threads=3, progress=lambda *counts: seen.append(counts))
    assert (made.files, made.samples, made.indexed, made.complete, made.headers) == (61, 61, 61, True, True)
    assert made.refused == {"not an image": 1}
    assert made.nbytes == sum(path.stat().st_size for path in images.rglob("*.*g"))
    assert (sum(files for files, _, _ in seen), {total for _, _, total in seen}) == (61, {61})
    cd.prepare(str(images), tmp_path / "processes", processes=2)
    ranks = [cd.prepare(str(images), tmp_path / "ranks", shard=cd.Shard(rank, 3)) for rank in (2, 0, 1)]
    assert [rank.complete for rank in ranks] == [False, False, True]
    assert sum(rank.indexed for rank in ranks) == 61
    rows = rows_of(tmp_path / "threads")
    assert [row["path"] for row in rows] == sorted(str(path.relative_to(images)) for path in images.rglob("*.*"))
    for row in rows:
        assert row["size"] == (images / row["path"]).stat().st_size
        is_known = row["path"].endswith("jpg")
        assert row["width"] == (8 + int(row["path"][-7:-4]) if is_known else None)
        assert row["codec"] == ("jpeg" if is_known else None)
        assert (row["problem"] is not None) == row["path"].endswith("bad.png")
    for name in ("processes", "ranks"):
        assert rows_of(tmp_path / name) == rows
        assert names_of(tmp_path / name) == ["files.arrow"]  # no records of groups


def test_only_what_changed_is_indexed(images: Path) -> None:
    cd.prepare(str(images))
    stamp = (images / FOLDER / "files.arrow").stat().st_mtime_ns
    assert cd.prepare(str(images)).indexed == 0
    assert (images / FOLDER / "files.arrow").stat().st_mtime_ns == stamp
    (images / "class0" / "003.jpg").unlink()
    shutil.copy(images / "class0" / "006.jpg", images / "class1" / "004.jpg")
    shutil.copy(images / "class0" / "006.jpg", images / "class1" / "a.jpg")
    made = cd.prepare(str(images))
    assert (made.samples, made.indexed) == (61, 2)
    widths = {row["path"]: row["width"] for row in rows_of(images / FOLDER)}
    assert [widths[f"class{name}.jpg"] for name in ("0/006", "1/004", "1/a", "1/007")] == [14, 14, 14, 15]
    assert "class0/003.jpg" not in widths
    (images / "class1" / "001.json").unlink()  # only the listing is another
    assert cd.prepare(str(images)).indexed == 0
    assert "class1/001.json" not in {row["path"] for row in rows_of(images / FOLDER)}
    (images / "empty").mkdir()
    assert cd.prepare(str(images)).indexed == 0
    assert cd.open_source(str(images)).class_names == ["class0", "class1", "class2", "empty"]


def test_without_headers_and_then_with_them(images: Path) -> None:
    made = cd.prepare(str(images), headers=False)
    assert (made.samples, made.indexed, made.headers) == (61, 0, False)
    source = cd.open_source(str(images))
    assert not source.headers(np.arange(61))["codec"].any()
    assert cd.prepare(str(images)).indexed == 61
    assert cd.prepare(str(images), headers=False).headers  # those that are known stay
    assert cd.open_source(str(images)).headers(np.arange(60))["codec"].all()


SCRIPT = """
import sys, time
import curator_dali as cd
from curator_dali.preparation import images

images._FEWEST_IMAGES = 5
read = images.read_image_headers
def slow(*args, **kwargs):
    time.sleep(0.15)
    return read(*args, **kwargs)
images.read_image_headers = slow
cd.prepare(sys.argv[1], threads=1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_is_taken_up_again(images: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(images)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((images / FOLDER).glob("group-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number
    done = len(list((images / FOLDER).glob("group-*")))
    assert 3 <= done < 12
    assert len(cd.open_source(str(images))) == 61  # there is no index yet
    assert cd.prepare(str(images)).indexed == 61 - 5 * done
    assert names_of(images / FOLDER) == ["files.arrow"]
    assert sum(row["width"] is not None for row in rows_of(images / FOLDER)) == COUNT


def test_what_cannot_be_read(images: Path) -> None:
    (images / "class0" / "link.jpg").symlink_to(images / "nowhere.jpg")  # an image that never could be read
    made = cd.prepare(str(images))
    assert sum(made.refused.values()) == 2
    source = cd.open_source(str(images))
    assert source.fingerprint == cd.open_source(str(images), index="none").fingerprint
    assert cd.prepare(str(images)).indexed == 0


def test_what_is_refused(images: Path) -> None:
    refusal = "an index is made of tars, Parquet files or one folder of images, and .* holds"
    for spec, kind in (
        (f"{images}/*/*.jpg", "image files"),
        (f"{images}/class?", "several folders of images"),
        ([f"{images}/class0", f"{images}/class1"], "several folders of images"),
    ):
        with pytest.raises(SourceError, match=f"{refusal} {kind}: give the folder that holds them"):
            cd.prepare(spec)
    with pytest.raises(SourceError, match="an index is made of tars, Parquet files or one folder of images"):
        cd.prepare(cd.open_source(str(images)))
    shutil.copy(images / "class0" / "000.jpg", images / os.fsdecode(b"\xff.jpg"))
    with pytest.raises(SourceError, match=r"xff.jpg' is no UTF-8, as names in an index are: rename the file"):
        cd.prepare(str(images))


def test_the_command(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(images), "--processes", "2"]) == 0
    text = capsys.readouterr().out
    assert "61 samples in 61 files" in text
    assert "images refused: 1 (not an image: 1)" in text
    assert main(["info", str(images)]) == 0
    assert "60" in capsys.readouterr().out

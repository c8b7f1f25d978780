"""What is on stderr of a process that decodes damaged images."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests import formats

SCRIPT = """if True:
    import ctypes, os, sys
    import curator_dali as cd
    libc = ctypes.CDLL(None)
    with cd.ImageLoader(sys.argv[1], device="cpu") as loader:
        print(sum(len(batch) for batch in loader), len(loader.errors))
    libc.perror(b"another library")
    print("a line of Python", file=sys.stderr, flush=True)
    if os.fork() == 0:
        libc.perror(b"a child")
        os._exit(0)
    try:  # a process that waits for all its children knows all of them
        while os.wait():
            pass
    except ChildProcessError:
        pass
    libc.abort()
"""


@pytest.fixture
def damaged(tmp_path: Path, photos: dict[str, NDArray[np.uint8]]) -> Path:
    """A folder of images over which each of the decoders' libraries complains, and of a whole one."""
    files = formats.good_files(Image.fromarray(photos["chelsea"]))
    jpeg, png, bmp, tiff = (
        files[next(name for name in files if kind in name)] for kind in ("jpeg 4:2:0", "png", "bmp", "tiff")
    )
    images = {
        "whole.jpg": jpeg,
        "extraneous.jpg": jpeg[:-2] + b"\0\1\2\3" * 4 + jpeg[-2:],
        "marker.jpg": jpeg[:2] + b"\0\0" + jpeg[2:],
        "scan.jpg": jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 4) + jpeg[-2:],
        "crc.png": png[:16] + b"\7" + png[17:],
        "data.png": png[: len(png) // 2] + b"\7\7\7\7" + png[len(png) // 2 + 4 :],
        "cut.bmp": bmp[: len(bmp) // 2],
        "data.tif": tiff[: len(tiff) // 2] + b"\7\7\7\7" + tiff[len(tiff) // 2 + 4 :],
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def run(folder: Path, **variables: str) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    return done.stdout, done.stderr.splitlines()


def test_decoders_say_nothing_and_everyone_else_is_heard(damaged: Path) -> None:
    _, lines = run(damaged)
    assert sorted(line.partition(":")[0] for line in lines) == ["a child", "a line of Python", "another library"]


def test_decoders_lines_can_be_asked_for(damaged: Path) -> None:
    _, lines = run(damaged, CURATOR_DALI_DECODER_LINES="1")
    for part in ("Corrupt JPEG data", "libpng error", "[ERROR]", "another library"):
        assert any(part in line for line in lines), lines


def test_without_grep_everyone_is_heard(damaged: Path, tmp_path: Path) -> None:
    _, lines = run(damaged, PATH=str(tmp_path))
    for part in ("Corrupt JPEG data", "another library", "a child", "a line of Python"):
        assert any(line.startswith(part) for line in lines), lines
    assert not any("not found" in line for line in lines)

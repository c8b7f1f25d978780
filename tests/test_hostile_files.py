"""Pipes, devices, folders and endless files where the package keeps its own, and documents made to overflow."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curator_dali as cd
from curator_dali.curation.config import ConfigError, read_config
from curator_dali.io.files import MAX_DEPTH, open_regular, parse_json, read_regular, remove_leftovers
from curator_dali.outputs import Manifest
from curator_dali.sources import FolderSource, ParquetSource, TarSource
from curator_dali.stages import Deduplicate
from tests import helpers
from tests.curation.helpers import read_members

pytestmark = pytest.mark.timeout(60)
PHOTO = helpers.encode(np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8))
DEEP = 20_000


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "huge": make_sparse,
}


@pytest.fixture(params=KINDS)
def replace(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts something in the place of a file that nobody can read to its end."""

    def function(path: Path) -> None:
        path.unlink(missing_ok=True)
        KINDS[request.param](path)

    return function


def test_regular_files_and_others(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes are over the limit of 4"):
        read_regular(path, 4)
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 9) == b"12345"
    replace(path)
    with pytest.raises(OSError, match=r"limit|regular|directory"):
        open_regular(path, 1 << 30)
    with pytest.raises(FileNotFoundError):
        open_regular("a\0b")


def test_a_pipe_named_like_a_leftover_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f".a.host.{'0' * 16}.partial")
    assert remove_leftovers(str(tmp_path)) == []


@pytest.mark.parametrize("keep", ["beside", "cache"])
def test_kept_indexes_and_headers_of_tars(
    tmp_path: Path, replace: Callable[[Path], None], keep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(tmp_path / "cache"))
    tar = helpers.write_tar(tmp_path / "a.tar", [("a.jpg", PHOTO), ("b.jpg", PHOTO)])
    for ending in ("cdindex", "headers"):
        with cd.ImageLoader(TarSource(str(tar), index=keep), device="cpu") as loader:
            assert sum(map(len, loader)) == 2
        (kept,) = tmp_path.rglob(f"*.{ending}")
        replace(kept)
        source = TarSource(str(tar), index=keep)
        with cd.ImageLoader(source, device="cpu") as loader:
            assert sum(map(len, loader)) == 2
        source.close()
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs") / "out"
    cd.curate([PHOTO, PHOTO, b"bad"], out, stages=[Deduplicate(near=2)], device="cpu", html=False)
    cd.write_index(out)
    return out


@pytest.mark.parametrize(
    "name", ["_manifest/run.json", "_manifest/parts/*.json", "_manifest/parts.jsonl", "*.parquet", "report.json"]
)
def test_files_of_an_output(
    finished: Path, tmp_path: Path, replace: Callable[[Path], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for path in list(out.glob(name)) or [out / name]:
        replace(path)
    if name == "report.json":
        assert cd.Report.load(out).kept == 1
        assert "report.json cannot be read" in caplog.text
        return
    with pytest.raises(cd.OutputError, match=r"run\.json|parts|parquet"):
        cd.Report.load(out).kept().to_table()
    if name == "_manifest/run.json":
        with cd.ImageLoader(str(out), device="cpu") as loader:  # its class names are not known, its images are
            assert sum(map(len, loader)) == 1
        return
    with pytest.raises(cd.OutputError):
        cd.duplicate_groups(out)


@pytest.mark.parametrize("name", ["index.json", "*/ids.arrow", "*/*.npy"])
def test_files_of_an_index(
    finished: Path, tmp_path: Path, replace: Callable[[Path], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for path in (out / "_index").glob(name):
        replace(path)
    assert cd.open_index(out) is None
    assert "is not used; make it again" in caplog.text
    assert len(cd.leaks(finished, out)) == 1  # reads the output instead


def nested_json(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_json_is_as_deep_as_the_rest_of_the_package_can_take() -> None:
    assert parse_json(nested_json(MAX_DEPTH)) is not None
    assert parse_json(json.dumps({"text": "[{" * 1000})) == {"text": "[{" * 1000}
    for depth in (MAX_DEPTH + 2, 900, DEEP):
        for document in (nested_json(depth), nested_json(depth).decode(), b'{"a":' * depth + b"1" + b"}" * depth):
            with pytest.raises(ValueError, match="deeper than 100 levels"):
                parse_json(document)


@pytest.mark.parametrize("depth", [900, DEEP])
def test_sidecars_that_are_nested_deep(tmp_path: Path, depth: int) -> None:
    document = b'{"a":' + nested_json(depth) + b"}"
    tar = helpers.write_tar(tmp_path / "a.tar", [("a.jpg", PHOTO), ("a.json", document)])
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "a.jpg").write_bytes(PHOTO)
    (tmp_path / "images" / "cat" / "a.json").write_bytes(document)
    for number, source in enumerate((str(tar), str(tmp_path / "images"))):
        with cd.ImageLoader(source, device="cpu") as loader:
            (batch,) = loader
        assert "deeper than 100 levels" in batch[0].metadata["metadata_error"]
        out = tmp_path / f"out-{number}"
        report = cd.curate(source, out, stages=[cd.Quality()], device="cpu", html=False)
        assert report.kept == 1
        ((_, members),) = read_members(out).items()
        assert members["json.broken" if number else "json"] == document
        if number:
            assert "deeper than 100 levels" in json.loads(members["json"])["metadata_error"]


@pytest.mark.parametrize("depth", [900, DEEP])
def test_a_metadata_file_that_is_nested_deep(tmp_path: Path, depth: int) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.jpg", "a": ' + nested_json(depth) + b"}")
    with pytest.raises(cd.SourceError, match=r"metadata\.jsonl, line 1: .*deeper than 100 levels"):
        FolderSource(str(tmp_path))


@pytest.mark.parametrize("name", ["_manifest/run.json", "_manifest/parts/*.json", "report.json", "_index/index.json"])
@pytest.mark.parametrize("depth", [900, DEEP])
def test_records_of_an_output_that_are_nested_deep(
    finished: Path, tmp_path: Path, name: str, depth: int, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (path,) = out.glob(name)
    path.write_bytes(nested_json(depth))
    if path.parent.name in ("_manifest", "parts"):
        with pytest.raises(cd.OutputError, match="deeper than 100 levels"):
            Manifest.load(str(out)).parts()
    elif name == "report.json":
        assert cd.Report.load(out).kept == 1
    else:
        assert cd.open_index(out) is None
    assert path.parent.name in ("_manifest", "parts") or "deeper than 100 levels" in caplog.text


def test_json_in_a_column_of_parquet_is_text(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"jpg": [PHOTO], "json": [nested_json(DEEP).decode()]}), tmp_path / "a.parquet")
    report = cd.curate(
        ParquetSource(str(tmp_path / "a.parquet")), tmp_path / "out", stages=[cd.Quality()], device="cpu", html=False
    )
    assert report.kept == 1


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "stages: " + "[" * DEEP, "deeper than 100 levels"),
        ("a.yaml", "stages: " + "[" * 150 + "]" * 150, "deeper than 100 levels"),
        ("a.yaml", "stages: " + "{a: " * DEEP, "deeper than 100 levels"),
        ("a.yaml", "".join(f"{' ' * n}a:\n" for n in range(1200)), "deeper than 100 levels"),
        ("a.toml", "stages = " + "[" * DEEP + "]" * DEEP, "deeper than 100 levels"),
        ("a.toml", "stages = " + "[" * 150 + "]" * 150, "deeper than 100 levels"),
        ("a.toml", ".".join(["stages"] + ["a"] * 5000) + " = 1", "deeper than 100 levels"),
        ("a.yaml", ALIASES, "aliases"),
        ("a.yaml", f"{ALIASES}stages: [*a39]", "aliases"),
        ("a.yml", MERGES, "aliases"),
        ("a.yaml", "stages: &a [*a]", "is in the value that it stands for"),
        ("a.yaml", "stages: &a {a: *a}", "is in the value that it stands for"),
        ("a.yaml", b"out: \xff", "UTF-8"),
        ("a.toml", b"out = '\xff'", "UTF-8"),
        ("a.toml", "[[stages]]\ntype.a = 1", "its type is a dict"),
        ("a.toml", "stages = [[[[[[[[[[1]]]]]]]]]]", r"\[\[\[\[\[\[\.\.\.\]"),
    ],
)
def test_configuration_files_that_overflow(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as raised:
        read_config(path)
    assert len(str(raised.value)) < 1000


def test_aliases_of_an_honest_configuration(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("stages:\n- &wide {type: Filter, field: width, min: 9}\n- {<<: *wide, field: height}\n- *wide\n")
    assert [stage.settings["field"] for stage in read_config(path)["stages"]] == ["width", "height", "width"]
    path.write_text("")
    assert read_config(path) == {}


@pytest.mark.parametrize("ending", ["toml", "yaml"])
def test_a_configuration_that_is_no_file(tmp_path: Path, replace: Callable[[Path], None], ending: str) -> None:
    replace(tmp_path / f"a.{ending}")
    with pytest.raises(OSError, match=r"limit|regular|directory"):
        read_config(tmp_path / f"a.{ending}")

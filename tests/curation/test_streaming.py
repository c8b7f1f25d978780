"""Curations of remote tars without an index: they begin with the first part, and leave what they would leave anyway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import curator_dali as cd
from curator_dali.errors import OutputError, SourceError
from curator_dali.outputs import Manifest
from curator_dali.sources import open_source
from curator_dali.sources.tar_shards import Shards
from tests import helpers
from tests.curation.helpers import content
from tests.sources.web_server import Server

COUNT, PER_SHARD, PART = 60, 7, 16
OPTIONS: dict[str, Any] = {"device": "cpu", "batch_size": 5, "part_size": PART, "html": False}


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    samples = helpers.photo_samples(helpers.load_photos(), COUNT, seed=2)
    samples[31][1]["jpg"] = b"\xff\xd8 no image"
    samples[50] = (samples[50][0], {**samples[50][1], "jpg": samples[3][1]["jpg"]})
    return helpers.write_shards(tmp_path_factory.mktemp("streamed"), samples, per_shard=PER_SHARD)


@pytest.fixture
def urls(server: Server, tars: list[Path]) -> list[str]:
    server.files = {f"/{path.name}": path.read_bytes() for path in tars}
    return [f"{server.url}/{path.name}" for path in tars]


def make_stages(kind: str) -> list[cd.Stage]:
    return [cd.Quality(), *([cd.Deduplicate(exact=True)] if kind == "global" else [])]


def read_run(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "_manifest" / "run.json").read_text())
    return {name: value for name, value in found.items() if name not in ("listing", "origin")}


@pytest.fixture
def expect(urls: list[str], tmp_path: Path) -> Callable[[Path, str], None]:
    """A function that compares an output with that of indexed tars, to the byte."""

    def compare(out: Path, kind: str = "") -> None:
        source = open_source(urls)
        assert len(source) == COUNT
        other = tmp_path / "indexed"
        report = cd.curate(source, other, stages=make_stages(kind), **OPTIONS)
        assert sum(report.failed.values()) == 1
        assert content(out) == content(other) != {}
        assert read_run(out) == read_run(other)
        assert Manifest.load(str(out)).verify(deep=True) == []
        assert (out / "_manifest" / "sources.jsonl").read_bytes() == (
            other / "_manifest" / "sources.jsonl"
        ).read_bytes()
        assert not [path for path in out.iterdir() if path.name.startswith("_s")]

    return compare


@pytest.mark.parametrize("kind", ["", "global"])
def test_the_output_is_that_of_indexed_tars(
    server: Server, urls: list[str], tmp_path: Path, expect: Callable[..., None], kind: str
) -> None:
    source = open_source(urls, index="none")
    server.requests.clear()
    with cd.Curation(source, tmp_path / "out", stages=make_stages(kind), **OPTIONS) as curation:
        assert curation.work == (0, None)
        done: list[int] = []
        report = curation.run(done.append)
        assert curation.work == ((COUNT, COUNT) if not kind else (2 * COUNT, 2 * COUNT))
        assert report.samples == COUNT
    if not kind:
        assert sum(done) == COUNT
        read = sum(end - begin for path in server.files for begin, end in server.ranges_sent(path))
        assert read <= 1.05 * sum(map(len, server.files.values()))
    expect(tmp_path / "out", kind)


def test_the_first_part_is_done_before_the_last_tar_is_read(
    server: Server, urls: list[str], tmp_path: Path, expect: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    server.held = {f"/{number:05d}.tar" for number in range(5, 9)}
    seen: list[dict[str, Any]] = []

    def let_go() -> None:
        while not (out / "_manifest" / "parts" / f"{0:012d}-{PART:012d}.json").exists():
            time.sleep(0.01)
        seen.append(json.loads((out / "_manifest" / "run.json").read_text()))
        server.held = set()

    thread = threading.Thread(target=let_go, daemon=True)
    thread.start()
    cd.curate(open_source(urls, index="none"), out, stages=make_stages(""), **OPTIONS)
    thread.join(1)
    assert [(run["source"], run["samples"]) for run in seen] == [(None, None)]
    assert seen[0]["listing"].startswith("listed-tar-")
    expect(out)


@pytest.mark.parametrize("kind", ["", "global"])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_run_that_ended_before_all_was_indexed_goes_on(
    server: Server, urls: list[str], tmp_path: Path, expect: Callable[..., None], kind: str, indexed: bool
) -> None:
    out = tmp_path / "out"
    gone = server.files["/00006.tar"]
    source = open_source(urls, index="none")
    server.files["/00006.tar"] = b""
    with pytest.raises(SourceError, match=r"00006\.tar cannot be read"):
        cd.curate(source, out, stages=make_stages(kind), **OPTIONS)
    server.files["/00006.tar"] = gone
    assert json.loads((out / "_manifest" / "run.json").read_text())["samples"] is None
    finished = [part.start for part in Manifest.load(str(out)).parts()]
    assert finished in ([[]] if kind else [[0], [0, 16]])  # the writer may not have come to what was scored
    source = open_source(urls, index="none")
    if indexed:
        assert len(source) == COUNT
    with cd.Curation(source, out, stages=make_stages(kind), **OPTIONS) as curation:
        assert curation.work[0] > 0
        curation.run()
    expect(out, kind)


def test_other_tars_are_refused(server: Server, urls: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = open_source(urls, index="none")
    gone = server.files.pop("/00006.tar")
    with pytest.raises(SourceError):
        cd.curate(source, out, stages=make_stages(""), **OPTIONS)
    server.files["/00006.tar"] = gone
    for other in (urls[:-1], list(reversed(urls))):
        with pytest.raises(OutputError, match="another run: listing was"):
            cd.curate(open_source(other, index="none"), out, stages=make_stages(""), **OPTIONS)


def test_a_finished_output_is_known_again_without_indexes(server: Server, urls: list[str], tmp_path: Path) -> None:
    for begun in ("indexed", "streamed"):
        out = tmp_path / begun
        source = open_source(urls, index="none")
        if begun == "indexed":
            assert len(source) == COUNT
        first = cd.curate(source, out, stages=make_stages(""), **OPTIONS)
        before = content(out)
        again = cd.curate(open_source(urls, index="none"), out, stages=make_stages(""), **OPTIONS)
        assert (again.samples, again.kept, again.earlier) == (first.samples, first.kept, COUNT)
        assert content(out) == before


def test_fields_whose_types_are_given_do_not_wait(server: Server, urls: list[str], tmp_path: Path) -> None:
    stages = [cd.Filter("number", max=30), cd.Quality()]
    options = {**OPTIONS, "metadata": {"number": "float64", "caption": "string"}}
    server.held = {f"/{number:05d}.tar" for number in range(1, 9)}
    with cd.Curation(open_source(urls, index="none"), tmp_path / "out", stages=stages, **options) as curation:
        assert curation.work == (0, None)
        server.held = set()
        curation.run()
    source = open_source(urls, index="none")
    assert len(source) == COUNT
    cd.curate(source, tmp_path / "indexed", stages=stages, **options)
    assert content(tmp_path / "out") == content(tmp_path / "indexed")


def test_no_samples_at_all(server: Server, tmp_path: Path) -> None:
    server.files = {"/a.tar": bytes(10240)}
    for kind in ("", "global"):
        source = open_source(f"{server.url}/a.tar", index="none")
        report = cd.curate(source, tmp_path / f"out{kind}", stages=make_stages(kind), **OPTIONS)
        assert report.samples == 0


SCRIPT = """
import sys, torch, curator_dali as cd
from tests.curation.test_streaming import OPTIONS, make_stages
torch.set_num_threads(1)
cd.curate(sys.argv[1], sys.argv[2], stages=make_stages(""), **OPTIONS)
"""


def test_a_killed_run_goes_on(server: Server, urls: list[str], tmp_path: Path, expect: Callable[..., None]) -> None:
    out = tmp_path / "out"
    server.held = {"/00008.tar"}
    env = os.environ | {"CURATOR_DALI_CACHE": str(tmp_path / "cache")}
    spec = f"{server.url}/{{00000..00008}}.tar"
    with subprocess.Popen([sys.executable, "-c", SCRIPT, spec, str(out)], env=env) as process:
        record = out / "_manifest" / "parts" / f"{PART:012d}-{2 * PART:012d}.json"
        for _ in range(3000):
            if record.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    server.held = set()
    source = open_source(urls, index="none")
    with cd.Curation(source, out, stages=make_stages(""), **OPTIONS) as curation:
        assert curation.work[0] >= 2 * PART
        curation.run()
    expect(out)


ray = pytest.importorskip("ray", reason="needs Ray: pip install 'curator-dali[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("kind", ["", "global"])
def test_on_ray_the_driver_indexes_nothing(
    urls: list[str], tmp_path: Path, expect: Callable[..., None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curator_dali.ray import RayExecutor

    source = open_source(urls, index="none")
    out, executor = tmp_path / "out", RayExecutor(num_workers=1)
    with monkeypatch.context() as patch:
        if not kind:  # whoever writes what was decided reads the samples, and for that their indexes
            patch.setattr(Shards, "scan", None)  # in this process
        report = cd.curate(source, out, stages=make_stages(kind), executor=executor, **OPTIONS)
    assert report.samples == COUNT
    expect(out, kind)


@pytest.mark.usefixtures("cluster")
def test_on_ray_a_tar_that_cannot_be_read_ends_the_run(server: Server, urls: list[str], tmp_path: Path) -> None:
    from curator_dali.ray import RayExecutor

    source = open_source(urls, index="none")
    server.files.pop("/00006.tar")
    with pytest.raises(SourceError, match=r"1 of 9 shards cannot be read: .*00006\.tar"):
        cd.curate(source, tmp_path / "out", stages=make_stages(""), executor=RayExecutor(num_workers=1), **OPTIONS)

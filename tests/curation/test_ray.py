"""Curation on a real Ray cluster: the same output as in one process, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest

import curator_dali as cd
from curator_dali.outputs import Part
from curator_dali.sources import EncodedBatch, Source, TarSource
from tests import helpers
from tests.account import account

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'curator-dali[ray]'")
cloudpickle = pytest.importorskip("cloudpickle")

from curator_dali.curation.ray_executor import RayExecutor, breaks_context  # noqa: E402
from curator_dali.sources.subset import Without  # noqa: E402

MEMORY = 100 << 20  # of Ray's object store
PART = 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, a CPU each, on this machine."""
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have the tests on their path
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    )
    made.add_node(num_cpus=1, object_store_memory=MEMORY)
    ray.init(address=made.address, log_to_driver=False)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, np.ndarray]) -> list[str]:
    """120 samples in four tars, three of them broken."""
    samples = helpers.photo_samples(photos, 120, seed=5)
    for row, data in ((17, b""), (60, b"<html>gone</html>"), (61, samples[61][1]["jpg"][:900])):
        samples[row] = (samples[row][0], {**samples[row][1], "jpg": data})
    return [str(path) for path in helpers.write_shards(tmp_path_factory.mktemp("ray"), samples, per_shard=30)]


class Loaded(cd.Stage):
    """Of no use before `setup`, which every process needs for itself, as one with weights."""

    settings: ClassVar[dict[str, str]] = {"type": "Loaded"}

    def setup(self, device: str) -> None:
        if not self._is_set_up(device):
            self._keep((device,))

    def __call__(self, batch: cd.ImageBatch) -> cd.ImageBatch:
        assert self.state == ("cpu",)
        return batch


def curate(source: Any, out: Path, **options: Any) -> cd.Report:
    stages = [Loaded(), cd.Quality(), cd.Filter("sharpness", min=300.0)]
    return cd.curate(source, out, stages=stages, device="cpu", part_size=PART, num_threads=1, **options)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


@pytest.fixture(scope="module")
def expected(photographs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "out"
    curate(photographs, out)
    return out


class Unsteady(TarSource):
    """Tars of which one sample cannot be read now."""

    def read(self, indices: np.ndarray, *, members: bool = False) -> EncodedBatch:
        batch = super().read(indices, members=members)
        for row in np.flatnonzero(batch.indices == 70).tolist():
            batch.errors[row] = "the store does not answer"
            batch.unread.add(row)
        return batch


@pytest.mark.slow
def test_a_sample_that_cannot_be_read_now_ends_the_run_and_blames_no_image(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(cd.SourceError, match=r"sample '000070' .* cannot be read now: the store does not answer"):
        curate(Unsteady(photographs), out, executor=RayExecutor())
    assert "trying again" not in caplog.text
    assert "looking for what ends" not in caplog.text
    assert not any(row["reason"] == "the store does not answer" for row in rows(out))
    curate(photographs, out, executor=RayExecutor())
    assert rows(out) == rows(expected)
    assert files(out) == files(expected)


@pytest.mark.slow
def test_the_output_is_that_of_one_process(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    report = curate(photographs, tmp_path / "out", executor=RayExecutor(), progress=seen.append)
    assert rows(tmp_path / "out") == rows(expected)
    assert files(tmp_path / "out") == files(expected)
    assert sum(seen) == report.samples == 120
    local = json.loads((expected / "report.json").read_text())
    assert (report.kept, report.num_failed) == (local["kept"], 3)
    again = curate(photographs, tmp_path / "out", executor="ray")
    assert again.earlier == 120


@pytest.mark.slow
def test_fields_of_the_metadata_are_those_of_one_process(cluster: Any, photographs: list[str], tmp_path: Path) -> None:
    for out, options in ((tmp_path / "local", {}), (tmp_path / "ray", {"executor": RayExecutor()})):
        curate(photographs, out, metadata=True, tars=False, **options)
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert {"photo", "number", "metadata"} <= rows(tmp_path / "ray")[60].keys()


class Slow(cd.Stage):
    """Takes its time, so that somebody can be killed meanwhile."""

    reads = frozenset()
    writes: ClassVar[dict[str, str]] = {}
    settings: ClassVar[dict[str, str]] = {"type": "Slow"}

    def __call__(self, batch: cd.ImageBatch) -> cd.ImageBatch:
        time.sleep(0.4)
        return batch


def kill_workers(
    count: int, stop: threading.Event, killed: list[int], name: str = "ray::_Actor.run", pause: float = 1.0
) -> None:
    """Kill processes that work, one after the other, as a machine's out-of-memory killer would."""
    while len(killed) < count and not stop.wait(pause):
        found = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True).stdout.split()
        if found:
            os.kill(int(found[0]), signal.SIGKILL)
            killed.append(int(found[0]))


@pytest.mark.slow
def test_actors_that_are_killed_lose_nothing(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path
) -> None:
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=kill_workers, args=(2, stop, killed))
    killer.start()
    try:
        cd.curate(
            photographs,
            tmp_path / "out",
            stages=[Slow(), cd.Quality(), cd.Filter("sharpness", min=300.0)],
            device="cpu",
            part_size=PART,
            executor=RayExecutor(max_deaths=3),
        )
    finally:
        stop.set()
        killer.join()
    assert len(killed) == 2
    assert rows(tmp_path / "out") == rows(expected)
    assert account(str(tmp_path / "out"), tars=True) is not None


@pytest.mark.slow
def test_a_death_that_ray_reports_as_something_else_loses_nothing(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = ray.get
    errors = [ray.exceptions.OutOfMemoryError("killed for memory"), ray.exceptions.NodeDiedError("gone")]

    def lose(task: Any, **options: Any) -> Any:
        found = get(task, **options)
        if isinstance(found, Part) and errors:
            raise errors.pop()
        return found

    monkeypatch.setattr(ray, "get", lose)
    curate(photographs, tmp_path / "out", executor=RayExecutor(max_deaths=3))
    assert not errors
    assert rows(tmp_path / "out") == rows(expected)
    assert files(tmp_path / "out") == files(expected)


class Deadly(np.ndarray):
    """An image that ends the process that looks at it."""

    @property
    def data(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Poisoned(Source):
    """A tar with one image that no process survives."""

    def __init__(self, urls: list[str], index: int) -> None:
        self.inner, self.index, self.name = TarSource(urls), index, "poisoned"

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def read(self, indices: np.ndarray, *, members: bool = False) -> EncodedBatch:
        batch = self.inner.read(indices, members=members)
        for row in np.flatnonzero(np.asarray(indices) == self.index).tolist():
            batch.images[row] = batch.images[row].view(Deadly)
            batch.headers["codec"][row] = 0  # so that somebody has to look
        return batch


@pytest.mark.slow
def test_an_image_that_kills_every_worker_costs_only_itself(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path
) -> None:
    # by one actor after the other, so that the one that leaves it out has done nothing before
    curate(Poisoned(photographs, 37), tmp_path / "out", executor=RayExecutor(num_workers=1))
    found, local = rows(tmp_path / "out"), rows(expected)
    assert found[37]["status"] == "failed"
    assert found[37]["reason"] == "decoding it ends the process: left out"
    assert found[:37] + found[38:] == local[:37] + local[38:]


class Unlucky(Poisoned):
    """One whose image ends the process that reads it some times, and then no more."""

    def __init__(self, urls: list[str], index: int, marks: Path, deaths: int) -> None:
        super().__init__(urls, index)
        self.marks, self.deaths = marks, deaths

    def read(self, indices: np.ndarray, *, members: bool = False) -> EncodedBatch:
        if self.index not in indices:
            return self.inner.read(indices, members=members)
        if len(list(self.marks.iterdir())) == self.deaths:
            return self.inner.read(indices, members=members)
        (self.marks / uuid.uuid4().hex).touch()
        return super().read(indices, members=members)


@pytest.mark.slow
def test_an_image_is_not_left_out_for_one_death_alone(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    # two actors with 16 samples, then processes with 16, 8, 4, 2 and this one
    source = Unlucky(photographs, 37, marks, deaths=7)
    curate(source, tmp_path / "out", executor=RayExecutor(num_workers=1))
    assert len(list(marks.iterdir())) == 7
    assert rows(tmp_path / "out") == rows(expected)


DRIVER = """
import sys
import curator_dali as cd
from curator_dali.ray import RayExecutor
from tests.curation.test_ray import Slow, curate
cd.curate(
    {shards}, {out!r}, stages=[Slow(), cd.Quality(), cd.Filter("sharpness", min=300.0)], device="cpu", part_size=16,
    executor=RayExecutor(address={address!r}),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_ended_goes_on_where_it_was(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    code = textwrap.dedent(DRIVER).format(shards=photographs, out=str(out), address=cluster.address)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    driver = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("_manifest/parts/*"))) < 2 and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.1)
    done = len(list(out.glob("_manifest/parts/*")))
    driver.send_signal(how)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == -how, err[-2000:]
    assert 2 <= done < 8
    if how == signal.SIGINT:
        assert "the same call goes on from there" in err
        assert err.rstrip().endswith("KeyboardInterrupt")
    while ray.available_resources().get("CPU") != 2:  # the cluster stays, and its actors are gone
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert rows(out) != rows(expected)
    finished = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert rows(out) == rows(expected)
    assert files(out) == files(expected)


@pytest.mark.slow
def test_a_node_that_goes_away_loses_nothing(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path
) -> None:
    extra = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    timer = threading.Timer(2.5, lambda: cluster.remove_node(extra, allow_graceful=False))
    timer.start()
    try:
        cd.curate(
            photographs,
            tmp_path / "out",
            stages=[Slow(), cd.Quality(), cd.Filter("sharpness", min=300.0)],
            device="cpu",
            part_size=PART,
            executor=RayExecutor(),
        )
    finally:
        timer.join()
    assert rows(tmp_path / "out") == rows(expected)


@pytest.mark.slow
def test_what_a_stage_raises_comes_out_as_itself(cluster: Any, photographs: list[str], tmp_path: Path) -> None:
    class Broken(cd.Stage):
        reads = frozenset()
        writes: ClassVar[dict[str, str]] = {}
        settings: ClassVar[dict[str, str]] = {"type": "Broken"}

        def __call__(self, batch: cd.ImageBatch) -> cd.ImageBatch:
            raise ZeroDivisionError("of a stage")

    with pytest.raises(ZeroDivisionError, match="of a stage"):
        cd.curate(photographs, tmp_path / "out", stages=[Broken()], device="cpu", executor=RayExecutor())


class Breaking(cd.Stage):
    """Breaks the first process that comes by, for good."""

    settings: ClassVar[dict[str, str]] = {"type": "Breaking"}

    def __init__(self, mark: Path) -> None:
        object.__setattr__(self, "mark", mark)

    def __call__(self, batch: cd.ImageBatch) -> cd.ImageBatch:
        mark: Path = self.__dict__["mark"]
        if not mark.exists():
            mark.write_text(str(os.getpid()))
        if mark.read_text() == str(os.getpid()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return batch


@pytest.mark.slow
def test_an_actor_with_a_broken_context_gets_no_more_work(
    cluster: Any, photographs: list[str], expected: Path, tmp_path: Path
) -> None:
    stages = [Breaking(tmp_path / "mark"), cd.Quality(), cd.Filter("sharpness", min=300.0)]
    executor = RayExecutor(num_workers=1)
    cd.curate(photographs, tmp_path / "out", stages=stages, device="cpu", part_size=PART, executor=executor)
    assert (tmp_path / "mark").exists()
    assert rows(tmp_path / "out") == rows(expected)


@pytest.mark.parametrize(
    ("text", "breaks"),
    [
        ("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported", True),
        ("cudaErrorIllegalAddress: an illegal memory access was encountered", True),
        ("CUDA runtime API error cudaErrorLaunchFailure (719):\nunspecified launch failure", True),
        ("CUDA driver API error CUDA_ERROR_LAUNCH_FAILED (719)", True),
        ("CUDA out of memory. Tried to allocate 20.00 MiB", False),
        ("of a stage", False),
    ],
)
def test_which_errors_break_a_context(text: str, breaks: bool) -> None:
    assert breaks_context(RuntimeError(text)) == breaks


def test_wrong_settings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("num_workers", "cpus_per_worker", "max_deaths"):
        with pytest.raises(ValueError, match=f"RayExecutor.{name} is 0"):
            RayExecutor(**{name: 0})
    with pytest.raises(ValueError, match='allowed: "local", "ray"'):
        curate([b"x"], tmp_path / "out", executor="dask")


def test_what_is_left_out_fails_with_its_reason(photographs: list[str]) -> None:
    source = Without(TarSource(photographs), {3: "known"})
    with cd.ImageLoader(source, device="cpu", batch_size=8) as loader:
        ids = [item.image_id for batch in loader for item in batch]
    assert "000003" not in ids
    assert [error.reason for error in loader.errors if error.index == 3] == ["known"]
    assert len(ids) == 116

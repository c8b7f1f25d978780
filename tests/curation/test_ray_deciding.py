"""What is decided of all samples, on a real Ray cluster: as in one process, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curator_dali as cd
from curator_dali.stages import GlobalSelector, distributed
from tests.curation.helpers import content, write_embedded
from tests.similarity.planted import planted

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'curator-dali[ray]'")
cloudpickle = pytest.importorskip("cloudpickle")

from curator_dali.curation.ray_executor import RayExecutor  # noqa: E402 - behind the check that there is Ray
from tests.curation import test_ray  # noqa: E402
from tests.curation.test_ray import PART, kill_workers, rows  # noqa: E402

cluster, photographs = test_ray.cluster, test_ray.photographs  # fixtures


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have the tests on their path


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of 45,000 embeddings, some of no use, and what one process decides of it."""
    folder = tmp_path_factory.mktemp("embedded")
    values = planted(45_000, 32, 0.95, topics=4000, seed=8)
    values[[3, 20_000]] = [[np.nan], [0.0]]
    values[44_000:44_100] = values[:100]
    write_embedded(folder / "out", values)
    rethreshold(folder / "out", folder / "local")
    return folder


def rethreshold(out: Path, new: Path, **options: Any) -> None:
    stages = [cd.Deduplicate(False, similarity=0.95, keep="first")]
    cd.rethreshold(out, new, stages=stages, tars=False, html=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [0, 2])
def test_what_sees_everything_decides_as_in_one_process(
    cluster: Any, embedded: Path, tmp_path: Path, deaths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deaths:  # there must be time for them
        monkeypatch.setattr(distributed, "_pairs_of_group", Lingering(distributed._pairs_of_group, 0.2))
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=kill_workers, args=(deaths, stop, killed, "ray::_of_item", 0.1))
    killer.start()
    try:
        rethreshold(embedded / "out", tmp_path / "new", executor=RayExecutor(max_deaths=3))
    finally:
        stop.set()
        killer.join()
    assert len(killed) == deaths
    assert content(tmp_path / "new") == content(embedded / "local")
    assert sum(row["status"] == "dropped" for row in rows(tmp_path / "new")) > 1000
    assert not (tmp_path / "new" / "_work").exists()


DECIDING = """
import cloudpickle, sys, time
import curator_dali as cd
from curator_dali.ray import RayExecutor
from curator_dali.stages import distributed
from tests.curation import test_ray_deciding
from tests.curation.test_ray_deciding import Lingering, Path, rethreshold
cloudpickle.register_pickle_by_value(test_ray_deciding)
if {slowly}:
    distributed._assign_block = Lingering(distributed._assign_block, 30)
rethreshold(Path({out!r}), Path({new!r}), executor=RayExecutor(address={address!r}))
"""


class Lingering:
    """A function that takes its time once it has done its work."""

    def __init__(self, function: Any, seconds: float) -> None:
        self.function, self.seconds = function, seconds

    def __call__(self, *args: Any, **options: Any) -> Any:
        done = self.function(*args, **options)
        time.sleep(self.seconds)
        return done


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_ends_while_it_decides_leaves_nothing_that_matters(
    cluster: Any, embedded: Path, tmp_path: Path, end: int
) -> None:
    new, env = tmp_path / "new", {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    slow, quick = (
        DECIDING.format(out=str(embedded / "out"), new=str(new), address=cluster.address, slowly=slowly)
        for slowly in (True, False)
    )
    driver = subprocess.Popen([sys.executable, "-c", slow], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(new.glob("_work/*/*.rows")) and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.1)
    assert list(new.glob("_work/*/*.rows"))
    began = time.monotonic()
    driver.send_signal(end)
    code = driver.wait(60)
    assert time.monotonic() - began < 25  # it does not wait for the tasks
    assert code in (-end, 1, 128 + end)
    assert (new / "_work").exists() == (end == signal.SIGKILL)
    finished = subprocess.run([sys.executable, "-c", quick], env=env, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert content(new) == content(embedded / "local")
    assert not (new / "_work").exists()


@pytest.mark.slow
def test_a_stage_that_sees_everything_has_the_workers(cluster: Any, photographs: list[str], tmp_path: Path) -> None:
    found = []
    for name, executor in (("local", "local"), ("ray", RayExecutor())):
        cd.curate(photographs, tmp_path / name, stages=[Quarters()], device="cpu", executor=executor, part_size=PART)
        found.append([(row["status"], row["reason"]) for row in rows(tmp_path / name)])
    assert {reason for _, reason in found[0]} >= {"odd 1 by None", "odd 29 by None"}
    assert [(status, reason) for status, reason in found[1] if status != "dropped"] == [
        (status, reason) for status, reason in found[0] if status != "dropped"
    ]
    pids = {str(reason).rpartition(" ")[2] for status, reason in found[1] if status == "dropped"}
    assert pids
    assert str(os.getpid()) not in pids


class Quarters(GlobalSelector):
    """Drops odd ones, and says in which process that was decided."""

    def decide(self, scored: Any) -> Any:
        index = scored.column("index")
        if scored.spread is None:
            told = [(number, None) for number in index.tolist()]
        else:
            told = [pair for part in scored.spread.map(with_pid, np.array_split(index, 4)) for pair in part]
        reasons = [f"odd {number} by {pid}" if number % 2 else None for number, pid in told]
        return np.array(reasons, object), {}


def with_pid(numbers: np.ndarray) -> list[tuple[int, int]]:
    return [(number, os.getpid()) for number in numbers.tolist()]


@pytest.mark.slow
def test_tasks_give_their_results_in_order_or_an_error(cluster: Any) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(60):
            taken.append(number)
            yield number

    with RayExecutor(num_workers=2).mapper() as mapper:
        results = mapper.map(uneven, items())
        assert next(results) == 0
        assert len(taken) < 20  # not all at once
        assert list(results) == list(range(1, 60))
        with pytest.raises(ZeroDivisionError, match="item 3"):
            list(mapper.map(fails_at_3, range(9)))
        with pytest.raises(cd.CuratorDaliError, match="one and the same task ended 3 workers"):
            list(mapper.map(dies_at_3, range(9)))
        assert list(mapper.map(abs, [-1])) == [1]  # of use still


def uneven(number: int) -> int:
    time.sleep(0.2 * (number % 7 == 0))
    return number


def fails_at_3(number: int) -> int:
    if number == 3:
        raise ZeroDivisionError(f"item {number}")
    return number


def dies_at_3(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

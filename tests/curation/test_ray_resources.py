"""How many Ray actors there are, and what each has: known without a cluster, and without a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import curator_dali as cd
from curator_dali.cli.common import add_executor, executor_of
from curator_dali.curation.worker import Worker
from curator_dali.outputs import Manifest

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'curator-dali[ray]'")

from curator_dali.curation.ray_executor import RayExecutor  # noqa: E402 - behind the check that there is Ray


@pytest.mark.parametrize(
    ("given", "device", "gpus"),
    [(None, "cpu", 0), (None, "cuda:1", 1), (0, "cpu", 0), (0.5, "cuda:0", 0.5), (1, "cpu", 1)],
)
def test_an_actor_asks_for_a_gpu_where_the_run_is_on_one(given: float | None, device: str, gpus: float) -> None:
    executor = RayExecutor(cpus_per_worker=3, gpus_per_worker=given)
    assert executor.resources(device) == {"num_cpus": 3, "num_gpus": gpus}


@pytest.mark.parametrize(("given", "count"), [(None, 2), (0.5, 4)])
def test_on_gpus_there_is_one_actor_each_on_a_gpu_of_its_own(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: float | None, count: int
) -> None:
    monkeypatch.setattr("curator_dali.curation.ray_executor._Pool", Actors)
    monkeypatch.setattr("curator_dali.curation.ray_executor._connected", lambda address: nullcontext())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    executor = RayExecutor(gpus_per_worker=given)
    parts = [(start, start + 1) for start in range(50)]
    made = []
    with worker_on("cuda:1", shards, tmp_path) as worker:
        for one in (worker, replace(worker, device="cpu")):
            with pytest.raises(Made) as raised:
                executor.run(one, parts, print, print)
            made.append(raised.value.args[0])
    assert (made[0].count, made[0].worker.device, made[0].resources["num_gpus"]) == (count, "cuda:0", given or 1)
    assert (made[1].count, made[1].worker.device) == ((16, "cpu") if given is None else (count, "cuda:0"))


def test_no_gpus_for_the_actors_of_a_run_on_gpus_are_refused(shards: list[Path], tmp_path: Path) -> None:
    executor = RayExecutor(gpus_per_worker=0)
    message = "RayExecutor.gpus_per_worker is 0, and the device is 'cuda:0': give gpus_per_worker=1 "
    with worker_on("cuda:0", shards, tmp_path) as worker, pytest.raises(ValueError, match=message):
        executor.run(worker, [(0, 1)], print, print)
    with pytest.raises(ValueError, match=r"RayExecutor.gpus_per_worker is -1"):
        RayExecutor(gpus_per_worker=-1)


@pytest.mark.parametrize(("given", "device"), [(None, "cpu"), (0, "cpu"), (0.5, "cuda:0")])
def test_tasks_have_the_gpus_that_are_given(given: float | None, device: str, tmp_path: Path) -> None:
    with RayExecutor(gpus_per_worker=given).workers(str(tmp_path / "work")) as workers:
        assert workers.device == device


@pytest.mark.parametrize(
    ("flags", "executor"),
    [
        ([], None),
        (["--executor", "ray"], RayExecutor()),
        (["--gpus-per-worker", "0"], RayExecutor(gpus_per_worker=0)),
        (["--num-workers", "3", "--gpus-per-worker", "0.5"], RayExecutor(num_workers=3, gpus_per_worker=0.5)),
    ],
)
def test_flags_say_the_same(flags: list[str], executor: Any) -> None:
    parser = argparse.ArgumentParser()
    add_executor(parser)
    assert executor_of(parser.parse_args(flags)) == executor


class Made(Exception):
    """With the actors."""


@dataclass
class Actors:
    """In the place of a `_Pool`: does nothing, and is thrown back."""

    resources: Any
    max_deaths: int
    worker: Worker
    count: int

    def run(self, *arguments: Any) -> None:
        raise Made(self)

    def close(self) -> None:
        pass


@contextmanager
def worker_on(device: str, shards: list[Path], folder: Path) -> Iterator[Worker]:
    """The worker of a curation, as if it were for that device."""
    out = str(folder / "out")
    with cd.Curation([str(path) for path in shards], out, stages=[], device="cpu") as curation:
        source = curation.source
        with Manifest.open(out, source=source.fingerprint, samples=len(source), settings={}) as manifest:
            yield replace(curation.worker(manifest), device=device)

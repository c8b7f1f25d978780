"""`RayExecutor`: the settings, and who does what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated

import ray

from curator_dali.arguments import Count, Limits, checked
from curator_dali.curation.actors import Pool
from curator_dali.curation.cluster import connected
from curator_dali.curation.executors import Mapper
from curator_dali.curation.tasks import Tasks
from curator_dali.curation.worker import Worker
from curator_dali.errors import CuratorDaliError, OutputError
from curator_dali.outputs.manifest import Part
from curator_dali.sampling.order import Range

__all__ = ["RayExecutor"]


@checked
@dataclass(frozen=True)
class RayExecutor:
    """Has the parts of a run done by actors of a Ray cluster.

    A part whose actor dies, or raises, is done again by another one. When it has killed `max_deaths` actors, its images
    are decoded range by range in processes of their own until those that end a process are found; they fail with that
    reason, and the others are done. Ctrl-C ends the actors; finished parts stay.

    The driver loads the weights too (their hashes are part of the output's record): with GPUs it needs one itself.

    Args:
        address: The cluster, as `ray.init` takes it: "auto", "local", "ray://...". None uses the one that this process
            is connected to, else one that Ray finds (`RAY_ADDRESS`, or the latest started on this machine), else starts
            one on this machine, which ends with the run.
        num_workers: Actors at most. None takes as many as the cluster has room for, by the CPUs and GPUs of one.
        cpus_per_worker: CPUs of an actor: its decoding threads, and what Ray reserves.
        gpus_per_worker: GPUs of an actor, or a share of one; above 0 it works on "cuda:0" of its own. None is 1 where
            the run's device is a GPU, else 0. Tasks of `mapper` have none with None.
        max_deaths: Actors that a part may take with it, and failures that it may have.
    """

    address: str | None = None
    num_workers: Count | None = None
    cpus_per_worker: Count = 1
    gpus_per_worker: Annotated[float, Limits("0, 1, or a share of one", 0)] | None = None
    max_deaths: Count = 2

    def run(
        self,
        worker: Worker,
        parts: Sequence[Range],
        finished: Callable[[Part], object],
        progress: Callable[[int], object],
    ) -> None:
        """Do parts; see `curator_dali.curation.executors.Executor`.

        Raises:
            ValueError: See `resources`.
            CuratorDaliError: The cluster has not what an actor needs; or a part kills its workers and no image of it
                does.
            Exception: What a part raised each time that it was tried.
        """
        if not parts:
            return
        threads = worker.loading.num_threads or self.cpus_per_worker
        resources = self.resources(worker.device)
        device = "cuda:0" if resources["num_gpus"] else "cpu"  # Ray shows an actor its own GPUs alone
        worker = replace(worker, device=device, loading=replace(worker.loading, num_threads=threads))
        with connected(self.address):
            count = min(self.count(resources), len(parts))
            pool = Pool(resources, self.max_deaths, worker, count)
            try:
                pool.run(parts, finished, progress)
            finally:
                pool.close()
        # an actor that a killed run left behind may have recorded a part whose files were cleared away since
        problems = worker.output.manifest.verify()
        if problems:
            raise OutputError(f"{worker.output.manifest.folder} is not whole, run it again: {'; '.join(problems[:5])}")

    @contextmanager
    def mapper(self) -> Iterator[Mapper]:
        """The cluster's workers, for tasks; it is connected to when there is a first one."""
        resources = self.resources("cpu")
        with ExitStack() as stack:

            def start() -> int:
                stack.enter_context(connected(self.address))
                return self.count(resources)

            tasks = Tasks(start, resources, self.max_deaths)
            try:
                yield tasks
            finally:
                tasks.close()

    def resources(self, device: str) -> dict[str, float]:
        """What a worker asks of Ray.

        Args:
            device: Of the run, "cpu" or "cuda:N".

        Raises:
            ValueError: It is a GPU, and `gpus_per_worker` is 0: all actors would take the same one, unknown to Ray.
        """
        on_gpu, gpus = device != "cpu", self.gpus_per_worker
        if on_gpu and gpus == 0:
            raise ValueError(
                f"RayExecutor.gpus_per_worker is {gpus:g}, and the device is {device!r}: give gpus_per_worker=1 (or a "
                "share of one), or device='cpu'"
            )
        return {"num_cpus": self.cpus_per_worker, "num_gpus": float(on_gpu) if gpus is None else gpus}

    def count(self, resources: Mapping[str, float]) -> int:
        """Workers that there is room for, in the cluster that this process is connected to, `num_workers` at most.

        Args:
            resources: Of one.

        Raises:
            CuratorDaliError: There is room for none.
        """
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
        room = int(cpus // resources["num_cpus"])
        if resources["num_gpus"]:
            room = min(room, int(gpus / resources["num_gpus"]))
        if room < 1:
            raise CuratorDaliError(
                f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, and one worker needs {resources['num_cpus']:g} and "
                f"{resources['num_gpus']:g}: give other cpus_per_worker and gpus_per_worker"
            )
        return min(self.num_workers or room, room)

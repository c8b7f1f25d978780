"""Curation on a Ray cluster: actors take part after part through the stages; only records of parts travel.

Each actor builds its loader and loads its weights once, and writes its own files. The driver hands out ranges of
samples, one an actor at a time, and never sees a pixel. Ray's core actors are used and not Ray Data, which has no way
to count the failures of a block, nor to give a block up.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from curator_dali.curation.loading import Range
from curator_dali.curation.working import Worker
from curator_dali.errors import CuratorDaliError, OutputError
from curator_dali.loader import ImageLoader
from curator_dali.sinks import Part
from curator_dali.sources import Subset, Without

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
except ImportError as error:
    raise ImportError(f"Ray does not import ({error}): pip install 'curator-dali[ray]'") from error

__all__ = ["RayExecutor", "find_killers"]

logger = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds without anything finished, before it is said who is waited for


@dataclass(frozen=True)
class RayExecutor:
    """Has the parts of a run done by actors of a Ray cluster.

    A part whose actor dies, or raises, is done again by another one. When it has killed `max_deaths` actors, its images
    are decoded range by range in processes of their own until those that end a process are found; they fail with that
    reason, and the others are done. Ctrl-C ends the actors; finished parts stay.

    The driver loads the weights too (their hashes are part of the output's record): with GPUs it needs one itself.

    Args:
        address: The cluster, as `ray.init` takes it: "auto", "ray://...". None uses the one that this process is
            connected to, or starts one on this machine and ends it with the run.
        num_workers: Actors. None takes as many as the cluster's GPUs (or CPUs) are enough for.
        cpus_per_worker: CPUs of an actor: its decoding threads, and what Ray reserves.
        gpus_per_worker: GPUs of an actor, or a share of one.
        max_deaths: Actors that a part may take with it, and failures that it may have.
    """

    address: str | None = None
    num_workers: int | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0
    max_deaths: int = 2

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "max_deaths"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"RayExecutor.{name} is {value}; give a number of at least 1")
        if self.gpus_per_worker < 0:
            raise ValueError(f"RayExecutor.gpus_per_worker is {self.gpus_per_worker}; give 0, 1, or a share of one")

    def run(
        self,
        worker: Worker,
        parts: Sequence[Range],
        finished: Callable[[Part], object],
        progress: Callable[[int], object],
    ) -> None:
        """Do parts; see `curator_dali.curation.executors.Executor`.

        Raises:
            CuratorDaliError: The cluster has not what an actor needs; or a part kills its workers and no image of it
                does.
            Exception: What a part raised each time that it was tried.
        """
        if not parts:
            return
        threads = worker.loading.num_threads or self.cpus_per_worker
        device = "cuda:0" if self.gpus_per_worker else worker.device  # Ray shows an actor its own GPUs alone
        worker = replace(worker, device=device, loading=replace(worker.loading, num_threads=threads))
        with _cluster(self.address):
            count = min(self._count(), len(parts))
            pool = _Pool(self, worker, count)
            try:
                pool.run(parts, finished, progress)
            finally:
                pool.close()
        # an actor that a killed run left behind may have recorded a part whose files were cleared away since
        problems = worker.output.manifest.verify()
        if problems:
            raise OutputError(f"{worker.output.manifest.folder} is not whole, run it again: {'; '.join(problems[:5])}")

    @property
    def resources(self) -> dict[str, float]:
        """What an actor asks of Ray."""
        return {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker}

    def _count(self) -> int:
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
        room = int(cpus // self.cpus_per_worker)
        if self.gpus_per_worker:
            room = min(room, int(gpus / self.gpus_per_worker))
        if room < 1:
            raise CuratorDaliError(
                f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, and one worker needs {self.cpus_per_worker} and "
                f"{self.gpus_per_worker:g}: give other cpus_per_worker and gpus_per_worker"
            )
        return min(self.num_workers or room, room)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; what was not connected before is let go afterwards."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


class _Actor:
    """One worker in a process of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def ready(self) -> None:
        """Answers once the process has started."""

    def run(self, part: Range, left_out: dict[int, str]) -> Part:
        """Do one part, without some of its samples, and say what became of it."""
        worker = self._worker
        if left_out:
            worker = replace(worker, source=Without(worker.source, left_out))
        done: list[Part] = []
        try:
            worker.run([part], done.append, _ignore)
        finally:
            if left_out:
                worker.close()
        return done[0]


@dataclass
class _Pool:
    """Actors, and who of them does what.

    Attributes:
        executor: The settings.
        worker: What every actor gets a copy of.
        count: Actors.
    """

    executor: RayExecutor
    worker: Worker
    count: int
    _starting: dict[Any, Any] = field(default_factory=dict, init=False)  # task -> actor
    _idle: list[Any] = field(default_factory=list, init=False)
    _busy: dict[Any, tuple[Any, Range]] = field(default_factory=dict, init=False)  # task -> (actor, part)
    _left_out: dict[Range, dict[int, str]] = field(default_factory=dict, init=False)
    _worker: Any = field(default=None, init=False)  # the worker in Ray's object store
    _deaths_at_start: int = field(default=0, init=False)

    def run(
        self, parts: Sequence[Range], finished: Callable[[Part], object], progress: Callable[[int], object]
    ) -> None:
        """Do all parts."""
        for _ in range(self.count):
            self._start()
        waiting, troubles = deque(parts), Counter[Range]()
        while waiting or self._busy:
            while waiting and self._idle:
                actor, part = self._idle.pop(), waiting.popleft()
                self._busy[actor.run.remote(part, self._left_out.get(part, {}))] = (actor, part)
            done, _ = ray.wait([*self._busy, *self._starting], timeout=_PATIENCE)
            if not done:
                logger.info(
                    "waiting for %d parts and %d workers that start; free: %s",
                    len(self._busy), len(self._starting), _free(),
                )  # fmt: skip
            for task in done:
                if task in self._starting:
                    self._started(task)
                    continue
                actor, part = self._busy.pop(task)
                try:
                    record = ray.get(task)
                except (RayActorError, WorkerCrashedError) as error:
                    troubles[part] += 1
                    self._bury(actor, part, error, troubles[part])
                    waiting.appendleft(part)
                except RayTaskError as error:
                    troubles[part] += 1
                    if troubles[part] >= self.executor.max_deaths:
                        raise error.cause or error from None
                    logger.warning("samples %d to %d failed, trying again: %s", part[0], part[1] - 1, _first(error))
                    self._idle.append(actor)
                    waiting.appendleft(part)
                else:
                    self._idle.append(actor)
                    finished(record)
                    progress(part[1] - part[0])

    def _start(self) -> None:
        """Ask for an actor; it gets work once it runs, for which there may never be room."""
        if self._worker is None:
            self._worker = ray.put(self.worker)
        make = ray.remote(_Actor).options(max_restarts=0, max_task_retries=0, **self.executor.resources)
        actor: Any = make.remote(self._worker)
        self._starting[actor.ready.remote()] = actor

    def _started(self, task: Any) -> None:
        actor = self._starting.pop(task)
        try:
            ray.get(task)
        except RayActorError as error:
            logger.warning("a worker died while it started: %s", _first(error))
            self._deaths_at_start += 1
            if self._deaths_at_start > self.executor.max_deaths * self.count:
                raise CuratorDaliError(f"workers die while they start, see Ray's logs: {_first(error)}") from error
            self._start()
        else:
            self._idle.append(actor)

    def _bury(self, actor: Any, part: Range, error: BaseException, deaths: int) -> None:
        """An actor died, or is out of reach, with a part in its hands: see what the part has to do with it."""
        logger.warning("the worker of samples %d to %d died: %s", part[0], part[1] - 1, _first(error))
        ray.kill(actor)  # out of reach, it might go on
        if deaths == self.executor.max_deaths:
            self._left_out[part] = self._killers(part)  # in the place that the dead actor left free
        elif deaths > self.executor.max_deaths:
            raise CuratorDaliError(
                f"samples {part[0]} to {part[1] - 1} of {self.worker.source.name} ended {deaths} workers, and decoding "
                "them alone ends none: see Ray's logs (no memory?)"
            ) from error
        self._start()

    def _killers(self, part: Range) -> dict[int, str]:
        logger.warning("looking for what ends the workers of samples %d to %d", part[0], part[1] - 1)
        found = find_killers(self.worker, part, self.executor.resources)
        for index, reason in found.items():
            logger.warning("sample %d is left out: %s", index, reason)
        return found

    def close(self) -> None:
        """End the actors."""
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)


def find_killers(worker: Worker, part: Range, resources: dict[str, float]) -> dict[int, str]:
    """The samples of a part whose decoding ends a process.

    Args:
        worker: Its source, and how it loads.
        part: The range.
        resources: Of a process that decodes.

    Returns:
        Sample index -> why it must not be decoded; empty where no process ends.
    """
    source = ray.put(worker.source)
    decode = ray.remote(_decode).options(max_retries=0, **resources)
    found: dict[int, str] = {}
    ranges = [part]
    while ranges:
        start, stop = ranges.pop()
        try:
            ray.get(decode.remote(source, start, stop, worker.device, worker.loading.max_pixels))
        except WorkerCrashedError:
            if stop - start == 1:
                found[start] = "decoding it ends the process: left out"
            else:
                middle = (start + stop) // 2
                ranges += [(middle, stop), (start, middle)]
    return found


def _decode(source: Any, start: int, stop: int, device: str, max_pixels: int) -> None:
    with ImageLoader(
        Subset(source, slice(start, stop)), batch_size=32, device=device, num_threads=1, max_pixels=max_pixels
    ) as loader:
        for _ in loader:
            pass


def _free() -> str:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _ignore(count: int) -> None:
    pass

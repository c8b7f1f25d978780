"""Actors that take parts of a run through the stages, and what happens to a part whose actors die."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from curator_dali.curation.cluster import PATIENCE, breaks_context, first_line, free, raised
from curator_dali.curation.worker import Worker
from curator_dali.errors import CuratorDaliError, SourceError
from curator_dali.loader.loader import ImageLoader
from curator_dali.outputs.manifest import Part
from curator_dali.sampling.order import Range
from curator_dali.sources.subset import Subset, Without
from curator_dali.threads import ignore

__all__ = ["Pool", "find_killers"]

logger = logging.getLogger(__name__)


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
            worker.run([part], done.append, ignore)
        finally:
            if left_out:
                worker.close()
        return done[0]


@dataclass
class Pool:
    """Actors, and who of them does what.

    Attributes:
        resources: What an actor asks of Ray.
        max_deaths: Actors that a part may take with it, and failures that it may have.
        worker: What every actor gets a copy of.
        count: Actors.
    """

    resources: Mapping[str, float]
    max_deaths: int
    worker: Worker
    count: int
    _starting: dict[Any, Any] = field(default_factory=dict, init=False)  # task -> actor
    _idle: list[Any] = field(default_factory=list, init=False)
    _busy: dict[Any, tuple[Any, Range]] = field(default_factory=dict, init=False)  # task -> (actor, part)
    _left_out: dict[Range, dict[int, str]] = field(default_factory=dict, init=False)
    _shared: Any = field(default=None, init=False)  # the worker in Ray's object store
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
            done, _ = ray.wait([*self._busy, *self._starting], timeout=PATIENCE)
            if not done:
                logger.info(
                    "waiting for %d parts and %d workers that start; free: %s",
                    len(self._busy), len(self._starting), free(),
                )  # fmt: skip
            for task in done:
                if task in self._starting:
                    self._started(task)
                    continue
                actor, part = self._busy.pop(task)
                try:
                    record = ray.get(task)
                except RayError as error:
                    troubles[part] += 1
                    if raised(error):
                        self._excuse(actor, part, error, troubles[part])
                    else:
                        self._bury(actor, part, error, troubles[part])
                    waiting.appendleft(part)
                else:
                    self._idle.append(actor)
                    finished(record)
                    progress(part[1] - part[0])

    def _start(self) -> None:
        """Ask for an actor; it gets work once it runs, for which there may never be room."""
        if self._shared is None:
            self._shared = ray.put(self.worker)
        make = ray.remote(_Actor).options(max_restarts=0, max_task_retries=0, **self.resources)
        actor: Any = make.remote(self._shared)
        self._starting[actor.ready.remote()] = actor

    def _started(self, task: Any) -> None:
        actor = self._starting.pop(task)
        try:
            ray.get(task)
        except RayError as error:
            logger.warning("a worker died while it started: %s", first_line(error))
            self._deaths_at_start += 1
            if self._deaths_at_start > self.max_deaths * self.count:
                raise CuratorDaliError(f"workers die while they start, see Ray's logs: {first_line(error)}") from error
            self._start()
        else:
            self._idle.append(actor)

    def _excuse(self, actor: Any, part: Range, error: RayTaskError, failures: int) -> None:
        """A part failed: raise what it raised if it has done so often enough.

        A source that cannot be read ends the run at once. Reading was tried again where it failed.
        """
        if failures >= self.max_deaths or isinstance(error.cause, SourceError):
            raise error.cause or error from None
        logger.warning("samples %d to %d failed, trying again: %s", part[0], part[1] - 1, first_line(error))
        if breaks_context(error):
            ray.kill(actor)
            self._start()
        else:
            self._idle.append(actor)

    def _bury(self, actor: Any, part: Range, error: BaseException, deaths: int) -> None:
        """An actor died, or is out of reach, with a part in its hands: see what the part has to do with it."""
        logger.warning("the worker of samples %d to %d died: %s", part[0], part[1] - 1, first_line(error))
        ray.kill(actor)  # out of reach, it might go on
        if deaths == self.max_deaths:
            self._left_out[part] = self._killers(part)  # in the place that the dead actor left free
        elif deaths > self.max_deaths:
            raise CuratorDaliError(
                f"samples {part[0]} to {part[1] - 1} of {self.worker.source.name} ended {deaths} workers, and decoding "
                "them alone ends none: see Ray's logs (no memory?)"
            ) from error
        self._start()

    def _killers(self, part: Range) -> dict[int, str]:
        logger.warning("looking for what ends the workers of samples %d to %d", part[0], part[1] - 1)
        found = find_killers(self.worker, part, self.resources)
        for index, reason in found.items():
            logger.warning("sample %d is left out: %s", index, reason)
        return found

    def close(self) -> None:
        """End the actors."""
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)


def find_killers(worker: Worker, part: Range, resources: Mapping[str, float]) -> dict[int, str]:
    """The samples of a part whose decoding, alone, ends a process twice.

    Args:
        worker: Its source, and how it loads.
        part: The range.
        resources: Of a process that decodes.

    Returns:
        Sample index -> why it must not be decoded; empty where no process ends.

    Raises:
        Exception: What reading raised.
    """
    source = ray.put(worker.source)
    decode = ray.remote(_decode).options(max_retries=0, **resources)
    found: dict[int, str] = {}
    suspects: set[int] = set()
    ranges = [part]
    while ranges:
        start, stop = ranges.pop()
        try:
            ray.get(decode.remote(source, start, stop, worker.device, worker.loading.max_pixels))
        except RayError as error:
            if raised(error):
                raise error.cause or error from None
            if stop - start > 1:
                middle = (start + stop) // 2
                ranges += [(middle, stop), (start, middle)]
            elif start in suspects:
                found[start] = "decoding it ends the process: left out"
            else:  # once may be chance: a machine that went away, memory that others took
                suspects.add(start)
                ranges.append((start, stop))
    return found


def _decode(source: Any, start: int, stop: int, device: str, max_pixels: int) -> None:
    with ImageLoader(
        Subset(source, slice(start, stop)), batch_size=32, device=device, num_threads=1, max_pixels=max_pixels
    ) as loader:
        for _ in loader:
            pass

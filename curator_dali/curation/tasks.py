"""A function of many items, as tasks on the cluster: in bounds, in order, and once more where a worker died."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from curator_dali.curation.cluster import PATIENCE, first_line, free, raised
from curator_dali.errors import CuratorDaliError

__all__ = ["Tasks"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4  # items handed out and not yet asked for, times the workers: so that one slow item holds nobody up


class Tasks:
    """What `RayExecutor.mapper` gives: see `curator_dali.curation.executors.Mapper`.

    Args:
        start: Called once, before the first task: connects, and says how many workers there are.
        resources: What a task asks of Ray.
        max_deaths: Workers that an item may take with it, and failures that it may have.
    """

    def __init__(self, start: Callable[[], int], resources: Mapping[str, float], max_deaths: int) -> None:
        self.device = "cuda:0" if resources["num_gpus"] else "cpu"  # Ray shows a task its own GPUs alone
        self._start, self._resources, self._max_deaths = start, resources, max_deaths
        self._count = 0
        self._running: dict[Any, tuple[int, Any]] = {}  # task -> (number of the item, the item)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What a function gives for each item, in their order.

        Raises:
            CuratorDaliError: The workers of one item die each time.
            Exception: What the function raised each time that an item was tried.
        """
        self._count = self._count or self._start()
        run: Any = ray.remote(_of_item).options(max_retries=0, **self._resources)
        shared = ray.put(function)
        waiting = enumerate(items)
        again: deque[tuple[int, Any]] = deque()
        results: dict[int, R] = {}
        troubles = Counter[int]()
        asked = 0
        try:
            while True:
                room = self._count * _AHEAD - len(results) - len(self._running)
                for number, item in [*_taken(again, room), *islice(waiting, max(0, room - len(again)))]:
                    self._running[run.remote(shared, item)] = (number, item)
                if asked in results:
                    yield results.pop(asked)
                    asked += 1
                    continue  # there is room for one more
                if not self._running:
                    return
                done, _ = ray.wait([*self._running], timeout=PATIENCE)
                if not done:
                    logger.info("waiting for %d tasks; free: %s", len(self._running), free())
                for task in done:
                    number, item = self._running.pop(task)
                    try:
                        results[number] = ray.get(task)
                    except RayError as error:
                        troubles[number] += 1
                        self._judge(error, troubles[number])
                        again.append((number, item))
        finally:
            self.close()

    def _judge(self, error: RayError, times: int) -> None:
        """An item failed, or its worker died: raise if it has done so often enough."""
        if times < self._max_deaths + (not raised(error)):
            what = "a task failed" if raised(error) else "a worker died"
            logger.warning("%s, trying again: %s", what, first_line(error))
        elif raised(error):
            raise error.cause or error from None
        else:
            raise CuratorDaliError(
                f"one and the same task ended {times} workers, see Ray's logs (no memory?): {first_line(error)}"
            ) from error

    def close(self) -> None:
        """End what is under way."""
        for task in self._running:
            ray.cancel(task, force=True)
        self._running.clear()


def _of_item(function: Callable[[T], R], item: T) -> R:
    """What a task does."""
    return function(item)


def _taken(queue: deque[T], count: int) -> Iterator[T]:
    while queue and count > 0:
        count -= 1
        yield queue.popleft()

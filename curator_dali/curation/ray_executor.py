"""`RayExecutor`: parts of a run done by actors of a Ray cluster, and decisions shared out as tasks."""

from __future__ import annotations

import logging
import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeGuard, TypeVar

from curator_dali.arguments import Count, Limits, checked
from curator_dali.curation.worker import Finished, Parts, Progress, Worker, scratch_folder
from curator_dali.errors import CuratorDaliError, OutputError, SourceError
from curator_dali.io import join, make_folder
from curator_dali.loader import ImageLoader
from curator_dali.outputs import Part
from curator_dali.sampling import Range, StreamedRanges
from curator_dali.sources import Source, Without
from curator_dali.stages import Workers
from curator_dali.threads import ignore

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ImportError(f"Ray does not import ({error}): pip install 'curator-dali[ray]'") from error

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 30.0  # seconds without anything finished, before a message says what is waited for
_TARS_A_TASK = 16  # that a task indexes, as many at once
_INDEX_RETRIES = 2  # of such a task whose process dies
_AHEAD = 4  # items handed out and not yet asked for, times the workers: so that one slow item holds nobody up


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
            the run's device is a GPU, else 0. Tasks of `workers` have none with None.
        max_deaths: Actors that a part may take with it, and failures that it may have.
    """

    address: str | None = None
    num_workers: Count | None = None
    cpus_per_worker: Count = 1
    gpus_per_worker: Annotated[float, Limits("0, 1, or a share of one", 0)] | None = None
    max_deaths: Count = 2

    def run(self, worker: Worker, parts: Parts, finished: Finished, progress: Progress) -> None:
        """Do parts; see `curator_dali.curation.worker.Executor`.

        Raises:
            ValueError: See `resources`.
            CuratorDaliError: The cluster has not what an actor needs; or a part kills its workers and no image of it
                does.
            Exception: What a part raised each time that it was tried.
        """
        if not isinstance(parts, StreamedRanges) and not parts:
            return
        settings = worker.output.settings
        settings = replace(settings, num_threads=settings.num_threads or self.cpus_per_worker)
        resources = self.resources(worker.device)
        device = "cuda:0" if resources["num_gpus"] else "cpu"  # Ray shows an actor its own GPUs alone
        worker = replace(worker, device=device, output=replace(worker.output, settings=settings))
        with _connected(self.address):
            count = self.count(resources)
            if not isinstance(parts, StreamedRanges):
                count = min(count, len(parts))
            pool = _Pool(resources, self.max_deaths, worker, count)
            try:
                pool.run(parts, finished, progress)
            finally:
                pool.close()
        # an actor that a killed run left behind may have recorded a part whose files were cleared away since
        problems = worker.output.manifest.verify()
        if problems:
            raise OutputError(f"{worker.output.manifest.folder} is not whole, run it again: {'; '.join(problems[:5])}")

    @contextmanager
    def workers(self, folder: str) -> Iterator[Workers]:
        """The cluster's workers, for tasks; it is connected to when there is a first one.

        Args:
            folder: For their files; it need not be there, and is gone before and afterwards.
        """
        resources = self.resources("cpu")
        with scratch_folder(folder), ExitStack() as stack:

            def start() -> int:
                stack.enter_context(_connected(self.address))
                return self.count(resources)

            tasks = _Tasks(start, resources, self.max_deaths, folder)
            try:
                yield tasks
            finally:
                tasks.close()

    def resources(self, device: str) -> dict[str, float]:
        """Resources that a worker asks of Ray.

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
        present: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = present.get("CPU", 0), present.get("GPU", 0)
        fitting = int(cpus // resources["num_cpus"])
        if resources["num_gpus"]:
            fitting = min(fitting, int(gpus / resources["num_gpus"]))
        if fitting < 1:
            raise CuratorDaliError(
                f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, and one worker needs {resources['num_cpus']:g} and "
                f"{resources['num_gpus']:g}: give other cpus_per_worker and gpus_per_worker"
            )
        return min(self.num_workers or fitting, fitting)


@dataclass
class _Pool:
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

    def run(self, parts: Parts, finished: Finished, progress: Progress) -> None:
        """Do all parts."""
        self._shared = ray.put(self.worker)
        for _ in range(self.count):
            self._start()
        indexing = _Indexing(self.worker.source, 2 * self.count) if isinstance(parts, StreamedRanges) else None
        waiting, troubles = deque([] if indexing else parts), Counter[Range]()
        try:
            while True:
                if indexing is not None:
                    indexing.begin()
                    waiting.extend(_take_known(parts))
                while waiting and self._idle:
                    actor, part = self._idle.pop(), waiting.popleft()
                    found = {} if indexing is None else indexing.find_new(actor)
                    self._busy[actor.run.remote(part, self._left_out.get(part, {}), found)] = (actor, part)
                tasks = [*self._busy, *([] if indexing is None else indexing.tasks)]
                if not (waiting or tasks):
                    return
                self._wait(tasks, indexing, waiting, troubles, finished, progress)
        finally:
            if indexing is not None:
                indexing.close()

    def _wait(
        self,
        tasks: Sequence[Any],
        indexing: _Indexing | None,
        waiting: deque[Range],
        troubles: Counter[Range],
        finished: Finished,
        progress: Progress,
    ) -> None:
        """Wait until something is done; parts that failed go back among those that wait."""
        done, _ = ray.wait([*tasks, *self._starting], timeout=_PATIENCE)
        if not done:
            logger.info(
                "waiting for %d parts, %d tasks that index, and %d workers that start; free: %s",
                len(self._busy), len(tasks) - len(self._busy), len(self._starting), _describe_free(),
            )  # fmt: skip
        for task in done:
            if task in self._starting:
                self._started(task)
                continue
            if task not in self._busy:
                assert indexing is not None
                indexing.finish(task)
                continue
            actor, part = self._busy.pop(task)
            try:
                record = ray.get(task)
            except RayError as error:
                troubles[part] += 1
                if _is_raised(error):
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
        make = ray.remote(_Actor).options(max_restarts=0, max_task_retries=0, **self.resources)
        actor: Any = make.remote(self._shared)
        self._starting[actor.ready.remote()] = actor

    def _started(self, task: Any) -> None:
        actor = self._starting.pop(task)
        try:
            ray.get(task)
        except RayError as error:
            logger.warning("a worker died while it started: %s", _first_line(error))
            self._deaths_at_start += 1
            if self._deaths_at_start > self.max_deaths * self.count:
                raise CuratorDaliError(f"workers die while they start, see Ray's logs: {_first_line(error)}") from error
            self._start()
        else:
            self._idle.append(actor)

    def _excuse(self, actor: Any, part: Range, error: RayTaskError, failures: int) -> None:
        """A part failed: raise what it raised if it has done so often enough.

        A source that cannot be read ends the run at once. Reading was tried again where it failed.
        """
        if failures >= self.max_deaths or isinstance(error.cause, SourceError):
            raise error.cause or error from None
        logger.warning("samples %d to %d failed, trying again: %s", part[0], part[1] - 1, _first_line(error))
        if breaks_context(error):
            ray.kill(actor)
            self._start()
        else:
            self._idle.append(actor)

    def _bury(self, actor: Any, part: Range, error: BaseException, deaths: int) -> None:
        """An actor died, or is out of reach, with a part in its hands: see what the part has to do with it."""
        logger.warning("the worker of samples %d to %d died: %s", part[0], part[1] - 1, _first_line(error))
        ray.kill(actor)  # out of reach, it might go on
        if deaths == self.max_deaths:
            logger.warning("looking for what ends the workers of samples %d to %d", part[0], part[1] - 1)
            # in the place that the dead actor left free
            self._left_out[part] = find_killers(self.worker, part, self.resources)
            for index, reason in self._left_out[part].items():
                logger.warning("sample %d is left out: %s", index, reason)
        elif deaths > self.max_deaths:
            raise CuratorDaliError(
                f"samples {part[0]} to {part[1] - 1} of {self.worker.source.name} ended {deaths} workers, and decoding "
                "them alone ends none: see Ray's logs (no memory?)"
            ) from error
        self._start()

    def close(self) -> None:
        """End the actors."""
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)


class _Indexing:
    """Tars that tasks of the cluster index, in the source's order, and what the driver and the actors know of these.

    Args:
        source: Has tars that are not indexed.
        most: Tasks at once.

    Attributes:
        tasks: Those under way.
    """

    def __init__(self, source: Source, most: int) -> None:
        assert source.streamed is not None
        self._counts, self._most = source.streamed, most
        self._shared = ray.put(source)
        known = range(len(self._counts))
        self._left = deque(number for number in known if not self._counts.is_known(number))
        self._found: list[tuple[int, Any]] = []  # shard, and what is known of it, in the order of finding
        self._given: dict[Any, int] = {}  # actor -> how many of these it was given
        self._index = ray.remote(_index).options(num_cpus=0, max_retries=_INDEX_RETRIES)  # a task waits for the store
        self.tasks: set[Any] = set()

    def begin(self) -> None:
        """Hand out further tars."""
        while self._left and len(self.tasks) < self._most:
            numbers = [self._left.popleft() for _ in range(min(_TARS_A_TASK, len(self._left)))]
            self.tasks.add(self._index.remote(self._shared, numbers))

    def finish(self, task: Any) -> None:
        """Take over what a task found.

        Raises:
            SourceError: Tars cannot be read.
            RayError: The task's process died again and again.
        """
        self.tasks.discard(task)
        try:
            found = ray.get(task)
        except RayTaskError as error:
            raise error.cause or error from None
        self._counts.adopt(found)
        self._found += found.items()

    def find_new(self, actor: Any) -> dict[int, Any]:
        """Return the summaries of tars that an actor has not been given yet."""
        given, self._given[actor] = self._given.get(actor, 0), len(self._found)
        return dict(self._found[given:])

    def close(self) -> None:
        """End the tasks."""
        for task in self.tasks:
            ray.cancel(task, force=True)


def _index(source: Any, numbers: list[int]) -> Mapping[int, Any]:
    found: Mapping[int, Any] = source.streamed.index(numbers)
    return found


def _take_known(parts: Parts) -> Iterator[Range]:
    """Take the ranges that need not be waited for."""
    assert isinstance(parts, StreamedRanges)
    while parts.find_missing() is None and (part := next(parts, None)) is not None:
        yield part


class _Actor:
    """One worker in a process of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def ready(self) -> None:
        """Answers once the process has started."""

    def run(self, part: Range, left_out: dict[int, str], found: dict[int, Any]) -> Part:
        """Do one part, without some of its samples, and say what became of it.

        `found` is what is known of further tars, so that this process need not index those before the part.
        """
        worker = self._worker
        if found and worker.source.streamed is not None:
            worker.source.streamed.adopt(found)
        if left_out:
            worker = replace(worker, source=Without(worker.source, left_out))
        done: list[Part] = []
        try:
            worker.run([part], done.append, ignore)
        finally:
            if left_out:
                worker.close()
        return done[0]


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
            ray.get(decode.remote(source, start, stop, worker.device, worker.output.settings.max_pixels))
        except RayError as error:
            if _is_raised(error):
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
    with ImageLoader(source, batch_size=32, device=device, num_threads=1, max_pixels=max_pixels) as loader:
        for _ in loader.over([(start, stop)]):
            pass


class _Tasks:
    """The cluster's workers, as `RayExecutor.workers` yields them: see `curator_dali.stages.Workers`.

    Results come in any order here, and an item whose worker died goes back among those that wait. So the window of
    items under way is kept here, and is not that of `threads.run_ahead`, which waits for futures in their order.

    Args:
        start: Called once, before the first task: connects, and says how many workers there are.
        resources: What a task asks of Ray.
        max_deaths: Workers that an item may take with it, and failures that it may have.
        folder: For files.
    """

    def __init__(self, start: Callable[[], int], resources: Mapping[str, float], max_deaths: int, folder: str) -> None:
        self.device = "cuda:0" if resources["num_gpus"] else "cpu"  # Ray shows a task its own GPUs alone
        self._start, self._resources, self._max_deaths, self._folder = start, resources, max_deaths, folder
        self._count = 0
        self._running: dict[Any, tuple[int, Any]] = {}  # task -> (number of the item, the item)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of a function for each item, in their order.

        Raises:
            CuratorDaliError: The workers of one item die each time.
            Exception: What the function raised each time that an item was tried.
        """
        self._count = self._count or self._start()
        run: Any = ray.remote(_of_item).options(max_retries=0, **self._resources)
        shared = ray.put(function)
        waiting = enumerate(items)
        retry: deque[tuple[int, Any]] = deque()
        results: dict[int, R] = {}
        troubles = Counter[int]()
        asked = 0
        try:
            while True:
                while len(results) + len(self._running) < self._count * _AHEAD:
                    if (pair := retry.popleft() if retry else next(waiting, None)) is None:
                        break
                    self._running[run.remote(shared, pair[1])] = pair
                if asked in results:
                    yield results.pop(asked)
                    asked += 1
                    continue  # one more can be under way
                if not self._running:
                    return
                done, _ = ray.wait([*self._running], timeout=_PATIENCE)
                if not done:
                    logger.info("waiting for %d tasks; free: %s", len(self._running), _describe_free())
                for task in done:
                    number, item = self._running.pop(task)
                    try:
                        results[number] = ray.get(task)
                    except RayError as error:
                        troubles[number] += 1
                        self._check_trouble(error, troubles[number])
                        retry.append((number, item))
        finally:
            self.close()

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A new folder for files; its name is new too, as a task that was given up may still write."""
        with scratch_folder(join(self._folder, secrets.token_hex(8))) as folder:
            make_folder(folder)
            yield folder

    def _check_trouble(self, error: RayError, times: int) -> None:
        """An item failed, or its worker died: raise if it has done so often enough."""
        if times < self._max_deaths + (not _is_raised(error)):
            what = "a task failed" if _is_raised(error) else "a worker died"
            logger.warning("%s, trying again: %s", what, _first_line(error))
        elif _is_raised(error):
            raise error.cause or error from None
        else:
            raise CuratorDaliError(
                f"one and the same task ended {times} workers, see Ray's logs (no memory?): {_first_line(error)}"
            ) from error

    def close(self) -> None:
        """End what is under way."""
        for task in self._running:
            ray.cancel(task, force=True)
        self._running.clear()


def _of_item(function: Callable[[T], R], item: T) -> R:
    """Call a function with an item, in a task."""
    return function(item)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; what was not connected before is let go afterwards."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _describe_free() -> str:
    """Describe the CPUs and GPUs that are not reserved."""
    left: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{left.get('CPU', 0):g} CPUs, {left.get('GPU', 0):g} GPUs"


def _is_raised(error: RayError) -> TypeGuard[RayTaskError]:
    """Whether what ran there raised; any other error is a death, as of its machine or by Ray's memory monitor."""
    return isinstance(error, RayTaskError)


def breaks_context(error: BaseException) -> bool:
    """Whether an error's text is one of CUDA's, after most of which every later call in that process fails too."""
    return re.search("CUDA error|cudaError|CUDA_ERROR|illegal memory access", str(error)) is not None


def _first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return str(error).strip().partition("\n")[0]

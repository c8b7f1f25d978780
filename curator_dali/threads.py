"""Threads, what they hand over, and imports: nothing here breaks when Ctrl-C comes in the middle.

PyTorch does not survive a KeyboardInterrupt while it is imported: the next `import torch` of the process crashes it
(segmentation fault) or finds half a module. Importing it takes seconds, and a notebook's user who stops a cell in its
first seconds is no rare thing.
"""

from __future__ import annotations

import importlib
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Background:
    """A daemon thread that starts at once, and that an interrupt can neither lose nor make hang who waits for it.

    An interrupt inside `Thread.join` can make a thread that runs count as ended, and one inside a lock, an event or a
    `Queue` can leave it locked for good, as these are Python. What such a thread and the main one tell each other goes
    through `SimpleQueue`, which is written in C.

    Args:
        work: What the thread does.
        arguments: Of `work`.
        name: The thread's name.
    """

    def __init__(self, work: Callable[..., object], *arguments: Any, name: str) -> None:
        self._ended = False
        self._end: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes who waits
        self._thread = threading.Thread(target=self._run, args=(work, arguments), name=name, daemon=True)
        with uninterrupted():
            self._thread.start()

    def _run(self, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            work(*arguments)
        finally:
            self._ended = True
            self._end.put(None)

    def join(self) -> None:
        """Wait for the end. May be called again, and must be if the waiting was interrupted."""
        if self._thread is threading.current_thread():
            return
        while not self._ended and self._is_alive():  # it is not in a process that was forked
            with suppress(queue.Empty):
                self._end.get(timeout=0.1)
        with uninterrupted():  # it returns from its last line
            self._thread.join(timeout=5)

    def _is_alive(self) -> bool:
        with uninterrupted():
            return self._thread.is_alive()


class DaemonPool(Executor):
    """Threads that do work for others. The end of the process does not wait for these, unlike `ThreadPoolExecutor`'s.

    Args:
        most: Threads; each starts when there is work for it.
        name: Of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[Background] = []
        self._is_over = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Call a function on a thread.

        Raises:
            RuntimeError: The pool was shut down.
        """
        future: Future[R] = Future()
        self._waiting.put((future, partial(fn, *args, **kwargs)))
        if self._is_over:  # asked behind `put`, so that a shutdown meanwhile leaves no future that nobody does
            future.cancel()
            raise RuntimeError("these threads were shut down")
        if len(self._threads) < self._most:
            self._threads.append(Background(self._work, name=self._name))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads, once all is done; with `cancel_futures`, once what is under way is. May be called again."""
        self._is_over = True
        while cancel_futures:
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[0].cancel()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, function = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # raised where somebody waits for the result
                future.set_exception(error)
            del item, future, function  # or they live on while the next work is waited for


class HandOver(Generic[T]):
    """Passes items from one thread to another, a bounded number at a time, and survives Ctrl-C at any moment.

    The producer reserves a slot before it makes an item. The consumer frees the slot when the item's memory is free
    again, which may be long after `take`. Slots are tokens in a `SimpleQueue`: a lock or a `queue.Queue` is Python
    code, which an interrupt can leave locked for good, whereas every step here is one call into C.

    Args:
        slots: How many items may be under way or in use at once.

    Attributes:
        cancelled: Whether either side gave up. The producer looks at it after `reserve`.
        error: The exception that ended either side.
    """

    def __init__(self, slots: int) -> None:
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()  # None marks the end
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()  # one token for each free slot
        self.cancelled = False
        self.error: BaseException | None = None
        for _ in range(slots):
            self.free()

    def reserve(self, wait: bool = True) -> bool:
        """Take a slot, as the producer. False: none is free, and `wait` is false."""
        if self.cancelled:
            return True
        try:
            self._slots.get(block=wait)
        except queue.Empty:
            return False
        return True

    def put(self, item: T) -> None:
        """Hand over an item that has a slot."""
        self._items.put(item)

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no more items come; those handed over before are still taken, then the error is raised."""
        self.error = self.error or error
        self._items.put(None)

    def take(self) -> T | None:
        """Wait for the next item, as the consumer. None: there are no more. Raises the error of `finish`."""
        item = self._items.get()
        if item is None and self.error is not None:
            raise self.error
        return item

    def free(self) -> None:
        """Give back the slot of an item that is no longer in use."""
        self._slots.put(None)

    def cancel(self, error: BaseException | None = None) -> None:
        """Give up, from either side, and wake the other one. May be called again.

        Args:
            error: Why, if an exception ended this side.
        """
        self.cancelled = True
        self.free()
        self.finish(error)


def run_ahead(
    pool: Executor,
    function: Callable[[T], R],
    items: Iterable[T],
    window: int,
    is_ready: Callable[[], bool] = lambda: True,
) -> Generator[R, None, None]:
    """Yield the result of a function for each item, in order, while a pool works on the next items.

    Args:
        pool: Runs the function. Items that are not started when the iterator is closed are cancelled.
        function: Of one item.
        items: Taken in the calling thread, one at a time.
        window: How many further items are under way, or done, while a result is waited for; then the next one begins.
        is_ready: Whether the next item comes without waiting. One that does not is taken only if none is under way.
    """
    left = iter(items)
    waiting: deque[Future[R]] = deque()

    def begin(wait: bool) -> None:
        while len(waiting) <= window and (wait or is_ready()):
            if not (item := list(islice(left, 1))):
                return
            waiting.append(pool.submit(function, *item))
            wait = False

    try:
        while True:
            begin(wait=not waiting)
            if not waiting:
                return
            result = waiting.popleft().result()
            begin(wait=False)
            yield result
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a SIGINT that comes inside the `with` be handled behind it; on other threads than the main one, nothing.

    For microseconds of work that would be left half done, such as starting a thread: `Thread.start` waits for the
    thread, so that is where an interrupt likes to come, and it leaves a thread that nobody knows of. Never around
    anything that may take long, for the user could not stop it.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, Any]] = []

    def remember(number: int, frame: Any) -> None:
        came.append((number, frame))

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


def import_whole(name: str) -> None:
    """Import a module on a thread of its own, where no signal arrives, unless it is imported already.

    An interrupt ends the waiting, not the import, which the next one waits for. Call it in front of `import torch`
    wherever a notebook's cell may be the first to need it.

    Raises:
        ImportError: And whatever else the import raises.
    """
    if name in sys.modules or threading.current_thread() is not threading.main_thread():
        importlib.import_module(name)  # waits for one that is under way
        return
    raised: list[BaseException] = []

    def run() -> None:
        try:
            importlib.import_module(name)
        except BaseException as error:  # raised where the module was asked for
            raised.append(error)

    thread = threading.Thread(target=run, name=f"curator-dali-import-{name}")
    with uninterrupted():
        thread.start()
    thread.join()
    if raised:
        raise raised[0]


def ignore(*_: object) -> None:
    """Do nothing."""

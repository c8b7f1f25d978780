"""Threads, short steps and imports that Ctrl-C must not cut in half.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Background", "ignore", "import_whole", "uninterrupted"]


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

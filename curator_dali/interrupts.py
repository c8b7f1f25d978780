"""Short work that Ctrl-C must not cut in half."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["uninterrupted"]


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

"""One process at a time, by a lock of the filesystem that ends with the process."""

from __future__ import annotations

import fcntl
import logging

from curator_dali.errors import OutputError

__all__ = ["lock"]

logger = logging.getLogger(__name__)


def lock(descriptor: int, path: str, taken: str) -> None:
    """Lock an open file or folder until it is closed; where the filesystem has no locks, warn and go on.

    Args:
        descriptor: The open file.
        path: Its path, for the warning.
        taken: What to say if another process has the lock.

    Raises:
        OutputError: Another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(taken) from error
    except OSError as error:
        logger.warning("%s: this filesystem has no locks (%s): let one process at a time write to it", path, error)

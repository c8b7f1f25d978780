"""Reading of whole local files, and failures that say nothing of a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curator_dali.io.files import open_regular
from curator_dali.io.remote import is_remote

__all__ = ["OutsideError", "is_unread", "read_bytes", "read_file"]

# Failures that the next read of an unchanged file meets again: it may not be read, is too large, a folder, a device.
_LASTING = frozenset(
    [errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EFBIG]
)


class OutsideError(ValueError):
    """A file that a data set names lies outside the data set."""


def read_file(path: str, *, inside: Sequence[str] = (), limit: int | None = None) -> NDArray[np.uint8] | BaseException:
    """Read a local regular file into a writable array of its own; a failure is returned, not raised.

    Args:
        path: The file; links are followed.
        inside: Real paths of folders. If there are any, the file must lie in one of these, links resolved.
        limit: The most bytes that the file may have; None for any number.
    """
    try:
        fd = open_regular(path, limit)
        try:
            if inside:
                real = os.readlink(f"/proc/self/fd/{fd}")  # of what was opened, so that nobody can swap a link
                if not any(real.startswith(f"{folder.rstrip('/')}/") for folder in inside):
                    return OutsideError(f"{path} is a link to {real}")
            size = os.fstat(fd).st_size
            data = np.empty(size, np.uint8)
            view, done = data.data, 0
            while done < size:
                count = os.readv(fd, [view[done:]])
                if count == 0:
                    return OSError(f"{path} became shorter while it was read ({done} of {size} bytes)")
                done += count
        finally:
            os.close(fd)
    except (OSError, MemoryError) as error:
        return error
    return data


def read_bytes(path: str, limit: int | None = None) -> bytes | BaseException:
    """Read a local file of at most `limit` bytes; a failure is returned, not raised."""
    result = read_file(path, limit=limit)
    return result if isinstance(result, BaseException) else result.tobytes()


def is_unread(error: BaseException, url: str, *, listed: bool = True, readable: bool | None = None) -> bool:
    """Whether a failed read says nothing of the file's content, so that a later read may succeed.

    Args:
        error: The failure; of a remote file the one that was left after all tries.
        url: The file's path or URL.
        listed: Whether the file was there once. A file that nobody has seen may well not exist.
        readable: Whether the file could be read earlier in this process; None where nobody has tried.
    """
    if isinstance(error, OutsideError):
        return False
    if readable is not None:
        return readable
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return listed and (is_remote(url) or not os.path.islink(url))  # a dangling link is as it was
    return is_remote(url) or not (isinstance(error, OSError) and error.errno in _LASTING)

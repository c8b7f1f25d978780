"""Paths of outputs; and what went wrong with one, or differs from an earlier one, in words that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from curator_dali.errors import OutputError
from curator_dali.io import files
from curator_dali.io.remote import is_remote, one_line

__all__ = ["differences", "explained", "join", "prepare_folder", "printable"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def join(folder: str, name: str) -> str:
    """The path or URL of `name` in `folder`."""
    return f"{folder.rstrip('/') or '/'}/{name}" if is_remote(folder) else os.path.join(folder, name)


def printable(text: str) -> str:
    r"""Text in which what is no UTF-8 (undecodable bytes of a file's name, lone surrogates) shows as `\xNN`."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what a filesystem raises about `url` into an `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {url}: {_reason(url, error)}") from error
    except Exception as error:
        if not is_remote(url):
            raise
        raise OutputError(f"cannot write {url}: {one_line(error)}") from error  # stores raise kinds of their own


def prepare_folder(url: str) -> str:
    """Make an output folder, make sure that it can be written to, and clear what killed runs left in it.

    Returns:
        The folder, absolute where it is local.

    Raises:
        OutputError: It cannot be written to.
    """
    folder = url.rstrip("/") if is_remote(url) else os.path.abspath(os.fspath(url))
    with explained(folder):
        files.make_folder(folder)
    files.remove_leftovers(folder)
    return folder


def differences(then: Any, now: Any, where: str) -> list[str]:
    """Where two JSON values differ, a line each: `settings.stages[2].min was 5.0 and is now 6.0`."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*then, *now])
        pairs = [(f"{where}.{name}", then.get(name, _ABSENT), now.get(name, _ABSENT)) for name in names]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = [(f"{where}[{number}]", *pair) for number, pair in enumerate(zip(then, now, strict=True))]
    elif then == now and isinstance(then, bool) == isinstance(now, bool):
        return []
    else:
        return [f"{where} was {_short(then)} and is now {_short(now)}"]
    return [line for inner, old, new in pairs for line in differences(old, new, inner)]


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _reason(url: str, error: OSError) -> str:
    if error.errno in _FULL:
        free = ""
        if not is_remote(url):
            usage = shutil.disk_usage(_existing(url))
            free = f" ({usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free)"
        return f"the disk is full{free}. What is finished stays: make room, and run the same command again"
    if error.errno == errno.EFBIG:
        return "it is larger than this process may write (see ulimit -f), or than the filesystem allows"
    if error.errno in _FORBIDDEN:
        return f"{error.strerror}. Choose a folder that you may write to, or change its permissions"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{error.strerror}: a file stands where a folder should be"
    return error.strerror or one_line(error)


def _existing(path: str) -> str:
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    return path or "/"

"""Files of an output, here or behind fsspec: paths, listing, reading, comparing, and failures in words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from curator_dali.errors import OutputError
from curator_dali.io.files import Written, filesystem, make_folder, open_regular, read_regular, remove_leftovers
from curator_dali.io.ranges import Storage
from curator_dali.io.remote import LARGEST_FILE, PATIENCE, is_remote, one_line, retry

T = TypeVar("T")

_FILES_AT_ONCE = 1000  # of a remote store
_RETRY_DELAYS = (0.1, 0.5, 2.0)  # seconds before the 2nd, 3rd and 4th try
_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS)


def join(folder: str, name: str) -> str:
    """The path or URL of `name` in `folder`."""
    return f"{folder.rstrip('/') or '/'}/{name}" if is_remote(folder) else os.path.join(folder, name)


def prepare_folder(url: str) -> str:
    """Make an output folder, make sure that it can be written to, and clear what killed runs left in it.

    Returns:
        The folder, absolute where it is local.

    Raises:
        OutputError: It cannot be written to.
    """
    folder = url.rstrip("/") if is_remote(url) else os.path.abspath(os.fspath(url))
    with explained(folder):
        make_folder(folder)
    remove_leftovers(folder)
    return folder


def listing(folder: str) -> dict[str, int]:
    """Name -> size of the files right in a folder; empty where there is no folder."""
    if is_remote(folder):
        fs, path = filesystem(folder, only_read=True)
        fs.invalidate_cache(path)
        try:
            found = _ask(folder, lambda: fs.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        return {info["name"].rpartition("/")[2]: int(info["size"] or 0) for info in found if info["type"] == "file"}
    sizes = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                with contextlib.suppress(FileNotFoundError):
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def names(folder: str) -> list[str]:
    """Names of what is right in a folder, in no order; empty where there is no folder."""
    if is_remote(folder):
        return list(listing(folder))
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def open_input(url: str) -> IO[bytes]:
    """Open a file for reading; a failure is an `OutputError`."""
    with _refused("read", url):
        if is_remote(url):
            fs, path = filesystem(url, only_read=True)
            return _ask(url, lambda: fs.open(path, "rb"))
        return os.fdopen(open_regular(url), "rb")


def read(url: str) -> bytes | None:
    """A whole file, or None where there is none."""
    with _refused("read", url), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if is_remote(url):
            fs, path = filesystem(url, only_read=True)
            fs.invalidate_cache(path.rpartition("/")[0])  # s3fs asks a listing of before for the size
            return _ask(url, lambda: fs.cat_file(path))  # type: ignore[no-any-return]
        return read_regular(url, LARGEST_FILE)
    return None


def read_many(folder: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of files of a folder, in order; those that are gone meanwhile are left out.

    Raises:
        OutputError: One cannot be read.
    """
    if not is_remote(folder):
        for name in names:
            data = read(join(folder, name))
            if data is not None:
                yield name, data
        return
    storage = Storage()
    for start in range(0, len(names), _FILES_AT_ONCE):
        some = names[start : start + _FILES_AT_ONCE]
        found = storage.cat([(join(folder, name), None, None) for name in some])
        for name, value in zip(some, found, strict=True):
            if isinstance(value, FileNotFoundError):
                continue
            if isinstance(value, BaseException):
                raise OutputError(f"cannot read {join(folder, name)}: {one_line(value)}") from value
            yield name, value


def remove(url: str) -> None:
    """Remove a file, if it is there; a failure is an `OutputError`."""
    with _refused("remove", url), contextlib.suppress(FileNotFoundError):
        if is_remote(url):
            fs, path = filesystem(url)
            _ask(url, lambda: fs.rm_file(path))
        else:
            os.unlink(url)


def remove_folder(url: str) -> None:
    """Remove a folder and all that is in it, if it is there; a failure is an `OutputError`."""
    with _refused("remove", url), contextlib.suppress(FileNotFoundError):
        if is_remote(url):
            fs, path = filesystem(url)
            _ask(url, lambda: fs.rm(path, recursive=True))
            return
        while os.path.lexists(url):
            with contextlib.suppress(FileNotFoundError):  # somebody else removes, too
                shutil.rmtree(url)


def compare(url: str, file: Written, size: int | None, deep: bool) -> str:
    """Describe how a file differs from its record `file`; empty if it does not.

    `size` is what the listing says, None where the file is missing. `deep`: whether to compare its content's hash too.
    """
    if size is None:
        return f"{file.name} is missing"
    if size != file.size:
        return f"{file.name} has {size} bytes instead of {file.size}"
    if deep and file.blake2b:
        digest = hashlib.blake2b(digest_size=16)
        with open_input(url) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != file.blake2b:
            return f"{file.name} has other content than was written"
    return ""


def _ask(url: str, function: Callable[[], T]) -> T:
    """Call a function that asks a remote filesystem, again where it fails."""
    return retry(function, _RETRY_DELAYS, (ValueError, NotImplementedError), url=url, patience=PATIENCE)


@contextmanager
def _refused(verb: str, url: str) -> Iterator[None]:
    """Turn any failure to read or remove a file into an `OutputError`."""
    try:
        yield
    except Exception as error:
        raise OutputError(f"cannot {verb} {url}: {one_line(error)}") from error


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


def _reason(url: str, error: OSError) -> str:
    if error.errno in _FULL_ERRORS:
        free = ""
        if not is_remote(url):
            usage = shutil.disk_usage(_existing(url))
            free = f" ({usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free)"
        return f"the disk is full{free}. What is finished stays: make room, and run the same command again"
    if error.errno == errno.EFBIG:
        return "it is larger than this process may write (see ulimit -f), or than the filesystem allows"
    if error.errno in _FORBIDDEN_ERRORS:
        return f"{error.strerror}. Choose a folder that you may write to, or change its permissions"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{error.strerror}: a file stands where a folder should be"
    return error.strerror or one_line(error)


def _existing(path: str) -> str:
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    return path or "/"


def printable(text: str) -> str:
    r"""Text in which what is no UTF-8 (undecodable bytes of a file's name, lone surrogates) shows as `\xNN`."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


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

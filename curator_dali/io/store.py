"""Listing, reading and comparing files of an output, here or behind fsspec."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import IO, Any

from curator_dali.errors import OutputError
from curator_dali.io.explain import join
from curator_dali.io.files import Written, filesystem, open_regular, read_regular
from curator_dali.io.remote import is_remote, one_line

__all__ = ["compare", "listing", "names", "open_input", "read", "read_many", "remove", "remove_folder"]

_AT_ONCE = 1000  # remote files
_MOST = 1 << 30  # bytes of a file that is read as a whole: records of a million parts have less


def listing(folder: str) -> dict[str, int]:
    """Name -> size of the files right in a folder; empty where there is no folder."""
    if is_remote(folder):
        fs, path = filesystem(folder)
        fs.invalidate_cache(path)
        try:
            found = fs.ls(path, detail=True)
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
    """Open a file for reading.

    Raises:
        OutputError: It cannot be opened.
    """
    try:
        if is_remote(url):
            fs, path = filesystem(url)
            return fs.open(path, "rb")  # type: ignore[no-any-return]
        return os.fdopen(open_regular(url), "rb")
    except Exception as error:
        raise OutputError(f"cannot read {url}: {one_line(error)}") from error


def read(url: str) -> bytes | None:
    """A whole file, or None where there is none."""
    try:
        if is_remote(url):
            fs, path = filesystem(url)
            return fs.cat_file(path)  # type: ignore[no-any-return]
        return read_regular(url, _MOST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        raise OutputError(f"cannot read {url}: {one_line(error)}") from error


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
    fs, path = filesystem(folder)
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        found: dict[str, Any] = fs.cat([f"{path}/{name}" for name in some], on_error="return")
        by_name = {key.rpartition("/")[2]: value for key, value in found.items()}
        for name in some:
            value = by_name[name]
            if isinstance(value, FileNotFoundError):
                continue
            if isinstance(value, BaseException):
                raise OutputError(f"cannot read {join(folder, name)}: {one_line(value)}") from value
            yield name, value


def remove(url: str) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputError: It cannot be removed.
    """
    try:
        if is_remote(url):
            fs, path = filesystem(url)
            fs.rm_file(path)
        else:
            os.unlink(url)
    except FileNotFoundError:
        pass
    except Exception as error:
        raise OutputError(f"cannot remove {url}: {one_line(error)}") from error


def remove_folder(url: str) -> None:
    """Remove a folder and all that is in it, if it is there.

    Raises:
        OutputError: It cannot be removed.
    """
    try:
        if is_remote(url):
            fs, path = filesystem(url)
            fs.rm(path, recursive=True)
        else:
            while os.path.lexists(url):
                with contextlib.suppress(FileNotFoundError):  # somebody else removes, too
                    shutil.rmtree(url)
    except FileNotFoundError:
        pass
    except Exception as error:
        raise OutputError(f"cannot remove {url}: {one_line(error)}") from error


def compare(url: str, file: Written, size: int | None, deep: bool) -> str:
    """What is wrong with a file; empty if nothing.

    Args:
        url: Where it is.
        file: What it should be.
        size: Its size, None where it is missing.
        deep: Whether to compare its content's hash too.
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

"""Files that the rows of a Parquet file name: which of them are read, and that nothing of others comes out."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from functools import cached_property
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from curator_dali.io.ranges import Storage, strip_query
from curator_dali.io.remote import is_remote, one_line
from curator_dali.sources.reading import OutsideError, is_unread, read_file
from curator_dali.sources.samples import sniff_extension

__all__ = ["NamedFiles", "read_named"]

# Bytes of a file that a row names. A batch's files are in memory at once, and the largest photographs have 100 MB.
_LIMIT = 256 << 20
_SHOWN = 200  # characters of a path
_HEAD = 32
_LOCAL = ("file://", "local://")


class NamedFiles:
    """Image files that the rows of one Parquet file name by a path or a URL.

    A relative path counts from the folder of the Parquet file. Files outside this folder are not read, nor are links
    that lead out of it. Links may lead to the folder that the Parquet file itself is a link into: the cache of the
    Hugging Face Hub has its files there.

    Args:
        url: The Parquet file.
        allow_outside: Whether files anywhere may be read, of any store.
    """

    def __init__(self, url: str, allow_outside: bool) -> None:
        self._args = url, allow_outside
        self._url = _strip_local(url)
        self._remote = is_remote(self._url)
        self._allow_outside = allow_outside

    def __reduce__(self) -> tuple[type[NamedFiles], tuple[str, bool]]:
        return NamedFiles, self._args  # links may lead elsewhere on another machine

    @cached_property
    def inside(self) -> Sequence[str]:
        """Real paths of the folders that a local file must lie in; none where a file may lie anywhere."""
        if self._remote or self._allow_outside:
            return ()
        folders = os.path.dirname(self._url), os.path.dirname(os.path.realpath(self._url))
        return tuple(dict.fromkeys(map(os.path.realpath, folders)))

    def resolve(self, name: str) -> str:
        """Resolve a name to a path or a URL.

        Raises:
            OutsideError: The file lies elsewhere, and must not be read.
        """
        plain = _strip_local(name)
        if self._allow_outside:
            return plain if is_remote(plain) or plain.startswith("/") else self._below(plain)
        path = self._resolve_remote(name) if self._remote else self._resolve_local(plain)
        if path is None:
            raise OutsideError("the file lies elsewhere")
        return path

    def _resolve_local(self, name: str) -> str | None:
        if is_remote(name):
            return None
        path = os.path.normpath(self._below(name))
        above = os.path.dirname(self._url), *self.inside
        return path if any(path.startswith(f"{folder.rstrip('/')}/") for folder in above) else None

    def _resolve_remote(self, name: str) -> str | None:
        folder = self._below("")
        name = name[len(folder) :] if name.startswith(folder) else name
        if is_remote(name):  # elsewhere, or a chain ("x::http://host") that would lead there
            return None
        for spelt in (name, unquote(name)):  # a server may take "%2e%2e" for "..", and a backslash for a slash
            if f"{posixpath.normpath(spelt.replace(chr(92), '/'))}/".startswith(("../", "/")):
                return None
        return self._below(name)

    def _below(self, name: str) -> str:
        """The path or URL of a name that counts from the Parquet file's folder."""
        if not self._remote:
            return os.path.join(os.path.dirname(self._url), name)
        # Of "zip://a.parquet::s3://b/c.zip" the path is in the first URL, of "filecache::s3://b/a.parquet" in the last.
        first, chain, last = self._url.partition("::")
        path, rest = (first, f"::{last}") if chain and "://" in first else (strip_query(self._url), "")
        return f"{path.rpartition('/')[0]}/{name}{rest}"


def read_named(
    wanted: Mapping[int, tuple[NamedFiles, str]], storage: Storage
) -> dict[int, tuple[NDArray[np.uint8] | str, bool]]:
    """Read files that rows name. Of a file that is no image, no byte stands in a reason.

    Args:
        wanted: Row -> the files that the row may name, and the name.
        storage: A reader of remote files.

    Returns:
        Row -> the bytes, or the reason why there are none; and whether a later read may succeed.
    """
    found: dict[int, NDArray[np.uint8] | BaseException] = {}
    paths: dict[int, str] = {}
    for row, (files, name) in wanted.items():
        try:
            paths[row] = files.resolve(name)
        except OutsideError as error:
            found[row] = error
    remote = {row: path for row, path in paths.items() if is_remote(path)}
    if remote:
        got = storage.cat([(url, None, None) for url in remote.values()])
        for row, data in zip(remote, got, strict=True):
            found[row] = data if isinstance(data, BaseException) else np.frombuffer(bytearray(data), np.uint8)
    for row in paths.keys() - remote.keys():
        found[row] = read_file(paths[row], inside=wanted[row][0].inside, limit=_LIMIT)
    return {row: _judge(name, paths.get(row, ""), found[row]) for row, (_, name) in wanted.items()}


def _strip_local(url: str) -> str:
    """The path of a local file's URL; another URL, or a path, as it is."""
    return next((url[len(start) :] for start in _LOCAL if url.startswith(start)), url)


def _judge(name: str, path: str, data: NDArray[np.uint8] | BaseException) -> tuple[NDArray[np.uint8] | str, bool]:
    """The bytes of a named file, or the reason why these are none of an image; and whether a later read may succeed."""
    shown = repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
    if isinstance(data, OutsideError):
        reason = (
            f"names a file outside: {shown} is not in the folder of the Parquet file, or a link that leads out of it. "
            "To read it, give allow_outside=True to open_source() or ParquetSource(), if you trust who made the file"
        )
        return reason, False
    if isinstance(data, BaseException):
        return f"no image bytes, and its file cannot be read: {one_line(data)}", is_unread(data, path, listed=False)
    if len(data) == 0:
        return "the image has no bytes", False
    if not sniff_extension(data[:_HEAD].data, ""):  # whoever decodes it would quote how it begins
        return f"not an image: the file {shown} begins like none", False
    return data, False

"""An output may not lie among the files of its data set: a later run would take what it holds for data."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from curator_dali.errors import OutputError
from curator_dali.io.remote import is_remote
from curator_dali.outputs.manifest import part_name
from curator_dali.sources.base import Source
from curator_dali.sources.listing import expand_braces
from curator_dali.sources.mixture import Mixture
from curator_dali.sources.subset import Subset

__all__ = ["check_file", "check_out"]

_Place = tuple[str, ...]
"""The protocol ("" on this machine) and the names from the root down to a file or folder, links followed."""

_MAGIC = re.compile(r"[*?\[]")
_PROTOCOLS = {"file": "", "local": "", "s3a": "s3", "gcs": "gs"}
_PART = part_name(0, 8192)
_WRITTEN = (  # a glob that matches the output itself would open it as a folder of tars
    (),
    *((f"{_PART}-{shard}.tar",) for shard in ("0000", "0001")),
    (f"{_PART}.parquet",),
    ("_scored", f"{_PART}.parquet"),
)


def check_out(
    out: str, source: Source | None = None, *, origin: Mapping[str, Any] | None = None, folders: Sequence[str] = ()
) -> None:
    """Refuse an output that lies in its data set, lies around it, or holds what the data set's globs would find.

    Args:
        out: The output's folder.
        source: The data set, where it is open.
        origin: How the data set is opened, where it is not open.
        folders: Other folders that are read.

    Raises:
        OutputError: The output is one of those places.
    """
    files = _check(out, _WRITTEN, source, origin, folders)
    place = _find_place(out)
    for folder in sorted({url.rpartition("/")[0] for url in files}):
        if _find_place(folder)[: len(place)] == place:
            raise _refuse(out, f"holds files of the data set, in {folder!r}")


def check_file(path: str | os.PathLike[str], source: Source) -> None:
    """Refuse to write a file that is of the data set, or would be taken for one.

    Raises:
        OutputError: The file is one of the data set's, lies in its folder, or matches its glob.
    """
    path = os.fspath(path)
    name = os.path.basename(path)
    same = [url for url in _check(path, ((),), source) if url.rpartition("/")[2] == name]
    if _find_place(path) in map(_find_place, same):
        raise _refuse(path, "is a file of the data set")


def _check(
    out: str,
    written: Sequence[_Place],
    source: Source | None,
    origin: Mapping[str, Any] | None = None,
    folders: Sequence[str] = (),
) -> set[str]:
    """Refuse an output by the globs and folders of a data set; returns the files that it has besides."""
    place = _find_place(out)
    locations = () if source is None else source.locations
    folders = [*folders, *(url for url in locations if url.endswith("/"))]
    files = {url for url in locations if not url.endswith("/")}
    for spec in _specs(source, origin):
        if _MAGIC.search(spec) and spec not in files and not os.path.exists(spec):
            if any(_matches(_find_pattern(spec), place + names) for names in written):
                raise _refuse(out, f"is where {spec!r} looks for the data set's files")
        elif spec in files or (not is_remote(spec) and not os.path.isdir(spec)):
            files.add(spec)
        else:
            folders.append(spec)
    for folder in folders:
        where = _find_place(folder)
        if place[: len(where)] == where or where[: len(place)] == place:
            how = "is" if place == where else "lies in" if len(place) > len(where) else "lies around"
            raise _refuse(out, f"{how} the folder {folder.rstrip('/')!r}, which is read")
    return files


def _refuse(out: str, why: str) -> OutputError:
    return OutputError(
        f"the output {out!r} {why}: a later run would take what it holds for data. Choose a folder elsewhere"
    )


def _specs(source: Source | None, origin: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Iterate over the absolute paths, URLs and globs that a data set was opened by, brace lists written out."""
    if isinstance(source, Mixture):
        for part in source.sources.values():
            yield from _specs(part)
        return
    if isinstance(source, Subset):
        yield from _specs(source.source)
        return
    origin = origin if source is None else source.origin
    while origin is not None and "of" in origin:
        origin = origin["of"]
    for spec in (origin or {}).get("spec", ()):
        yield from [spec] if not is_remote(spec) and os.path.exists(spec) else expand_braces(spec)


def _find_place(url: str) -> _Place:
    url = url.rpartition("::")[2]
    protocol, separator, path = url.partition("://")
    if separator:
        protocol = _PROTOCOLS.get(protocol, protocol)
        path = path.partition("?")[0] if protocol.startswith("http") else path
    else:
        protocol, path = "", url
    path = posixpath.normpath(f"/{path}") if protocol else os.path.realpath(os.path.expanduser(path or "/"))
    return protocol, *filter(None, path.split("/"))


def _find_pattern(pattern: str) -> _Place:
    """Find the place of a glob. Links are followed in the folders before its first wildcard."""
    fixed = pattern[: _MAGIC.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
    return *_find_place(fixed), *filter(None, pattern[len(fixed) :].split("/"))


def _matches(pattern: _Place, place: _Place) -> bool:
    if not pattern or not place:
        return not place and all(name == "**" for name in pattern)
    if pattern[0] == "**":
        return _matches(pattern[1:], place) or _matches(pattern, place[1:])
    return fnmatchcase(place[0], pattern[0]) and _matches(pattern[1:], place[1:])

"""Files that the index of a data set knows, found by the names and patterns of a user without a listing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from curator_dali.errors import SourceError
from curator_dali.io import is_http, is_remote, strip_query
from curator_dali.sources.base import is_image
from curator_dali.sources.dataset_index import FOLDER_KIND, PLACES_OF_INDEX, DatasetIndex, find_reference, open_index
from curator_dali.sources.listing import Pattern, advise_on_protocol, common_folder, expand_braces, is_glob, list_names


class Known(NamedTuple):
    """The index of a remote data set.

    Attributes:
        table: The index; None where there is none.
        folder: Where it lies, or was looked for.
        urls: The files, where the index has them all; the folder of images that it is of.
        patterns: What names them.
    """

    table: DatasetIndex | None
    folder: str
    urls: list[str]
    patterns: list[Pattern]


def find_known(texts: Sequence[str], index: str) -> Known | None:
    """Find remote files by an index: no store is asked for a listing, or for a single file.

    Args:
        texts: URLs, globs, brace lists and folders.
        index: See `dataset_index.find_reference`.

    Returns:
        The index, with `urls` where a listing would find no others; None where no index was looked for.
    """
    if not texts or index == "none" or not all(is_remote(text) and not advise_on_protocol(text) for text in texts):
        return None
    if index in PLACES_OF_INDEX and any(is_http(text) and "?" in text for text in texts):
        return None  # a signature is of one file
    patterns = [Pattern(url, is_glob(url)) for text in texts for url in expand_braces(text)]
    heads = list(dict.fromkeys(map(_folder_of, patterns)))
    reference = None if None in heads else find_reference([f"{str(head).rstrip('/')}/" for head in heads], index)
    if reference is None:
        return None
    found = open_index(reference)
    urls: list[str] = []
    if found is None:
        return Known(found, reference.folder, [], patterns)
    if found.kind == FOLDER_KIND:
        whole = len(patterns) == 1 and not patterns[0].is_glob and found.table.is_listing_of(patterns[0].url)
        return Known(found, reference.folder, [patterns[0].url] if whole else [], patterns)
    for pattern in patterns:
        names = _match(found, pattern)
        if names is None:
            return Known(found, reference.folder, [], patterns)
        if not pattern.is_glob and names == [relative_pattern(strip_query(pattern.url), found.root)]:
            urls.append(pattern.url)  # with its signature
        else:
            urls += [f"{found.root.rstrip('/')}/{name}" for name in names]
    return Known(found, reference.folder, urls, patterns)


def _folder_of(pattern: Pattern) -> str | None:
    """The folder in which the index of a pattern's files would lie; None for a pattern of no shards."""
    path = strip_query(pattern.url)
    if pattern.is_glob:
        return pattern.head
    if path.lower().endswith((".tar", ".parquet", ".pq")):
        return path.rpartition("/")[0]
    if is_image(path) or (is_http(path) and not path.endswith("/")):
        return None
    return path


def _match(index: DatasetIndex, pattern: Pattern) -> list[str] | None:
    """Names of the files that a pattern stands for; None where a listing might have others."""
    name = relative_pattern(pattern.url if pattern.is_glob else strip_query(pattern.url), index.root)
    if name is None:
        return None
    if not pattern.is_glob and name in index.row_of:
        return [name]
    whole = name in index.covers or ("" in index.covers and pattern.is_glob and "/" not in name)
    matching = select_names(name, index.names) if whole else []
    return matching or None


def select_names(pattern: str, names: Sequence[str]) -> list[str]:
    """Select the files that a glob or folder stands for, in order; both are relative to the root of an index.

    Of a folder, and of one that a glob matches, these are the files right in it if there are any, else all below.
    """
    parts = pattern.split("/") if pattern else []
    found: set[str] = set()
    folders: dict[str, list[str]] = {}
    for name in names:
        split = name.split("/")
        for depth in range(len(split)):
            if _fits(parts, split[:depth]):
                folders.setdefault("/".join(split[:depth]), []).append(name)
        if _fits(parts, split):
            found.add(name)
    for folder, below in folders.items():
        depth = folder.count("/") + 1 if folder else 0
        found.update([name for name in below if name.count("/") == depth] or below)
    return sorted(found)


def _fits(parts: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the components of a glob, of which `**` is any number, are those of a path."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(parts[1:], names[start:]) for start in range(len(names) + 1))
    is_first = bool(names) and (parts[0] == names[0] or fnmatchcase(names[0], parts[0]))
    return is_first and _fits(parts[1:], names[1:])


def relative_pattern(url: str, root: str) -> str | None:
    """A pattern or folder relative to a root; None where it is not below the root."""
    url, root = url.rstrip("/"), root.rstrip("/")
    if url == root:
        return ""
    return url[len(root) + 1 :] if url.startswith(f"{root}/") else None


def covers_of(patterns: Sequence[Pattern], root: str) -> list[str]:
    """The patterns whose files an index below a root has all: globs and folders."""
    found = []
    for url, by_glob in patterns:
        path = url if is_remote(url) else os.path.abspath(url)
        name = relative_pattern(path, root)
        is_file = not by_glob and strip_query(path).lower().endswith((".tar", ".parquet", ".pq"))
        if name is not None and not is_file:
            found.append(name)
    return sorted(set(found))


def check_vanished(index: DatasetIndex, patterns: Sequence[Pattern], urls: Sequence[str]) -> None:
    """Refuse a local folder or glob that lacks files of its index.

    Raises:
        SourceError: Files are gone; they are named.
    """
    here = set(urls)
    covered = [pattern for pattern in covers_of(patterns, index.root) if pattern in index.covers]
    wanted = sorted({name for pattern in covered for name in select_names(pattern, index.names)})
    gone = [name for name in wanted if f"{index.root}/{name}" not in here]
    if gone:
        raise SourceError(
            f"{len(gone)} of {len(index)} files of the index {index.folder} are gone: {list_names(gone)}. Bring these "
            "back, or run `curator-dali prepare` where the data set is meant to have fewer files"
        )


def root_of(urls: Sequence[str]) -> str:
    """The folder that files lie in, without a signature."""
    return strip_query(common_folder([url if is_remote(url) else os.path.abspath(url) for url in urls]))

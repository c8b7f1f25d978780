"""`open_source`: from what a user writes to a `Source`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from curator_dali.errors import SourceError
from curator_dali.sources.base import Source
from curator_dali.sources.folder import FolderSource, list_local
from curator_dali.sources.memory import MemorySource
from curator_dali.sources.parquet import ParquetSource
from curator_dali.sources.samples import is_image
from curator_dali.sources.storage import filesystem, is_remote, one_line
from curator_dali.sources.subset import Subset
from curator_dali.sources.tar import TarSource

__all__ = ["expand_braces", "open_source", "reopen"]

_ACCEPTED = (
    "a folder of images, .tar or .parquet files, a glob ('shards/*.tar'), a brace list ('shards/{00000..00099}.tar'), "
    "a .tar, .parquet or image file, a URL of any of these that fsspec opens (s3://, gs://, http://, ...), a list of "
    "these of one kind, encoded images (a list of bytes, or a mapping from id to bytes), or a Source"
)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_GLOB = re.compile(r"[*?\[]")
_MOST_MISSING = 5


def open_source(
    spec: Any,
    *,
    label_from_folder: bool = True,
    image_column: str | None = None,
    index: Literal["cache", "beside", "none"] = "cache",
    name: str | None = None,
) -> Source:
    """Open whatever holds encoded images.

    Args:
        spec: A folder of images, or of tars or Parquet files; a glob; a brace list as in WebDataset; a file; a URL of
            any of these that fsspec opens; a list of these, all of one kind; encoded images as a list of bytes or a
            mapping from id to bytes; or a `Source`, which is returned as it is. Globs and folders give their files in
            the order of their names, lists and brace lists in their own.
        label_from_folder: For folders of images: see `FolderSource`.
        image_column: For Parquet: see `ParquetSource`.
        index: For tars: see `TarSource`.
        name: The data set's name, instead of one made of the files' names.

    Raises:
        SourceError: There is nothing of that name, or it is nothing that can be read.
    """
    if isinstance(spec, Source):
        return spec
    source = _open(spec, label_from_folder, image_column, index, name)
    specs = [spec] if isinstance(spec, (str, os.PathLike)) else spec
    if isinstance(specs, Sequence) and all(isinstance(item, (str, os.PathLike)) for item in specs):
        found = [_absolute(os.fspath(item)) for item in specs]
        options = {"label_from_folder": label_from_folder, "image_column": image_column, "index": index, "name": name}
        source.origin = {"spec": found, **options}
    return source


def reopen(origin: Mapping[str, Any]) -> Source:
    """Open a source again from its `origin`.

    Raises:
        SourceError: It is no longer there.
    """
    if "rows" in origin:
        return Subset(reopen(origin["of"]), slice(*origin["rows"]))
    options = {name: value for name, value in origin.items() if name != "spec"}
    spec = origin["spec"]
    return open_source(spec[0] if len(spec) == 1 else spec, **options)


def _absolute(url: str) -> str:
    return url if is_remote(url) else os.path.abspath(os.path.expanduser(url))


def _open(
    spec: Any,
    label_from_folder: bool,
    image_column: str | None,
    index: Literal["cache", "beside", "none"],
    name: str | None,
) -> Source:
    if isinstance(spec, Mapping):
        return MemorySource(spec, name=name or "memory")
    if isinstance(spec, (bytes, bytearray, np.ndarray)):
        return MemorySource([spec], name=name or "memory")
    items: Any = [spec] if isinstance(spec, (str, os.PathLike)) else spec
    if not isinstance(items, Sequence) or not items:
        raise SourceError(f"cannot open {spec!r} as a source: give {_ACCEPTED}")
    if all(isinstance(item, (bytes, bytearray, memoryview, np.ndarray)) for item in items):
        return MemorySource(items, name=name or "memory")
    wrong = [item for item in items if not isinstance(item, (str, os.PathLike))]
    if wrong:
        raise SourceError(f"cannot open {wrong[0]!r} ({type(wrong[0]).__name__}) as a source: give {_ACCEPTED}")

    found: list[tuple[str, str]] = []  # (kind, url)
    for item in items:
        found += _find(os.fspath(item))
    kinds = {kind for kind, _ in found}
    urls = [url for _, url in found]
    if len(kinds) > 1:
        raise SourceError(f"{spec!r} holds {' and '.join(sorted(kinds))} files: give one kind, such as a glob '*.tar'")
    kind = kinds.pop()
    if kind == "tar":
        return TarSource(urls, name=name or _folder_name(items), index=index)
    if kind == "parquet":
        return ParquetSource(urls, name=name or _folder_name(items), image_column=image_column)
    if kind == "image":
        urls = [url if is_remote(url) else os.path.abspath(url) for url in urls]
        root = _common_folder(urls)
        files = [url[len(root) :].lstrip("/") for url in urls]
        return FolderSource(root, files=files, label_from_folder=label_from_folder, name=name)
    if len(urls) > 1:
        raise SourceError(f"cannot open {len(urls)} folders of images as one source: give the folder that holds them")
    return FolderSource(urls[0], label_from_folder=label_from_folder, name=name)


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{000..099}` (and `{0..8..2}`) as a shell does; other braces stand for themselves."""
    for match in _BRACES.finditer(pattern):
        body = match[1]
        if numbers := _RANGE.fullmatch(body):
            begin, end, step = int(numbers[1]), int(numbers[2]), abs(int(numbers[3] or 1)) or 1
            padded = any(len(text) > 1 and text.lstrip("-").startswith("0") for text in (numbers[1], numbers[2]))
            width = max(len(numbers[1]), len(numbers[2])) if padded else 0
            step = step if end >= begin else -step
            choices = [f"{value:0{width}d}" for value in range(begin, end + (1 if step > 0 else -1), step)]
        elif "," in body:
            choices = body.split(",")
        else:
            continue
        head, tail = pattern[: match.start()], pattern[match.end() :]
        return [url for choice in choices for url in expand_braces(f"{head}{choice}{tail}")]
    return [pattern]


def _find(text: str) -> list[tuple[str, str]]:
    """What one text stands for, as (kind, URL); kind is `tar`, `parquet`, `image` or `folder` (of images)."""
    if not text:
        raise SourceError(f"cannot open {text!r} as a source: give {_ACCEPTED}")
    if not is_remote(text):
        text = os.path.expanduser(text)
    literal = not is_remote(text) and os.path.exists(text)
    urls = [text] if literal else expand_braces(text)
    found: list[tuple[str, str]] = []
    missing: list[str] = []
    for url in urls:
        is_glob = bool(_GLOB.search(url.partition("?")[0] if url.startswith("http") else url))
        if is_glob and not literal:
            matches = _glob(url)
            missing += [] if matches else [url]
            found += [(_kind(match), match) for match in matches]
        elif _is_folder(url):
            found += _in_folder(url)
        elif is_remote(url) or os.path.exists(url):  # whether a remote file is there shows when it is opened
            found.append((_kind(url), url))
        else:
            missing.append(url)
    if missing:
        shown = ", ".join(map(repr, missing[:_MOST_MISSING])) + (", ..." if len(missing) > _MOST_MISSING else "")
        raise SourceError(
            f"nothing there: {shown}{f' (of {text!r})' if urls != [text] else ''}. A source is {_ACCEPTED}; "
            f"relative paths count from {os.getcwd()!r}"
        )
    return found


def _kind(url: str) -> str:
    path = (url.partition("?")[0] if "://" in url else url).lower()
    if path.endswith(".tar"):
        return "tar"
    if path.endswith((".parquet", ".pq")):
        return "parquet"
    if path.endswith(_COMPRESSED):
        raise SourceError(
            f"{url!r} is a compressed tar, which cannot be read in any order: unpack it first "
            "(gunzip, unxz or zstd -d make a .tar of it; images gain nothing from compression)"
        )
    if is_image(path):
        return "image"
    raise SourceError(f"cannot tell what {url!r} is by its ending: a source is {_ACCEPTED}")


def _glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    fs, path = filesystem(pattern)
    try:
        return sorted(_url_of(fs, pattern, match) for match in fs.glob(path))
    except Exception as error:
        raise SourceError(f"cannot list {pattern!r}: {one_line(error)}") from error


def _url_of(fs: Any, original: str, path: str) -> str:
    """A URL for a path of a remote filesystem, with what stands before the path in the URL that it was found by."""
    chain, separator, last = original.rpartition("::")
    return f"{chain}{separator}{fs.unstrip_protocol(path) if not separator else _like(last, path)}"


def _like(url: str, path: str) -> str:
    protocol, separator, _ = url.partition("://")
    return path if not separator or path.startswith(f"{protocol}://") else f"{protocol}://{path.lstrip('/')}"


def _is_folder(url: str) -> bool:
    if not is_remote(url):
        return os.path.isdir(url)
    if not url.startswith(("http://", "https://")):
        fs, path = filesystem(url)
        try:
            return bool(fs.isdir(path))
        except Exception as error:
            raise SourceError(f"cannot look at {url!r}: {one_line(error)}") from error
    return url.endswith("/")  # any page can be listed, and a query costs one request for each shard


def _in_folder(folder: str) -> list[tuple[str, str]]:
    """The tars of a folder, or its Parquet files (img2dataset writes both: these have no images), or itself."""
    files = _top_files(folder)
    tars = [file for file in files if file.lower().endswith(".tar")]
    parquets = [file for file in files if file.lower().endswith((".parquet", ".pq"))]
    images = [file for file in files if is_image(file)]
    shards, kind = (tars, "tar") if tars else (parquets, "parquet")
    if shards and images:
        raise SourceError(
            f"{folder!r} holds both {len(shards)} .{kind} and {len(images)} image files: say which, with a glob "
            f"such as {os.path.join(folder, f'*.{kind}')!r}"
        )
    if shards:
        return [(kind, shard) for shard in sorted(shards)]
    if images or is_remote(folder):
        return [("folder", folder)]
    for file in list_local(folder):
        if is_image(file):
            return [("folder", folder)]
        if file.lower().endswith(".tar"):
            tars.append(os.path.join(folder, file))
        elif file.lower().endswith((".parquet", ".pq")):
            parquets.append(os.path.join(folder, file))
    if not tars and not parquets:
        raise SourceError(f"{folder!r} holds no images, .tar or .parquet files: a source is {_ACCEPTED}")
    return [("tar", file) for file in sorted(tars)] or [("parquet", file) for file in sorted(parquets)]


def _top_files(folder: str) -> list[str]:
    if not is_remote(folder):
        return [entry.path for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file()]
    fs, path = filesystem(folder)
    try:
        entries = fs.ls(path, detail=True)
    except Exception as error:
        raise SourceError(f"cannot list {folder!r}: {one_line(error)}") from error
    return [_url_of(fs, folder, entry["name"]) for entry in entries if entry["type"] == "file"]


def _folder_name(items: Sequence[str | os.PathLike[str]]) -> str | None:
    """A folder that was named itself names the data set, whatever lies in it."""
    text = os.fspath(items[0])
    if len(items) > 1 or _GLOB.search(text) or "{" in text or not _is_folder(text):
        return None
    return os.path.basename(os.path.abspath(text) if not is_remote(text) else text.rstrip("/"))


def _common_folder(urls: list[str]) -> str:
    if not is_remote(urls[0]):
        return os.path.commonpath([os.path.dirname(url) for url in urls])
    return os.path.commonprefix(urls).rpartition("/")[0]  # noqa: RUF071 (commonpath does not know "//")

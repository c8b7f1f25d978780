"""`open_source`: from what a user writes to a `Source`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from curator_dali.errors import SourceError
from curator_dali.sources.base import Source
from curator_dali.sources.folder import FolderSource
from curator_dali.sources.labels import warn_of_split_files
from curator_dali.sources.listing import (
    METADATA_FILES,
    OUTPUT,
    Listing,
    common_folder,
    list_beside,
    list_folder,
    list_local,
    stem_of,
    version_of,
    warn_passed_over,
)
from curator_dali.sources.memory import MemorySource
from curator_dali.sources.parquet import ParquetSource
from curator_dali.sources.samples import is_image, sniff_extension
from curator_dali.sources.storage import Storage, filesystem, is_remote, one_line
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
_MOST_SHOWN = 5
_HEAD = 16  # bytes by which images are told
_OTHER, _EMPTY = "other", "empty"  # kinds of what is no source: a file of another ending, a folder without images


class _Match(NamedTuple):
    """What a text of the user's stands for: `tar`, `parquet`, `image`, `folder` (of images) or one of the above."""

    kind: str
    url: str
    by_glob: bool = False
    listing: Listing | None = None


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
            the order of their names, lists and brace lists in their own. Several folders of images, by a glob or a
            list, are class folders of the folder that holds them. A glob passes over files that are no samples, with a
            warning; an image file that is named itself may have any ending.
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

    texts = [os.fspath(item) for item in items]
    found = _sniff([match for text in texts for match in _find(text)])
    kinds = {match.kind for match in found} - {_OTHER, _EMPTY}
    if not kinds:
        _refuse(spec, found)
    passable = kinds == {"image", "folder"} and all(match.by_glob for match in found)
    if len(kinds) > 1 and not passable:
        raise SourceError(f"{spec!r} holds {' and '.join(sorted(kinds))} files: give one kind, such as a glob '*.tar'")
    kind = "image" if "image" in kinds else kinds.pop()
    urls = [match.url for match in found if match.kind == kind]
    shown = ", ".join(texts[:_MOST_SHOWN])
    above = set() if kind == "folder" else _folders_above(urls)
    folders = sum(match.kind == "folder" != kind and match.url not in above for match in found)
    used = set(map(stem_of, urls)) if kind == "image" else set()
    warn_passed_over(shown, [match.url for match in found if match.kind == _OTHER], used, folders)
    if kind in ("tar", "parquet"):
        if label_from_folder and len(urls) > len(texts):
            warn_of_split_files(urls, shown)
        if kind == "tar":
            return TarSource(urls, name=name or _folder_name(items), index=index)
        return ParquetSource(urls, name=name or _folder_name(items), image_column=image_column)
    if kind == "image":
        return _open_images(texts, urls, label_from_folder, name)
    return _open_folders(texts, [match for match in found if match.kind in ("folder", _EMPTY)], label_from_folder, name)


def _folders_above(urls: list[str]) -> set[str]:
    """All folders that files lie in."""
    above: set[str] = set()
    for folder in {url.rpartition("/")[0] for url in urls}:
        while folder and folder not in above:
            above.add(folder)
            folder = folder.rpartition("/")[0]
    return above


def _refuse(spec: Any, found: list[_Match]) -> NoReturn:
    """Raise the reason why nothing that was found can be read."""
    others = [match.url for match in found if match.kind == _OTHER]
    if others:
        raise SourceError(f"cannot tell what {others[0]!r} is by its ending: a source is {_ACCEPTED}")
    raise SourceError(f"{spec!r} holds no images, .tar or .parquet files: a source is {_ACCEPTED}")


def _open_images(texts: list[str], urls: list[str], label_from_folder: bool, name: str | None) -> Source:
    """Image files that were named, or matched by globs, as a source."""
    urls = [url if is_remote(url) else os.path.abspath(url) for url in urls]
    root, by_glob = _root(texts, urls)
    files = [url[len(root) :].lstrip("/") for url in urls]
    listing = None
    if by_glob:
        listing = _list_beside_remote(root, texts) if is_remote(root) else list_beside(root, files)
        if all(_takes_every_folder(pattern, root) for text in texts for pattern in _patterns(text)):
            listing = listing._replace(folders=_folders_in(root))
    return FolderSource(root, files=files, label_from_folder=label_from_folder, name=name, listing=listing)


def _open_folders(texts: list[str], found: list[_Match], label_from_folder: bool, name: str | None) -> Source:
    """A folder of images, or several, which are class folders of the folder that holds them."""
    urls = [match.url.rstrip("/") if is_remote(match.url) else os.path.abspath(match.url) for match in found]
    if len(urls) == 1 and not found[0].by_glob:
        return FolderSource(urls[0], label_from_folder=label_from_folder, name=name, listing=found[0].listing)
    root, _ = _root(texts, [f"{url}/" for url in urls])
    nested = any(lower.startswith(upper) for upper, lower in pairwise(sorted(f"{url}/" for url in urls)))
    if nested or not root.strip("/") or root.endswith(("://", ":")):
        raise SourceError(
            f"cannot open {len(urls)} folders of images as one source where some are the same, lie in each other or "
            "have no folder in common: give the folder that holds them"
        )
    names = (url.rpartition("/")[2] for url in _look_into(root)[0])
    parts = [Listing([name for name in names if name in METADATA_FILES])]
    for url, match in zip(urls, found, strict=True):
        below = url[len(root) :].lstrip("/")
        parts.append((match.listing or list_folder(url)).below(below))
    listing = Listing(
        sorted(path for part in parts for path in part.paths),
        sorted({folder for part in parts for folder in part.folders}),
        {path: version for part in parts for path, version in part.versions.items()},
    )
    return FolderSource(root, label_from_folder=label_from_folder, name=name, listing=listing)


def _root(texts: list[str], urls: list[str]) -> tuple[str, bool]:
    """The folder that ids and classes count from: what stands before the wildcards of globs, else the common folder.

    Returns:
        The folder, and whether all texts are globs.
    """
    patterns = [pattern for text in texts for pattern in _patterns(text)]
    if not all(map(_is_glob, patterns)):
        return common_folder(urls), False
    heads = []
    for pattern in patterns:
        head = _GLOB.split(pattern, maxsplit=1)[0].rpartition("/")[0]
        heads.append(f"{head if is_remote(pattern) else os.path.abspath(head or ('/' if pattern[0] == '/' else '.'))}/")
    root = common_folder(heads)
    return (root, True) if all(url.startswith(f"{root.rstrip('/')}/") for url in urls) else (common_folder(urls), True)


def _takes_every_folder(pattern: str, root: str) -> bool:
    """Whether a glob takes all folders right below the root: those without a match are then classes without images."""
    pattern = pattern if is_remote(pattern) else os.path.abspath(pattern)
    first, slash, _ = pattern[len(root) :].lstrip("/").partition("/")
    return first == "**" or (first == "*" and bool(slash))


def _folders_in(root: str) -> list[str]:
    """Names of the folders right below a folder."""
    _, folders = _look_into(root)
    return sorted(url.rstrip("/").rpartition("/")[2] for url in folders)


def _list_beside_remote(root: str, texts: list[str]) -> Listing:
    """The files that remote globs match, and those beside them that differ in the extension alone."""
    versions: dict[str, object] = {}
    for pattern in (pattern for text in texts for pattern in _patterns(text)):
        folder, slash, last = pattern.rpartition("/")
        stem, dot, _ = last.rpartition(".")
        for url, info in _glob(f"{folder}{slash}{stem}.*" if dot else pattern):
            versions[url[len(root) :].lstrip("/")] = version_of(info)
    return Listing(sorted(versions), (), versions)


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


def _patterns(text: str) -> list[str]:
    """The paths, URLs and globs that a text stands for."""
    text = text if is_remote(text) else os.path.expanduser(text)
    return [text] if not is_remote(text) and os.path.exists(text) else expand_braces(text)


def _is_glob(url: str) -> bool:
    if not _GLOB.search(url.partition("?")[0] if url.startswith("http") else url):
        return False
    return is_remote(url) or not os.path.exists(url)


def _find(text: str) -> list[_Match]:
    """What one text stands for."""
    if not text:
        raise SourceError(f"cannot open {text!r} as a source: give {_ACCEPTED}")
    urls = _patterns(text)
    found: list[_Match] = []
    missing: list[str] = []
    for url in urls:
        if _is_glob(url):
            matches = _glob(url)
            missing += [] if matches else [url]
            for match, info in matches:
                kind = _kind(match)
                if kind == _OTHER and info.get("type") == "directory":
                    found += [m._replace(by_glob=True) for m in _in_folder(match)] or [_Match(_EMPTY, match, True)]
                else:
                    found.append(_Match(kind, match, True))
        elif _is_folder(url):
            found += _in_folder(url) or [_Match(_EMPTY, url)]
        elif is_remote(url) or os.path.exists(url):  # whether a remote file is there shows when it is opened
            found.append(_Match(_kind(url), url))
        else:
            missing.append(url)
    if missing:
        shown = ", ".join(map(repr, missing[:_MOST_SHOWN])) + (", ..." if len(missing) > _MOST_SHOWN else "")
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
    return "image" if is_image(path) else _OTHER


def _sniff(found: list[_Match]) -> list[_Match]:
    """Let files that were named themselves, with an ending that says nothing, be images if they begin like one.

    Raises:
        SourceError: One begins like something else, or cannot be read.
    """
    named = [match.url for match in found if match.kind == _OTHER and not match.by_glob]
    remote = [url for url in named if is_remote(url)]
    heads: dict[str, bytes | BaseException] = {}
    if remote:
        storage = Storage()
        heads.update(zip(remote, storage.cat([(url, 0, _HEAD) for url in remote]), strict=True))
        storage.close()
    for url in named:
        head = heads[url] if url in heads else _read_head(url)
        if isinstance(head, FileNotFoundError) and len(found) > 1:
            continue  # a dead link in a list: an error of its sample
        if isinstance(head, BaseException):
            raise SourceError(f"cannot tell what {url!r} is: {one_line(head)}") from head
        if not sniff_extension(head, ""):
            raise SourceError(
                f"cannot tell what {url!r} is: no image ends so, and none begins with {head[:_HEAD]!r}. "
                f"A source is {_ACCEPTED}"
            )
    return [match._replace(kind="image") if match.kind == _OTHER and not match.by_glob else match for match in found]


def _read_head(path: str) -> bytes | BaseException:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        return error


def _glob(pattern: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Paths or URLs that match, and what is known of each; of local files only whether those are folders."""
    if not is_remote(pattern):
        found = [path.rstrip("/") or "/" for path in sorted(glob.glob(pattern, recursive=True))]
        # asking is only worth it where the ending does not tell
        return [(path, {"type": "directory"} if not is_image(path) and os.path.isdir(path) else {}) for path in found]
    fs, path = filesystem(pattern)
    try:
        return sorted((_url_of(fs, pattern, match), info) for match, info in fs.glob(path, detail=True).items())
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


def _in_folder(folder: str) -> list[_Match]:
    """The tars of a folder, or its Parquet files, or itself; nothing where it holds no images.

    Tars go first: img2dataset writes Parquet files of metadata beside its tars, and beside its folders of images.
    """
    files, folders = _look_into(folder)
    names = {url.rstrip("/").rpartition("/")[2] for url in folders}
    tars = [file for file in files if file.lower().endswith(".tar")]
    parquets = [file for file in files if file.lower().endswith((".parquet", ".pq"))]
    images = [file for file in files if is_image(file)]
    tables = [file for file in parquets if _is_table(file, names)]
    shards, kind = (tars, "tar") if tars else ([file for file in parquets if file not in tables], "parquet")
    if shards and images:
        raise SourceError(
            f"{folder!r} holds both {len(shards)} .{kind} and {len(images)} image files: say which, with a glob "
            f"such as {os.path.join(folder, f'*.{kind}')!r}"
        )
    if shards:
        return [_Match(kind, shard) for shard in sorted(shards)]
    if images:
        return [_Match("folder", folder)]
    listing = list_folder(folder) if is_remote(folder) else None
    for file in list_local(folder) if listing is None else listing.paths:
        if is_image(file):
            return [_Match("folder", folder, listing=listing)]
        if file.lower().endswith(".tar"):
            tars.append(os.path.join(folder, file))
        elif file.lower().endswith((".parquet", ".pq")) and "/" in file:
            parquets.append(os.path.join(folder, file))
    return [_Match("tar", file) for file in sorted(tars)] or [_Match("parquet", file) for file in sorted(parquets)]


def _is_table(file: str, folders: set[str]) -> bool:
    """Whether a Parquet file may hold metadata of images in the same folder, or in one beside the file."""
    name = file.rpartition("/")[2]
    return name in METADATA_FILES or name.rpartition(".")[0] in folders


def _look_into(folder: str) -> tuple[list[str], list[str]]:
    """Paths or URLs of the files and of the folders right in a folder, without hidden ones and outputs' own."""
    try:
        if not is_remote(folder):
            with os.scandir(folder) as found:
                entries = [(entry.path, entry.is_dir()) for entry in found]
        else:
            fs, path = filesystem(folder)
            entries = [(_url_of(fs, folder, e["name"]), e["type"] == "directory") for e in fs.ls(path, detail=True)]
    except Exception as error:  # OSError, and whatever a remote filesystem raises
        raise SourceError(f"cannot list {folder!r}: {one_line(error)}") from error
    names = [(url, is_dir, url.rstrip("/").rpartition("/")[2]) for url, is_dir in entries]
    kept = [(url, is_dir) for url, is_dir, name in names if not name.startswith(".") and name != OUTPUT]
    return [url for url, is_dir in kept if not is_dir], [url for url, is_dir in kept if is_dir]


def _folder_name(items: Sequence[str | os.PathLike[str]]) -> str | None:
    """A folder that was named itself names the data set, whatever lies in it."""
    text = os.fspath(items[0])
    if len(items) > 1 or _GLOB.search(text) or "{" in text or not _is_folder(text):
        return None
    return os.path.basename(os.path.abspath(text) if not is_remote(text) else text.rstrip("/"))

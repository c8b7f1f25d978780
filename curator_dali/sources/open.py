"""`open_source`: from what a user writes to a `Source`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np

from curator_dali.arguments import checked, list_paths
from curator_dali.errors import SourceError
from curator_dali.io import Cache, is_http, is_remote, join, store, use_cache
from curator_dali.outputs import IMAGES
from curator_dali.sources.base import KINDS, Source, is_image
from curator_dali.sources.dataset_index import PLACES_OF_INDEX, DatasetIndex, find_reference, open_index
from curator_dali.sources.folder import FolderSource
from curator_dali.sources.known import check_vanished, covers_of, find_known, root_of
from curator_dali.sources.listing import (
    OUTPUT,
    Listing,
    Pattern,
    advise_on_container,
    common_folder,
    folders_above,
    is_metadata_file,
    list_below,
    list_beside,
    list_folder,
    list_right_in,
    read_patterns,
    stem_of,
    warn_of_split_files,
    warn_passed_over,
)
from curator_dali.sources.matching import (
    ACCEPTED,
    EMPTY,
    MOST_SHOWN,
    NO_DATA,
    OTHER,
    SUBFOLDER,
    Match,
    check_text,
    find,
    forget_listings,
    is_folder,
    kind_of,
    last_name,
    look_into,
    sniff,
    without_outputs,
)
from curator_dali.sources.memory import MemorySource
from curator_dali.sources.parquet import ParquetSource
from curator_dali.sources.subset import Subset
from curator_dali.sources.tar import TarSource

logger = logging.getLogger(__name__)

_NO_SHARDS = "an index is made of tars, Parquet files or one folder of images"


@checked
def open_source(
    spec: Any,
    *,
    label_from_folder: bool = True,
    image_column: str | None = None,
    index: str | os.PathLike[str] = "cache",
    name: str | None = None,
    allow_outside: bool = False,
    columns: Sequence[str] | None = None,
    view: bool = False,
    cache: Cache | None = None,
) -> Source:
    """Open whatever holds encoded images.

    Args:
        spec: A folder of images, or of tars or Parquet files; a glob; a brace list as in WebDataset; a file; a URL of
            any of these that fsspec opens; a list of these, all of one kind; encoded images as a list of bytes or a
            mapping from id to bytes; or a `Source`, which is returned as it is. Globs and folders give their files in
            the order of their names, lists and brace lists in their own. Several folders of images, by a glob or a
            list, are class folders of the folder that holds them. A glob passes over files that are no samples, and a
            folder with shards right in it over all others in it, with a warning; a local glob also over outputs of
            curations below its fixed part, unless all that it matches are such. An image file that is named itself may
            have any ending. The output of a curation that wrote no tars, named itself, is a `View`.
        label_from_folder: For folders of images: see `FolderSource`.
        image_column: For Parquet: see `ParquetSource`.
        index: Where the index of the data set lies that `curator_dali.prepare` made, a folder or URL. "cache" and
            "beside" look in the folder that all files lie in, and say where indexes of single tars are kept; "none"
            takes and keeps none. See `TarSource`.
        name: The data set's name, instead of one made of the files' names.
        allow_outside: For Parquet: see `ParquetSource`.
        columns: For Parquet: see `ParquetSource`.
        view: Whether an output of a curation is a `View` also where it has tars.
        cache: Where this node keeps what is read of remote files.

    Raises:
        SourceError: There is nothing of that name, or it is nothing that can be read; with `view`, it is no output.
            The folder of the cache cannot be used.
    """
    if isinstance(spec, Source):
        if cache is not None:
            raise SourceError(f"cache= is for paths and URLs: give it to open_source() that opens {spec.name!r}")
        return spec
    if cache is not None:
        further: dict[str, Any] = {"image_column": image_column, "index": index, "columns": columns, "view": view}
        with use_cache(cache):
            return open_source(
                spec, label_from_folder=label_from_folder, name=name, allow_outside=allow_outside, **further
            )
    index = os.fspath(index)
    texts = _list_texts(spec)
    known = None if view else find_known(texts, index)
    is_known = known is not None and bool(known.urls)
    if not is_known and isinstance(spec, (str, os.PathLike)) and (view or _is_output_without_data(os.fspath(spec))):
        if view and not _has_manifest(os.fspath(spec)):
            raise SourceError(
                f"{os.fspath(spec)!r} is no output of a curation, which view=True asks for: it has no {OUTPUT}/"
            )
        source: Source = KINDS["view"](os.path.expanduser(spec), name=name)
        return source
    if view:
        raise SourceError(f"view=True is for the folder of one output, not {spec!r:.80}: combine several by a Mixture")
    if hasattr(spec, "dtype") and spec.dtype != np.uint8:  # an array, or a column of pandas, of paths
        spec = spec.tolist()
    place = index if is_remote(index) or index in PLACES_OF_INDEX else os.path.abspath(index)
    options: dict[str, Any] = {"label_from_folder": label_from_folder, "image_column": image_column}
    options |= {"index": place, "name": name}
    further = {"allow_outside": True} if allow_outside else {}
    further |= {} if columns is None else {"columns": list(columns)}
    indexes = {} if known is None else {known.folder: known.table}
    if known is not None and known.table is not None and known.urls:
        matches = [Match("folder", url) for url in known.urls if known.table.kind == "folder"]
        source = _open_files(Files(known.table.kind, known.urls, known.patterns, matches), indexes, further, **options)
    else:
        source = _open(spec, indexes, further, **options)
    if texts:
        found = [_absolute(item) for item in texts]
        source.origin = {"spec": found, **options, **further}
    return source


def _list_texts(spec: Any) -> list[str]:
    """List the paths and URLs that a user gave; none where these are something else."""
    specs: Any = [spec] if isinstance(spec, (str, os.PathLike)) else spec
    specs = specs.tolist() if hasattr(specs, "dtype") and specs.dtype != np.uint8 else specs
    is_texts = isinstance(specs, Sequence) and all(isinstance(item, (str, os.PathLike)) for item in specs)
    return list_paths(specs) if is_texts else []


def reopen(origin: Mapping[str, Any], data: Any = None) -> Source:
    """Open a source again from its `origin`.

    Args:
        origin: The origin.
        data: The files that the samples lie in, or a source of these, where they have moved.

    Raises:
        SourceError: It is no longer there.
    """
    if "rows" in origin:
        return Subset(reopen(origin["of"], data), slice(*origin["rows"]))
    for name, kind in KINDS.items():
        if name in origin:
            source: Source = kind.reopen(origin, data)
            return source
    options = {name: value for name, value in origin.items() if name != "spec"}
    spec = origin["spec"]
    return open_source((spec[0] if len(spec) == 1 else spec) if data is None else data, **options)


def _has_manifest(url: str) -> bool:
    """Whether a path or URL is the folder of an output."""
    return store.read(join(os.path.expanduser(url), f"{OUTPUT}/run.json")) is not None


def _is_output_without_data(url: str) -> bool:
    """Whether a path or URL is the folder of an output that holds no tars, and no Parquet files with images."""
    path = os.path.expanduser(url)
    if is_remote(url):
        if is_http(url) or any(letter in url for letter in "*?{[") or kind_of(url) != OTHER or not is_folder(url):
            return False
    elif not os.path.isdir(f"{path}/{OUTPUT}"):
        return False
    files, _, is_output = look_into(path)
    holds_data = any(file.lower().endswith((".tar", ".tar.gz", IMAGES)) or is_image(file) for file in files)
    return is_output and not holds_data and _has_manifest(path)


def _absolute(url: str) -> str:
    return url if is_remote(url) else os.path.abspath(os.path.expanduser(url))


def _open(
    spec: Any,
    indexes: Mapping[str, DatasetIndex | None],
    further: Mapping[str, Any],
    label_from_folder: bool,
    image_column: str | None,
    index: str,
    name: str | None,
) -> Source:
    items: Any = [spec] if isinstance(spec, (str, os.PathLike, bytes, bytearray, np.ndarray)) else spec
    is_list = isinstance(items, Sequence) and bool(items)
    encoded = (bytes, bytearray, memoryview, np.ndarray)
    if isinstance(items, Mapping) or (is_list and all(isinstance(item, encoded) for item in items)):
        return MemorySource(items, name=name or "memory")
    if not is_list:
        raise SourceError(f"cannot open {spec!r} as a source: give {ACCEPTED}")
    wrong = [item for item in items if not isinstance(item, (str, os.PathLike))]
    if wrong:
        raise SourceError(f"cannot open {wrong[0]!r} ({type(wrong[0]).__name__}) as a source: give {ACCEPTED}")

    found = find_files(list_paths(items), spec, index, quiet=not label_from_folder)
    return _open_files(found, {**indexes, **found.indexes}, further, label_from_folder, image_column, index, name)


def _open_files(
    found: Files,
    indexes: Mapping[str, DatasetIndex | None],
    further: Mapping[str, Any],
    label_from_folder: bool,
    image_column: str | None,
    index: str,
    name: str | None,
) -> Source:
    patterns, urls = found.patterns, found.urls
    if found.kind == "tar":
        return TarSource(urls, name=name or _folder_name(patterns), index=index, indexes=indexes)
    if found.kind == "parquet":
        name = name or _folder_name(patterns)
        return ParquetSource(urls, name=name, image_column=image_column, index=index, indexes=indexes, **further)
    alone = found.kind == "folder" and len(found.matches) == 1 and not found.matches[0].by_glob
    if index not in PLACES_OF_INDEX and not alone:
        raise SourceError(
            f"index={index!r}: images by a glob, a list or several folders are opened without an index: give the "
            "folder that was prepared, or leave it out"
        )
    if found.kind == "image":
        return _open_images(patterns, urls, label_from_folder, name)
    folders = [match for match in found.matches if match.kind in ("folder", EMPTY)]
    options: dict[str, Any] = {"label_from_folder": label_from_folder, "name": name}
    if len(folders) == 1 and not folders[0].by_glob:
        url, listing = folders[0].url, folders[0].listing
        return FolderSource(_spell(url), listing=listing, index=index, indexes=indexes, **options)
    return _open_folders(patterns, folders, **options)


class Files(NamedTuple):
    """The files that a user's texts name.

    Attributes:
        kind: "tar", "parquet", "image" or "folder".
        urls: Those of the kind, in order.
        patterns: What the texts stand for.
        matches: Everything that was found.
        indexes: Folders in which an index was looked for, and what was found there.
    """

    kind: str
    urls: list[str]
    patterns: list[Pattern]
    matches: list[Match] = []  # noqa: RUF012 - never changed
    indexes: Mapping[str, DatasetIndex | None] = {}


def find_files(texts: Sequence[str], spec: Any, index: str = "none", *, quiet: bool = False) -> Files:
    """Find the files that texts name, with warnings of those that are passed over.

    Args:
        texts: Paths, URLs, globs and brace lists.
        spec: What the user gave, for messages.
        index: Where an index is looked for that says which local files there were; see `open_source`.
        quiet: Whether nothing is said of splits.

    Raises:
        SourceError: There is nothing, or something that cannot be read.
    """
    for text in texts:
        check_text(text)
    forget_listings(list(texts))
    read = [(text, read_patterns(text)) for text in texts]
    patterns = [pattern for _, some in read for pattern in some]
    found = sniff([match for text, some in read for match in find(text, some)])
    kinds = {match.kind for match in found} - NO_DATA
    if not kinds:
        _refuse(spec, found)
    passable = kinds == {"image", "folder"} and all(match.by_glob for match in found)
    if len(kinds) > 1 and not passable:
        raise SourceError(f"{spec!r} holds {' and '.join(sorted(kinds))} files: give one kind, such as a glob '*.tar'")
    kind = "image" if "image" in kinds else kinds.pop()
    urls = [match.url for match in found if match.kind == kind]
    shown = ", ".join(texts[:MOST_SHOWN])
    above = set() if kind == "folder" else folders_above(urls)
    folders = sum(
        match.kind in ("folder", SUBFOLDER) and match.kind != kind and match.url not in above for match in found
    )
    used = set(map(stem_of, urls)) if kind != "folder" else set()
    warn_passed_over(shown, [match.url for match in found if match.kind == OTHER], used, folders)
    if kind not in ("tar", "parquet"):
        return Files(kind, urls, patterns, found)
    if not quiet and len(urls) > len(texts):
        warn_of_split_files(urls, shown)
    indexes: dict[str, DatasetIndex | None] = {}
    if not any(map(is_remote, urls)):
        urls = [os.path.abspath(url) for url in urls]
        reference = find_reference(urls, index)
        opened = None if reference is None else open_index(reference)
        indexes = {} if reference is None else {reference.folder: opened}
        if opened is not None and opened.kind == kind:
            check_vanished(opened, patterns, urls)
    return Files(kind, urls, patterns, found, indexes)


class ShardList(NamedTuple):
    """Files that an index can be made of: shards, or a folder of images.

    Attributes:
        kind: "tar", "parquet" or "folder".
        urls: The shards; of a folder none.
        root: The folder that all lie in.
        covers: The patterns that these are all of.
        column: The column of the images, of Parquet files.
        listing: What lies in a folder of images, where that is known.
    """

    kind: str
    urls: list[str]
    root: str
    covers: list[str]
    column: str = ""
    listing: Listing | None = None


def find_shards(spec: Any) -> ShardList:
    """Find the shards, or the folder of images, that an index is to be made of.

    Args:
        spec: What `open_source` takes.

    Raises:
        SourceError: It names neither tars nor Parquet files, nor one folder of images.
    """
    if isinstance(spec, TarSource):
        return ShardList("tar", list(spec.locations), root_of(spec.locations), [])
    if isinstance(spec, ParquetSource):
        return ShardList("parquet", list(spec.locations), root_of(spec.locations), [], spec.image_column)
    texts = _list_texts(spec)
    if not texts:
        raise SourceError(f"{_NO_SHARDS}: give a folder, a glob or URLs of these, not {spec!r:.80}")
    found = find_files(texts, spec)
    folders = [match for match in found.matches if match.kind in ("folder", EMPTY)]
    if found.kind == "folder" and len(folders) == 1 and not folders[0].by_glob:
        return ShardList("folder", [], _spell(folders[0].url), [""], listing=folders[0].listing)
    if found.kind not in ("tar", "parquet"):
        kind = "several folders of images" if found.kind == "folder" else f"{found.kind} files"
        raise SourceError(f"{_NO_SHARDS}, and {spec!r:.80} holds {kind}: give the folder that holds them")
    root = root_of(found.urls)
    column = ParquetSource(found.urls[:1], index="none").image_column if found.kind == "parquet" else ""
    return ShardList(found.kind, found.urls, root, covers_of(found.patterns, root), column)


def _refuse(spec: Any, found: list[Match]) -> NoReturn:
    """Raise the reason why nothing that was found can be read."""
    others = [match.url for match in found if match.kind == OTHER]
    if others and (advice := advise_on_container(others[0])):
        raise SourceError(f"cannot open {others[0]!r} as a source: it is {advice}")
    if others:
        raise SourceError(f"cannot tell what {others[0]!r} is by its ending: a source is {ACCEPTED}")
    raise SourceError(f"{spec!r} holds no images, .tar or .parquet files: a source is {ACCEPTED}")


def _open_images(patterns: list[Pattern], urls: list[str], label_from_folder: bool, name: str | None) -> Source:
    """Image files that were named, or matched by globs, as a source."""
    # "a::b.jpg" may be a local file
    urls = [url if is_remote(url) and not os.path.exists(url) else os.path.abspath(url) for url in urls]
    root, by_glob = _root(patterns, urls)
    if not root:
        raise SourceError(
            f"{urls[0]!r} and {urls[-1]!r} lie in different stores: open each, and combine them by a Mixture"
        )
    label_from_folder = label_from_folder and (by_glob or not _is_top(root))
    files = [url[len(root) :].lstrip("/") for url in urls]
    listing = None
    if by_glob:
        listing = _list_beside_remote(root, patterns, files) if is_remote(root) else list_beside(root, files)
        if all(_takes_every_folder(pattern.url, root) for pattern in patterns):
            listing = listing._replace(folders=sorted(map(last_name, without_outputs(look_into(root)[1]))))
    return FolderSource(root, files=files, label_from_folder=label_from_folder, name=name, listing=listing)


def _open_folders(patterns: list[Pattern], found: list[Match], label_from_folder: bool, name: str | None) -> Source:
    """Folders of images, which are class folders of the folder that holds them."""
    urls = [_spell(match.url) for match in found]
    root, _ = _root(patterns, [f"{url}/" for url in urls])
    nested = any(lower.startswith(upper) for upper, lower in pairwise(sorted(f"{url}/" for url in urls)))
    if nested or _is_top(root):
        raise SourceError(
            f"cannot open {len(urls)} folders of images as one source where some are the same, lie in each other or "
            "have no folder in common: give the folder that holds them"
        )
    below = [url[len(root) :].lstrip("/") for url in urls]
    beside = list_right_in(root, {"", *folders_above(below)})
    parts = [beside._replace(paths=[path for path in beside.paths if is_metadata_file(path)])]
    for url, path, match in zip(urls, below, found, strict=True):
        parts.append((match.listing or list_folder(url)).below(path))
    listing = Listing(
        sorted(path for part in parts for path in part.paths),
        sorted({folder for part in parts for folder in part.folders}),
        {path: version for part in parts for path, version in part.versions.items()},
    )
    return FolderSource(root, label_from_folder=label_from_folder, name=name, listing=listing, index="none")


def _spell(folder: str) -> str:
    return folder.rstrip("/") if is_remote(folder) else os.path.abspath(folder)


def _root(patterns: list[Pattern], urls: list[str]) -> tuple[str, bool]:
    """The folder that ids and classes count from: what stands before the wildcards of globs, else the common folder.

    The second value: whether all patterns are globs.
    """
    if not all(pattern.is_glob for pattern in patterns):
        return common_folder(urls), False
    root = common_folder([f"{pattern.head}/" for pattern in patterns])
    return (root, True) if all(url.startswith(f"{root.rstrip('/')}/") for url in urls) else (common_folder(urls), True)


def _is_top(root: str) -> bool:
    """Whether a common folder is the top of a filesystem or of a store, so that files in it have nothing in common."""
    return not root.rstrip("/") or root.rstrip("/").endswith(":")


def _takes_every_folder(pattern: str, root: str) -> bool:
    """Whether a glob takes all folders right below the root: those without a match are then classes without images."""
    pattern = pattern if is_remote(pattern) else os.path.abspath(pattern)
    first, slash, _ = pattern[len(root) :].lstrip("/").partition("/")
    return first == "**" or (first == "*" and bool(slash))


def _list_beside_remote(root: str, patterns: list[Pattern], files: list[str]) -> Listing:
    """List the folders that files matched by remote globs lie in, and those above, up to the root.

    Each glob's fixed folder is listed as deep as the glob looks, which is one request to most stores.
    """
    depths: dict[str, float] = {"": 1}
    for pattern in patterns:
        head = pattern.head
        depth = math.inf if "**" in pattern.url else pattern.url[len(head) :].strip("/").count("/") + 1
        head = head[len(root) :].strip("/") if head.startswith(root) else ""
        depths |= {folder: max(depths.get(folder, 1), 1) for folder in folders_above([head])}
        depths[head] = max(depths.get(head, 1), depth)
    folders = {"", *folders_above(files)}
    versions = {
        path: version
        for head, depth in depths.items()
        for path, version in list_below(root, head, None if depth == math.inf else int(depth)).items()
        if path.rpartition("/")[0] in folders
    }
    return Listing(sorted(versions), (), versions)


def _folder_name(patterns: list[Pattern]) -> str | None:
    """A folder that was named itself names the data set, whatever lies in it."""
    url = patterns[0].url
    if len(patterns) > 1 or patterns[0].is_glob or not is_folder(url):
        return None
    return os.path.basename(os.path.abspath(url) if not is_remote(url) else url.rstrip("/"))

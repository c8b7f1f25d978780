"""`open_source`: from what a user writes to a `Source`."""

from __future__ import annotations

import glob
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from curator_dali.arguments import checked, list_paths
from curator_dali.errors import SourceError
from curator_dali.io import (
    Cache,
    Storage,
    ask_listing,
    filesystem,
    is_http,
    is_remote,
    join,
    one_line,
    store,
    strip_query,
    use_cache,
)
from curator_dali.outputs import IMAGES
from curator_dali.sources.base import KINDS, Source, is_image, sniff_extension
from curator_dali.sources.folder import FolderSource
from curator_dali.sources.listing import (
    COMPRESSED,
    OUTPUT,
    Listing,
    Pattern,
    advise_on_container,
    advise_on_missing,
    advise_on_protocol,
    common_folder,
    folders_above,
    is_metadata_file,
    list_below,
    list_beside,
    list_folder,
    list_local,
    list_right_in,
    listing_options,
    read_patterns,
    stem_of,
    warn_of_split_files,
    warn_passed_over,
)
from curator_dali.sources.memory import MemorySource
from curator_dali.sources.parquet import ParquetSource
from curator_dali.sources.subset import Subset
from curator_dali.sources.tar import TarSource

logger = logging.getLogger(__name__)

_ACCEPTED = (
    "a folder of images, .tar or .parquet files, a glob ('shards/*.tar'), a brace list ('shards/{00000..00099}.tar'), "
    "a .tar, .parquet or image file, a URL of any of these that fsspec opens (s3://, gs://, http://, ...), a list of "
    "these of one kind, encoded images (a list of bytes, or a mapping from id to bytes), or a Source"
)
_MOST_SHOWN = 5
_HEAD_BYTES = 16  # by which images are told
# kinds of what is no source: a file of another ending, a folder without images, a folder beside shards
_OTHER, _EMPTY, _SUBFOLDER = "other", "empty", "subfolder"
_NO_DATA = frozenset([_OTHER, _EMPTY, _SUBFOLDER])
_IMAGES_OF_OUTPUT = re.compile(r"\d{12,}-\d{12,}-\d+" + re.escape(IMAGES))


@checked
def open_source(
    spec: Any,
    *,
    label_from_folder: bool = True,
    image_column: str | None = None,
    index: Literal["cache", "beside", "none"] = "cache",
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
        index: For tars: see `TarSource`.
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
        further: dict[str, Any] = {
            "image_column": image_column,
            "index": index,
            "name": name,
            "columns": columns,
            "view": view,
        }
        with use_cache(cache):
            return open_source(spec, label_from_folder=label_from_folder, allow_outside=allow_outside, **further)
    if isinstance(spec, (str, os.PathLike)) and (view or _is_output_without_data(os.fspath(spec))):
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
    options: dict[str, Any] = {"label_from_folder": label_from_folder, "image_column": image_column}
    options |= {"index": index, "name": name}
    further = {"allow_outside": True} if allow_outside else {}
    further |= {} if columns is None else {"columns": list(columns)}
    source = _open(spec, further, **options)
    specs = [spec] if isinstance(spec, (str, os.PathLike)) else spec
    if isinstance(specs, Sequence) and all(isinstance(item, (str, os.PathLike)) for item in specs):
        found = [_absolute(item) for item in list_paths(specs)]
        source.origin = {"spec": found, **options, **further}
    return source


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
        if is_http(url) or any(letter in url for letter in "*?{[") or _kind(url) != _OTHER or not _is_folder(url):
            return False
    elif not os.path.isdir(f"{path}/{OUTPUT}"):
        return False
    files, _, is_output = _look_into(path)
    holds_data = any(file.lower().endswith((".tar", ".tar.gz", IMAGES)) or is_image(file) for file in files)
    return is_output and not holds_data and _has_manifest(path)


def _absolute(url: str) -> str:
    return url if is_remote(url) else os.path.abspath(os.path.expanduser(url))


class _Match(NamedTuple):
    """A path or URL that a user's text names, and its kind: `tar`, `parquet`, `image`, `folder` or one of the above."""

    kind: str
    url: str
    by_glob: bool = False
    listing: Listing | None = None


def _open(
    spec: Any,
    further: Mapping[str, Any],
    label_from_folder: bool,
    image_column: str | None,
    index: Literal["cache", "beside", "none"],
    name: str | None,
) -> Source:
    items: Any = [spec] if isinstance(spec, (str, os.PathLike, bytes, bytearray, np.ndarray)) else spec
    is_list = isinstance(items, Sequence) and bool(items)
    encoded = (bytes, bytearray, memoryview, np.ndarray)
    if isinstance(items, Mapping) or (is_list and all(isinstance(item, encoded) for item in items)):
        return MemorySource(items, name=name or "memory")
    if not is_list:
        raise SourceError(f"cannot open {spec!r} as a source: give {_ACCEPTED}")
    wrong = [item for item in items if not isinstance(item, (str, os.PathLike))]
    if wrong:
        raise SourceError(f"cannot open {wrong[0]!r} ({type(wrong[0]).__name__}) as a source: give {_ACCEPTED}")

    texts = list_paths(items)
    for text in texts:
        _check_text(text)
    _forget_listings(texts)
    read = [(text, read_patterns(text)) for text in texts]
    patterns = [pattern for _, some in read for pattern in some]
    found = _sniff([match for text, some in read for match in _find(text, some)])
    kinds = {match.kind for match in found} - _NO_DATA
    if not kinds:
        _refuse(spec, found)
    passable = kinds == {"image", "folder"} and all(match.by_glob for match in found)
    if len(kinds) > 1 and not passable:
        raise SourceError(f"{spec!r} holds {' and '.join(sorted(kinds))} files: give one kind, such as a glob '*.tar'")
    kind = "image" if "image" in kinds else kinds.pop()
    urls = [match.url for match in found if match.kind == kind]
    shown = ", ".join(texts[:_MOST_SHOWN])
    above = set() if kind == "folder" else folders_above(urls)
    folders = sum(
        match.kind in ("folder", _SUBFOLDER) and match.kind != kind and match.url not in above for match in found
    )
    used = set(map(stem_of, urls)) if kind != "folder" else set()
    warn_passed_over(shown, [match.url for match in found if match.kind == _OTHER], used, folders)
    if kind in ("tar", "parquet"):
        if label_from_folder and len(urls) > len(texts):
            warn_of_split_files(urls, shown)
        if kind == "tar":
            return TarSource(urls, name=name or _folder_name(patterns), index=index)
        name = name or _folder_name(patterns)
        return ParquetSource(urls, name=name, image_column=image_column, **further)
    if kind == "image":
        return _open_images(patterns, urls, label_from_folder, name)
    folders_found = [match for match in found if match.kind in ("folder", _EMPTY)]
    return _open_folders(patterns, folders_found, label_from_folder, name)


def _refuse(spec: Any, found: list[_Match]) -> NoReturn:
    """Raise the reason why nothing that was found can be read."""
    others = [match.url for match in found if match.kind == _OTHER]
    if others and (advice := advise_on_container(others[0])):
        raise SourceError(f"cannot open {others[0]!r} as a source: it is {advice}")
    if others:
        raise SourceError(f"cannot tell what {others[0]!r} is by its ending: a source is {_ACCEPTED}")
    raise SourceError(f"{spec!r} holds no images, .tar or .parquet files: a source is {_ACCEPTED}")


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
            listing = listing._replace(folders=sorted(map(_name, _without_outputs(_look_into(root)[1]))))
    return FolderSource(root, files=files, label_from_folder=label_from_folder, name=name, listing=listing)


def _open_folders(patterns: list[Pattern], found: list[_Match], label_from_folder: bool, name: str | None) -> Source:
    """A folder of images, or several, which are class folders of the folder that holds them."""
    urls = [match.url.rstrip("/") if is_remote(match.url) else os.path.abspath(match.url) for match in found]
    if len(urls) == 1 and not found[0].by_glob:
        return FolderSource(urls[0], label_from_folder=label_from_folder, name=name, listing=found[0].listing)
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
    return FolderSource(root, label_from_folder=label_from_folder, name=name, listing=listing)


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


def _without_outputs(folders: Sequence[str]) -> list[str]:
    """Folders without those local ones that are outputs of curations."""
    return [url for url in folders if is_remote(url) or not os.path.isdir(f"{url}/{OUTPUT}")]


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


def _forget_listings(texts: list[str]) -> None:
    """Let stores be listed anew: fsspec keeps listings, perhaps of a time before files were written."""
    for text in {text.partition("://")[0]: text for text in texts if is_remote(text)}.values():
        filesystem(text)[0].invalidate_cache()


def _check_text(text: str) -> None:
    """Refuse a text that names no files: an empty one, a command, or the members of an archive."""
    if not text:
        raise SourceError(f"cannot open {text!r} as a source: give {_ACCEPTED}")
    if (advice := advise_on_protocol(text)) and not os.path.exists(text):
        raise SourceError(f"cannot open {text!r} as a source: {advice}")


def _find(text: str, patterns: list[Pattern]) -> list[_Match]:
    """Find the files and folders that the patterns of one text name."""
    found: list[_Match] = []
    missing: list[str] = []
    for pattern in patterns:
        url = pattern.url
        if pattern.is_glob:
            matches = _glob(pattern)
            missing += [] if matches else [url]
            found += _match(pattern, matches)
        elif _is_folder(url):
            found += _in_folder(url) or [_Match(_EMPTY, url)]
        elif is_remote(url) or os.path.exists(url):  # whether a remote file is there shows when it is opened
            found.append(_Match(_kind(url), url))
        else:
            missing.append(url)
    if missing:
        shown = ", ".join(map(repr, missing[:_MOST_SHOWN])) + (", ..." if len(missing) > _MOST_SHOWN else "")
        advice = advise_on_missing(missing[0])
        raise SourceError(
            f"nothing there: {shown}{f' (of {text!r})' if missing != [text] else ''}. {advice}{'. ' if advice else ''}"
            f"A source is {_ACCEPTED}; relative paths count from {os.getcwd()!r}"
        )
    return found


def _match(pattern: Pattern, found: list[tuple[str, bool]]) -> list[_Match]:
    """Sort the matches of a glob by kind. Outputs of curations are left out, unless all data are such."""
    known: dict[str, bool] = {}
    head = pattern.head
    kept = found
    if not is_remote(pattern.url):
        folders = [path if is_folder else path.rpartition("/")[0] for path, is_folder in found]
        kept = [match for match, at in zip(found, folders, strict=True) if not _is_in_output(at, head, known)]
    if len(kept) < len(found):
        matches = _match_all(kept)
        if any(match.kind not in _NO_DATA for match in matches):
            logger.info("passing over %d matches of %s in outputs of curations", len(found) - len(kept), pattern.url)
            return matches
    return _match_all(found)


def _is_in_output(folder: str, head: str, known: dict[str, bool]) -> bool:
    """Whether a local folder below `head` is the output of a curation, or lies in one that is below it, too."""
    if folder not in known:
        path = os.path.abspath(folder)
        known[folder] = path not in (head, "/") and (
            os.path.isdir(f"{path}/{OUTPUT}") or _is_in_output(os.path.dirname(path), head, known)
        )
    return known[folder]


def _match_all(found: list[tuple[str, bool]]) -> list[_Match]:
    matches: list[_Match] = []
    for url, is_folder in found:
        kind = _kind(url)
        if kind != "image" and is_folder:
            matches += [match._replace(by_glob=True) for match in _in_folder(url)] or [_Match(_EMPTY, url, True)]
        else:
            matches.append(_Match(kind, url, True))
    return matches


def _kind(url: str) -> str:
    path = strip_query(url).lower()
    if path.endswith(".tar"):
        return "tar"
    if _is_parquet(path):
        return "parquet"
    if path.endswith(COMPRESSED):
        raise SourceError(
            f"{url!r} is a compressed tar, which cannot be read in any order: unpack it first "
            "(gunzip, unxz or zstd -d make a .tar of it; images gain nothing from compression)"
        )
    return "image" if is_image(path) else _OTHER


def _sniff(found: list[_Match]) -> list[_Match]:
    """Let files that were named themselves, with an ending that says nothing, be images if they begin like one."""
    named = [match.url for match in found if match.kind == _OTHER and not match.by_glob]
    remote = [url for url in named if is_remote(url)]
    heads: dict[str, bytes | BaseException] = {}
    if remote:
        storage = Storage()
        heads.update(zip(remote, storage.cat([(url, 0, _HEAD_BYTES) for url in remote]), strict=True))
        storage.close()
    for url in named:
        head = heads[url] if url in heads else _read_head(url)
        if isinstance(head, FileNotFoundError) and len(found) > 1:
            continue  # a dead link in a list: an error of its sample
        if isinstance(head, BaseException):
            advice = advise_on_missing(url) if isinstance(head, FileNotFoundError) else ""
            raise SourceError(
                f"cannot tell what {url!r} is: {one_line(head)}{'. ' if advice else ''}{advice}"
            ) from head
        if not sniff_extension(head, ""):
            if advice := advise_on_container(url):
                raise SourceError(f"cannot open {url!r} as a source: it is {advice}")
            raise SourceError(
                f"cannot tell what {url!r} is: no image ends so, and none begins with {head[:_HEAD_BYTES]!r}. "
                f"A source is {_ACCEPTED}"
            )
    return [match._replace(kind="image") if match.kind == _OTHER and not match.by_glob else match for match in found]


def _read_head(path: str) -> bytes | BaseException:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        return error


def _glob(pattern: Pattern) -> list[tuple[str, bool]]:
    """Paths or URLs that match, and whether each is a folder."""
    url = pattern.url
    if not is_remote(url):
        found = [path.rstrip("/") or "/" for path in sorted(glob.glob(url, recursive=True))]
        # asking is only worth it where the ending does not tell
        return [(path, not is_image(path) and os.path.isdir(path)) for path in found]
    fs, path = filesystem(url)
    spell = _make_speller(fs, pattern.head, url)
    matches = ask_listing(url, lambda: fs.glob(path, detail=True, **listing_options(url)))
    return sorted((spell(match), info.get("type") == "directory") for match, info in matches.items())


def _make_speller(fs: Any, folder: str, original: str) -> Callable[[str], str]:
    """Make a function from a path of a remote filesystem to its URL, spelt like the URL of the `folder` above it.

    The paths are found by the URL `original`.
    """
    base = filesystem(folder)[1].rstrip("/") if is_remote(folder) else ""  # "s3:/" holds all buckets
    chain, separator, last = original.rpartition("::")

    def spell(path: str) -> str:
        if base and path.startswith(f"{base}/"):
            return f"{folder.rstrip('/')}{path[len(base) :]}"
        return f"{chain}{separator}{fs.unstrip_protocol(path) if not separator else _like(last, path)}"

    return spell


def _like(url: str, path: str) -> str:
    protocol, separator, _ = url.partition("://")
    return path if not separator or path.startswith(f"{protocol}://") else f"{protocol}://{path.lstrip('/')}"


def _is_folder(url: str) -> bool:
    if not is_remote(url):
        return os.path.isdir(url)
    if not is_http(url):
        fs, path = filesystem(url)
        return bool(ask_listing(url, lambda: fs.isdir(path)))
    return url.endswith("/")  # any page can be listed, and a query costs one request for each shard


def _in_folder(folder: str) -> list[_Match]:
    """The tars of a folder, or its Parquet files, and what is passed over with these; or itself, if it holds images.

    Tars go first: img2dataset writes Parquet files of metadata beside its tars, and beside its folders of images.
    """
    files, folders, is_output = _look_into(folder)
    images = [file for file in files if is_image(file)]
    tars = [file for file in files if file.lower().endswith(".tar")]
    shards, kind = (tars, "tar") if tars else (_pick_data(files, folders, bool(images)), "parquet")
    if shards and images:
        raise SourceError(
            f"{folder!r} holds both {len(shards)} .{kind} and {len(images)} image files: say which, with a glob "
            f"such as {os.path.join(folder, f'*.{kind}')!r}"
        )
    if shards:
        others = [] if is_output else sorted(set(files).difference(shards))
        unread = [] if is_output else [url for url in folders if not _name(url).startswith("_")]
        return [
            *(_Match(kind, shard) for shard in sorted(shards)),
            *(_Match(_OTHER, file, True) for file in others),
            *(_Match(_SUBFOLDER, url, True) for url in _without_outputs(unread)),
        ]
    if images:
        return [_Match("folder", folder)]
    listing = list_folder(folder) if is_remote(folder) else None
    deep: dict[str, list[str]] = {"tar": [], "parquet": [], _OTHER: []}
    for file in list_local(folder) if listing is None else listing.paths:
        if is_image(file):
            return [_Match("folder", folder, listing=listing)]
        if file.lower().endswith(".tar"):
            deep["tar"].append(os.path.join(folder, file))
        elif "/_" not in f"/{file}":  # Spark's _temporary/ and _metadata are no data
            deep["parquet" if _is_parquet(file) else _OTHER].append(os.path.join(folder, file))
    kind = "tar" if deep["tar"] else "parquet"
    others = [file for other, found in deep.items() if other != kind for file in found]
    shards = sorted(deep[kind])
    return [*(_Match(kind, file) for file in shards), *(_Match(_OTHER, file, True) for file in others if shards)]


def _pick_data(files: list[str], folders: list[str], images: bool) -> list[str]:
    """Parquet files right in a folder that hold images, not metadata of the images in the folder or its folders.

    Of an output in Hugging Face's layout, the rows of all samples hold none.
    """
    parquets = [file for file in files if _is_parquet(file) and not _name(file).startswith("_")]
    if written := [file for file in parquets if _IMAGES_OF_OUTPUT.fullmatch(_name(file))]:
        return written
    metadata = {file for file in parquets if is_metadata_file(file)}
    beside = {url.rstrip("/") for url in folders}
    tables = {file for file in parquets if stem_of(file) in beside}  # as img2dataset has one for each folder
    if not images and not any(is_image(file) for table in tables for file in _look_into(stem_of(table))[0]):
        tables = set()
    data = [file for file in parquets if file not in metadata | tables]
    return [file for file in parquets if file not in tables] if data and not images else data


def _is_parquet(file: str) -> bool:
    return file.lower().endswith((".parquet", ".pq"))


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def _look_into(folder: str) -> tuple[list[str], list[str], bool]:
    """Look what lies right in a folder.

    Returns:
        Paths or URLs of the files and of the folders, without hidden ones and outputs' own; and whether the folder is
        the output of a curation.
    """
    if is_remote(folder):
        fs, path = filesystem(folder)
        spell = _make_speller(fs, folder, folder)
        listed = ask_listing(folder, lambda: fs.ls(path, detail=True))
        entries = [(spell(entry["name"]), entry["type"] == "directory") for entry in listed]
    else:
        try:
            with os.scandir(folder) as found:
                entries = [(entry.path, entry.is_dir()) for entry in found]
        except OSError as error:
            raise SourceError(f"cannot list {folder!r}: {one_line(error)}") from error
    kept = [(url, is_dir) for url, is_dir in entries if not _name(url).startswith(".") and _name(url) != OUTPUT]
    is_output = any(_name(url) == OUTPUT for url, _ in entries)
    return [url for url, is_dir in kept if not is_dir], [url for url, is_dir in kept if is_dir], is_output


def _folder_name(patterns: list[Pattern]) -> str | None:
    """A folder that was named itself names the data set, whatever lies in it."""
    url = patterns[0].url
    if len(patterns) > 1 or patterns[0].is_glob or not _is_folder(url):
        return None
    return os.path.basename(os.path.abspath(url) if not is_remote(url) else url.rstrip("/"))

"""Files and folders that a user's texts name: found, told by kind, and refused with advice."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from curator_dali.errors import SourceError
from curator_dali.io import Storage, ask_listing, filesystem, is_http, is_remote, one_line, strip_query
from curator_dali.outputs import IMAGES
from curator_dali.sources.base import is_image, sniff_extension
from curator_dali.sources.listing import (
    COMPRESSED,
    OUTPUT,
    Listing,
    Pattern,
    advise_on_container,
    advise_on_missing,
    advise_on_protocol,
    is_metadata_file,
    list_folder,
    list_local,
    listing_options,
    stem_of,
)
from curator_dali.sources.paths import Paths

logger = logging.getLogger(__name__)

ACCEPTED = (
    "a folder of images, .tar or .parquet files, a glob ('shards/*.tar'), a brace list ('shards/{00000..00099}.tar'), "
    "a .tar, .parquet or image file, a URL of any of these that fsspec opens (s3://, gs://, http://, ...), a list of "
    "these of one kind, encoded images (a list of bytes, or a mapping from id to bytes), or a Source"
)
MOST_SHOWN = 5
_HEAD_BYTES = 16  # by which images are told
# kinds of what is no source: a file of another ending, a folder without images, a folder beside shards
OTHER, EMPTY, SUBFOLDER = "other", "empty", "subfolder"
NO_DATA = frozenset([OTHER, EMPTY, SUBFOLDER])
_IMAGES_OF_OUTPUT = re.compile(r"\d{12,}-\d{12,}-\d+" + re.escape(IMAGES))


class Match(NamedTuple):
    """A path or URL that a user's text names, and its kind: `tar`, `parquet`, `image`, `folder` or one of the above."""

    kind: str
    url: str
    by_glob: bool = False
    listing: Listing | None = None


def forget_listings(texts: list[str]) -> None:
    """Let stores be listed anew: fsspec keeps listings, perhaps of a time before files were written."""
    for text in {text.partition("://")[0]: text for text in texts if is_remote(text)}.values():
        filesystem(text)[0].invalidate_cache()


def check_text(text: str) -> None:
    """Refuse a text that names no files: an empty one, a command, or the members of an archive."""
    if not text:
        raise SourceError(f"cannot open {text!r} as a source: give {ACCEPTED}")
    if (advice := advise_on_protocol(text)) and not os.path.exists(text):
        raise SourceError(f"cannot open {text!r} as a source: {advice}")


def find(text: str, patterns: list[Pattern]) -> list[Match]:
    """Find the files and folders that the patterns of one text name."""
    found: list[Match] = []
    missing: list[str] = []
    for pattern in patterns:
        url = pattern.url
        if pattern.is_glob:
            matches = _glob(pattern)
            missing += [] if matches else [url]
            found += _match(pattern, matches)
        elif is_folder(url):
            found += _in_folder(url) or [Match(EMPTY, url)]
        elif is_remote(url) or os.path.exists(url):  # whether a remote file is there shows when it is opened
            found.append(Match(kind_of(url), url))
        else:
            missing.append(url)
    if missing:
        shown = ", ".join(map(repr, missing[:MOST_SHOWN])) + (", ..." if len(missing) > MOST_SHOWN else "")
        advice = advise_on_missing(missing[0])
        raise SourceError(
            f"nothing there: {shown}{f' (of {text!r})' if missing != [text] else ''}. {advice}{'. ' if advice else ''}"
            f"A source is {ACCEPTED}; relative paths count from {os.getcwd()!r}"
        )
    return found


def _match(pattern: Pattern, found: list[tuple[str, bool]]) -> list[Match]:
    """Sort the matches of a glob by kind. Outputs of curations are left out, unless all data are such."""
    known: dict[str, bool] = {}
    head = pattern.head
    kept = found
    if not is_remote(pattern.url):
        folders = [path if is_folder else path.rpartition("/")[0] for path, is_folder in found]
        kept = [match for match, at in zip(found, folders, strict=True) if not _is_in_output(at, head, known)]
    if len(kept) < len(found):
        matches = _match_all(kept)
        if any(match.kind not in NO_DATA for match in matches):
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


def _match_all(found: list[tuple[str, bool]]) -> list[Match]:
    matches: list[Match] = []
    for url, is_folder in found:
        kind = kind_of(url)
        if kind != "image" and is_folder:
            matches += [match._replace(by_glob=True) for match in _in_folder(url)] or [Match(EMPTY, url, True)]
        else:
            matches.append(Match(kind, url, True))
    return matches


def kind_of(url: str) -> str:
    """The kind of a file by its ending: see `Match`."""
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
    return "image" if is_image(path) else OTHER


def sniff(found: list[Match]) -> list[Match]:
    """Let files that were named themselves, with an ending that says nothing, be images if they begin like one."""
    named = [match.url for match in found if match.kind == OTHER and not match.by_glob]
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
                f"A source is {ACCEPTED}"
            )
    return [match._replace(kind="image") if match.kind == OTHER and not match.by_glob else match for match in found]


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


def is_folder(url: str) -> bool:
    """Whether a path or URL is a folder."""
    if not is_remote(url):
        return os.path.isdir(url)
    if not is_http(url):
        fs, path = filesystem(url)
        return bool(ask_listing(url, lambda: fs.isdir(path)))
    return url.endswith("/")  # any page can be listed, and a query costs one request for each shard


def _in_folder(folder: str) -> list[Match]:
    """The tars of a folder, or its Parquet files, and what is passed over with these; or itself, if it holds images.

    Tars go first: img2dataset writes Parquet files of metadata beside its tars, and beside its folders of images.
    """
    files, folders, is_output = look_into(folder)
    images = sum(map(is_image, files))
    tars = [file for file in files if file.lower().endswith(".tar")]
    shards, kind = (tars, "tar") if tars else (_pick_data(files, folders, images > 0), "parquet")
    if shards and images:
        raise SourceError(
            f"{folder!r} holds both {len(shards)} .{kind} and {images} image files: say which, with a glob "
            f"such as {os.path.join(folder, f'*.{kind}')!r}"
        )
    if shards:
        others = [] if is_output else sorted(set(files).difference(shards))
        unread = [] if is_output else [url for url in folders if not last_name(url).startswith("_")]
        return [
            *(Match(kind, shard) for shard in sorted(shards)),
            *(Match(OTHER, file, True) for file in others),
            *(Match(SUBFOLDER, url, True) for url in without_outputs(unread)),
        ]
    if images:
        return [Match("folder", folder)]
    listing = list_folder(folder) if is_remote(folder) else None
    deep: dict[str, list[str]] = {"tar": [], "parquet": [], OTHER: []}
    for file in list_local(folder, in_order=False) if listing is None else listing.paths:
        if is_image(file):
            return [Match("folder", folder, listing=listing)]
        if file.lower().endswith(".tar"):
            deep["tar"].append(os.path.join(folder, file))
        elif "/_" not in f"/{file}":  # Spark's _temporary/ and _metadata are no data
            deep["parquet" if _is_parquet(file) else OTHER].append(os.path.join(folder, file))
    kind = "tar" if deep["tar"] else "parquet"
    others = [file for other, found in deep.items() if other != kind for file in found]
    shards = sorted(deep[kind])
    return [*(Match(kind, file) for file in shards), *(Match(OTHER, file, True) for file in others if shards)]


def _pick_data(files: Sequence[str], folders: list[str], images: bool) -> list[str]:
    """Parquet files right in a folder that hold images, not metadata of the images in the folder or its folders.

    Of an output in Hugging Face's layout, the rows of all samples hold none.
    """
    parquets = [file for file in files if _is_parquet(file) and not last_name(file).startswith("_")]
    if written := [file for file in parquets if _IMAGES_OF_OUTPUT.fullmatch(last_name(file))]:
        return written
    metadata = {file for file in parquets if is_metadata_file(file)}
    beside = {url.rstrip("/") for url in folders}
    tables = {file for file in parquets if stem_of(file) in beside}  # as img2dataset has one for each folder
    if not images and not any(is_image(file) for table in tables for file in look_into(stem_of(table))[0]):
        tables = set()
    data = [file for file in parquets if file not in metadata | tables]
    return [file for file in parquets if file not in tables] if data and not images else data


def _is_parquet(file: str) -> bool:
    return file.lower().endswith((".parquet", ".pq"))


def last_name(url: str) -> str:
    """The last component of a path or URL."""
    return url.rstrip("/").rpartition("/")[2]


def look_into(folder: str) -> tuple[Sequence[str], list[str], bool]:
    """Look what lies right in a folder.

    Returns:
        Paths or URLs of the files and of the folders, without hidden ones and outputs' own; and whether the folder is
        the output of a curation.
    """
    folders: list[str] = []
    files = Paths(_split_off(_list_entries(folder), folders))
    kept = [url for url in folders if last_name(url) != OUTPUT]
    return files, kept, len(kept) < len(folders)


def _list_entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Iterate over the paths or URLs of what lies right in a folder, and whether each is a folder."""
    if is_remote(folder):
        fs, path = filesystem(folder)
        spell = _make_speller(fs, folder, folder)
        listed = ask_listing(folder, lambda: fs.ls(path, detail=True))
        yield from ((spell(entry["name"]), entry["type"] == "directory") for entry in listed)
        return
    try:
        with os.scandir(folder) as found:
            yield from ((entry.path, entry.is_dir()) for entry in found)
    except OSError as error:
        raise SourceError(f"cannot list {folder!r}: {one_line(error)}") from error


def _split_off(entries: Iterable[tuple[str, bool]], folders: list[str]) -> Iterator[str]:
    """Iterate over the files that are not hidden; add the folders that are not."""
    for url, is_dir in entries:
        if not last_name(url).startswith("."):
            if is_dir:
                folders.append(url)
            elif last_name(url) != OUTPUT:
                yield url


def without_outputs(folders: Sequence[str]) -> list[str]:
    """Folders without those local ones that are outputs of curations."""
    return [url for url in folders if is_remote(url) or not os.path.isdir(f"{url}/{OUTPUT}")]

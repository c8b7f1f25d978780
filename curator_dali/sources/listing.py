"""Files below a folder, local or remote; the patterns that name files; and advice where a name is no source."""

from __future__ import annotations

import logging
import os
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from curator_dali.errors import SourceError, count
from curator_dali.io import ask_listing, content_hash, filesystem, is_http, is_remote, strip_query
from curator_dali.sources.paths import Names, Paths
from curator_dali.sources.sidecars import SIDECARS

logger = logging.getLogger(__name__)

OUTPUT = "_manifest"
"""The folder that every output of a curation has."""

_METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

_TOLD_SECONDS = 5.0  # between lines of the log, while a folder is listed
_MOST_ENDINGS = 6
_BESIDE_ENDINGS = (*(f".{extension}" for extension in SIDECARS), ".parquet")
_USUAL_STEMS, _USUAL_ENDINGS = (
    ("readme", "license", "licence"),
    (".md", "thumbs.db", "desktop.ini", "_stats.json", ".idx", ".cdindex", ".tar.headers"),
)

_SPLITS = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "dev"])
"""Usual names of the parts of a data set, in lower case."""

_SPLIT_FILE = re.compile(rf"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?:[-_.]?\d[^/]*)?\.\w+", re.IGNORECASE)
_MOST_NAMES = 5

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBER_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_WILDCARD = re.compile(r"[*?\[]")

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_PACK = "write its images as .tar shards (webdataset's TarWriter does) or as a .parquet file with a column of bytes"
_CONTAINER_ADVICE = {
    (".zip", ".7z", ".rar"): "an archive, which is not read: unpack it first (unzip, 7z x), and give the folder",
    (".tfrecord", ".tfrecords", ".tfrec"): f"a TFRecord file, which is not read: {_PACK}",
    (".rec", ".rio"): f"a RecordIO file, which is not read: {_PACK}",
    (".mdb", ".lmdb"): f"an LMDB database, which is not read: {_PACK}",
    (".h5", ".hdf5", ".mat", ".npy", ".npz"): f"a file of arrays, which is not read: {_PACK}",
    (".pkl", ".pickle", ".pt", ".pth"): "a pickle, which is not read: load it, and give its encoded images as a list",
    (".arrow", ".feather"): (
        "an Arrow file, which is not read: write it as Parquet (Dataset.to_parquet of datasets, write_table of "
        "pyarrow.parquet)"
    ),
    (".txt", ".lst", ".tsv", ".csv", ".json", ".jsonl"): (
        "no image. If it lists paths or URLs, give these as a list: [line.strip() for line in open(...)]"
    ),
}
_ARCHIVE_URL = re.compile(r"(?:^|::)(zip|tar|libarchive|dir)(?:://|::)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


_Listed: TypeAlias = tuple[str, frozenset[tuple[int, int]]]
_Run: TypeAlias = tuple[str, Names, int, int]


class Listing(NamedTuple):
    """Files and folders below a folder.

    Attributes:
        paths: Files, as paths relative to the folder, in order.
        folders: Names of the folders right below it, in order.
        versions: Path -> what tells a file's content apart; empty where asking the files is as cheap (locally).
    """

    paths: Sequence[str] = ()
    folders: Sequence[str] = ()
    versions: Mapping[str, tuple[Any, ...]] = {}

    def below(self, folder: str) -> Listing:
        """Make the listing of a folder above. This listing is of `folder`, a path below it."""
        return Listing(
            [f"{folder}/{path}" for path in self.paths],
            [folder.partition("/")[0]],
            {f"{folder}/{path}": version for path, version in self.versions.items()},
        )


def list_folder(root: str) -> Listing:
    """List all files below a folder. Hidden ones and outputs of curations below it are passed over.

    Raises:
        SourceError: The folder, or one in it, is missing or cannot be listed.
    """
    if is_remote(root):
        return _list_remote(root)
    folders: list[str] = []
    return Listing(Paths(list_local(root, folders)), sorted(folders))


def list_local(root: str, folders: list[str] | None = None, *, in_order: bool = True) -> Iterator[str]:
    """All files below a local folder, as paths relative to it; links to folders are followed, once round a loop.

    Args:
        root: The folder.
        folders: Gets the names of the folders right below it.
        in_order: Whether files come in the order of their paths; else each comes as soon as it is found.

    Raises:
        SourceError: The folder, or one in it, is missing or cannot be listed.
    """
    listed, told = 0, time.monotonic()
    # folders to list, with those above; and runs of files: the folder, its files in order, the first, behind the last
    stack: list[_Listed | _Run] = [("", frozenset())]
    while stack:
        entry = stack.pop()
        if len(entry) == 4:
            below, files, begin, end = entry
            for name in files if (begin, end) == (0, len(files)) else files[begin:end]:
                yield below + name
            continue
        below, above = entry
        folder = os.path.join(root, below)
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:  # a link back to a folder that this one lies in
                logger.info("%s is a link to a folder above it: not followed", folder)
                continue
            if below and os.path.isdir(f"{folder}{OUTPUT}"):
                logger.info("%s is the output of a curation: passed over", folder)
                continue
            if folders is not None and below.count("/") == 1:
                folders.append(below[:-1])
            inner: list[str] = []
            if not in_order:
                yield from (below + name for name in _list_names(folder, inner))
                stack += [(f"{below}{name}/", above | {here}) for name in inner if below or name != OUTPUT]
                continue
            files = Names(_list_names(folder, inner)).sort()
        except OSError as error:
            raise SourceError(f"cannot list the folder {folder!r}: {error.strerror or error}") from error
        listed += len(files)
        if time.monotonic() - told > _TOLD_SECONDS:
            told = time.monotonic()
            logger.info("listed %s files in %s so far", f"{listed:,}", root)
        begin = 0
        runs: list[_Listed | _Run] = []
        for name in sorted(f"{name}/" for name in inner if below or name != OUTPUT):
            end = bisect_left(files, name, begin)  # files before "a/x.jpg": "a-b.jpg" is one, "a0.jpg" none
            runs += [(below, files, begin, end), (below + name, above | {here})]
            begin = end
        runs.append((below, files, begin, len(files)))
        stack += reversed(runs)


def _list_names(folder: str, folders: list[str]) -> Iterator[str]:
    """Iterate over the names of the files right in a local folder, hidden ones left out; add those of its folders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            else:
                yield entry.name


def _list_remote(root: str) -> Listing:
    path, found = _find(root, withdirs=True)
    path = path.rstrip("/")
    below = {name[len(path) :].strip("/"): info for name, info in found.items()}
    visible = {name: info for name, info in below.items() if name and "/." not in f"/{name}"}
    outputs = {name.partition(f"/{OUTPUT}/")[0] for name in visible if f"/{OUTPUT}/" in name}
    for output in sorted(outputs):
        logger.info("%s/%s is the output of a curation: passed over", root, output)
    own = (*(f"{output}/" for output in outputs), f"{OUTPUT}/")
    kept = {name: info for name, info in visible.items() if not f"{name}/".startswith(own)}
    files = {name: _version_of(info) for name, info in sorted(kept.items()) if info.get("type") != "directory"}
    folders = {name.partition("/")[0] for name in kept if "/" in name}
    folders |= {name for name, info in kept.items() if info.get("type") == "directory" and "/" not in name}
    return Listing(list(files), sorted(folders), files)


def list_beside(root: str, files: Iterable[str]) -> Listing:
    """List the local folders that files lie in, up to the root: sidecars and metadata files are there."""
    return list_right_in(root, {"", *folders_above(files)})


def list_right_in(root: str, folders: Iterable[str]) -> Listing:
    """List the files right in some folders below a root ("" is itself), local or remote.

    A folder that cannot be listed has none.
    """
    found: list[str] = []
    versions: dict[str, tuple[Any, ...]] = {}
    for folder in sorted(folders):
        try:
            if is_remote(root):
                versions.update(list_below(root, folder, 1))
                continue
            with os.scandir(f"{root}/{folder}") as entries:
                found += [os.path.join(folder, entry.name) for entry in entries if not entry.is_dir()]
        except (OSError, SourceError) as error:  # whoever reads the files meets the reason
            logger.info("cannot list %s/%s: %s", root, folder, error)
    return Listing(sorted([*found, *versions]), (), versions)


def list_below(root: str, folder: str, depth: int | None) -> dict[str, tuple[Any, ...]]:
    """List the files of a remote folder, a path below the root or "", to a depth of levels or whole.

    Returns:
        Path below the root -> version.

    Raises:
        SourceError: The folder cannot be listed.
    """
    url = f"{root}/{folder}"
    path, found = _find(url, maxdepth=depth)
    skip = len(path.rstrip("/"))
    return {f"{folder}/{name[skip:].lstrip('/')}".lstrip("/"): _version_of(info) for name, info in found.items()}


def _find(url: str, **options: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    """Find all files below a remote folder; return its path, and path -> what the store tells of each."""
    fs, path = filesystem(url)
    return path, ask_listing(url, lambda: fs.find(path, detail=True, **options, **listing_options(url)))


def _version_of(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the size of a remote file, and its content hash where the store has one. A copy has the same."""
    return info.get("size"), content_hash(info)


def listing_options(url: str) -> dict[str, Any]:
    """Make options of `find` and `glob`, by which fsspec tells of a web server that does not answer."""
    return {"on_error": _check_listed} if is_http(url) else {}


def _check_listed(error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):  # a dead link
        raise error


def folders_above(paths: Iterable[str]) -> set[str]:
    """All folders that paths lie in, but for "" and the top."""
    above: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        while folder and folder not in above:
            above.add(folder)
            folder = folder.rpartition("/")[0]
    return above


def common_folder(urls: Sequence[str]) -> str:
    """The deepest folder that all these paths or URLs lie in."""
    if not any(map(is_remote, urls)):
        return os.path.commonpath([os.path.dirname(url) for url in urls])
    paths = [strip_query(url) for url in urls]
    return os.path.commonprefix(paths).rpartition("/")[0]  # noqa: RUF071 (commonpath does not know "//")


def stem_of(path: str) -> str:
    """The path without its extension; a name without a dot is all stem."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") else path


def is_metadata_file(path: str) -> bool:
    """Whether a file says something of the images beside and below it, by its name in any case; see `Annotations`."""
    return path.rpartition("/")[2].lower() in _METADATA_FILES


def warn_passed_over(where: str, paths: Iterable[str], used: Container[str], folders: int = 0) -> None:
    """Warn of files that are not read, by their endings. Files that usually lie beside data are not counted.

    Args:
        where: What they were found in or by.
        paths: Files that are no samples.
        used: Stems of images and names of folders, whose sidecars and Parquet files (img2dataset's) are of use.
        folders: How many folders were passed over with them.
    """
    counts = Counter(_ending(path) for path in paths if not _is_usual(path, used))
    total = sum(counts.values())
    parts = [f"{number:,} {ending}" for ending, number in counts.most_common(_MOST_ENDINGS)]
    if rest := total - sum(number for _, number in counts.most_common(_MOST_ENDINGS)):
        parts.append(f"{rest:,} with other endings")
    skipped = [count(number, kind) for number, kind in ((total, "file"), (folders, "folder")) if number > 0]
    if skipped:
        logger.warning(
            "passing over %s of %s%s", " and ".join(skipped), where, f": {', '.join(parts)}" if parts else ""
        )


def _ending(path: str) -> str:
    stem, dot, ending = path.rpartition("/")[2].rpartition(".")
    if stem.lower().endswith(".tar"):
        ending = f"tar.{ending}"
    return f".{ending.lower()}" if dot and stem else "without an ending"


def _is_usual(path: str, used: Container[str]) -> bool:
    """Whether a file says something of a sample, or of the data set to people or other tools."""
    name = path.rpartition("/")[2].lower()
    if is_metadata_file(name) or (name.endswith(_BESIDE_ENDINGS) and stem_of(path) in used):
        return True
    marker = name.startswith("_") and "." not in name  # Spark's _SUCCESS, _metadata and such
    return marker or name.startswith(".") or stem_of(name) in _USUAL_STEMS or name.endswith(_USUAL_ENDINGS)


def warn_of_split_folders(names: Sequence[str], root: str) -> None:
    """Warn where the folders right below the root are splits of a data set, not classes."""
    splits = [name for name in names if name.lower() in _SPLITS]
    if splits and ("train" in splits or len(splits) == len(names)):
        logger.warning(
            "the folders %s in %s are named like splits of a data set, and all are read as one, with these as its "
            "classes if it has class folders: open %s/%s instead, or give label_from_folder=False",
            list_names(splits),
            root,
            root,
            splits[0],
        )


def warn_of_split_files(urls: Sequence[str], spec: str) -> None:
    """Warn where files that are read as one data set are splits (`train-00000-of-00002.parquet`, `test.tar`).

    `spec` is what the user named.
    """
    splits: dict[str, str] = {}  # split -> a pattern of its files
    for url in urls:
        folder, _, file = strip_query(url).rpartition("/")
        above = folder.rpartition("/")[2]
        if match := _SPLIT_FILE.fullmatch(file):
            splits.setdefault(match[1], f"{folder}/{match[1]}*.{file.rpartition('.')[2]}")
        elif above.lower() in _SPLITS:
            splits.setdefault(above, folder)
    if len(splits) > 1:
        logger.warning(
            "%s holds the splits %s, and all are read as one data set: give %r for one of them",
            spec,
            list_names(splits),
            next(iter(splits.values())),
        )


def list_names(names: Iterable[str]) -> str:
    """List names in quotes for a message: five, and how many more there are."""
    names = sorted(names)
    rest = len(names) - _MOST_NAMES
    return ", ".join(map(repr, names[:_MOST_NAMES])) + f" and {rest} more" * (rest > 0)


class Pattern(NamedTuple):
    """A path, a URL or a glob of either."""

    url: str
    is_glob: bool

    @property
    def head(self) -> str:
        """The folder that stands before the wildcards of a glob."""
        head = _WILDCARD.split(self.url, maxsplit=1)[0].rpartition("/")[0]
        return head if is_remote(self.url) else os.path.abspath(head or ("/" if self.url[0] == "/" else "."))


def read_patterns(text: str) -> list[Pattern]:
    """Find the paths, URLs and globs that a text stands for.

    A file or folder of the very name that a text, or a part of a brace list, spells goes before a glob. In the URL of a
    web server a `?` begins the query; elsewhere it is a wildcard, or a part of a name.
    """
    text = text if is_remote(text) else os.path.expanduser(text)
    urls = expand_braces(text)
    if urls != [text] and _is_there(text):
        return [Pattern(text, False)]
    return [Pattern(url, is_glob(url) and not _is_there(url)) for url in urls]


def is_glob(url: str) -> bool:
    """Whether a path or URL has wildcards. A file may have such a name, too."""
    return bool(_WILDCARD.search(strip_query(url)))


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{000..099}` (and `{0..8..2}`) as a shell does; other braces stand for themselves."""
    for match in _BRACES.finditer(pattern):
        body = match[1]
        if numbers := _NUMBER_RANGE.fullmatch(body):
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


def _is_there(url: str) -> bool:
    """Whether a file or folder has a name that reads like a glob or a brace list. Web servers may answer to any."""
    if not is_remote(url) or os.path.exists(url):  # "a::b.jpg" may be a file
        return os.path.exists(url)
    if is_http(url) and ("*" in url or not _WILDCARD.search(strip_query(url))):
        return False
    fs, path = filesystem(url)
    try:
        return bool(fs.exists(path))
    except Exception:  # the reader of the glob meets the reason
        return False


def advise_on_container(url: str) -> str:
    """Say what a file of a known ending is, and what to do with it; "" for other endings."""
    path = strip_query(url).lower()
    return next((advice for endings, advice in _CONTAINER_ADVICE.items() if path.endswith(endings)), "")


def advise_on_protocol(text: str) -> str:
    """Say why a command, or a URL of the members of an archive, is no source; "" for others."""
    if text.startswith("pipe:"):
        return "no commands are run. Give the tars themselves, or URLs that fsspec opens (s3://, gs://, https://)"
    if match := _ARCHIVE_URL.search(text):
        return (
            f"fsspec's {match[1]}:// goes through the whole archive for each image. Unpack the archive and give the "
            "folder; a .tar is opened by its own path or URL"
        )
    return ""


def advise_on_missing(text: str) -> str:
    """Say what a name of nothing may have been meant for; "" where that is not clear."""
    if text != text.strip():
        known = "that name without it is there" if os.path.exists(text.strip()) else "leave it out"
        return f"The name begins or ends with white space: {known}"
    if _HUB_NAME.fullmatch(text):
        return (
            "If it is a data set of the Hugging Face hub, give its Parquet files, such as "
            "'hf://datasets/OWNER/NAME/**/*.parquet' (pip install huggingface_hub)"
        )
    return ""

"""A tree of image files, local or remote, as a source."""

from __future__ import annotations

import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked
from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError, count
from curator_dali.io import (
    LARGEST_FILE,
    Stat,
    Storage,
    fingerprint,
    is_http,
    is_remote,
    one_line,
    printable,
    strip_query,
    strip_signature,
)
from curator_dali.sources.annotations import Annotations, number_classes
from curator_dali.sources.base import (
    HEADER_DTYPE,
    TAIL_BYTES,
    EncodedBatch,
    Head,
    LearningSource,
    is_image,
    sniff_extension,
)
from curator_dali.sources.dataset_index import find_folder
from curator_dali.sources.folder_index import FILE_DTYPE, stat_files
from curator_dali.sources.listing import (
    Listing,
    is_metadata_file,
    list_beside,
    list_folder,
    stem_of,
    warn_of_split_folders,
    warn_passed_over,
)
from curator_dali.sources.paths import HashGroups, Paths
from curator_dali.sources.row_groups import is_unread, read_bytes, read_file, read_head
from curator_dali.sources.sidecars import SIDECARS, add_sidecars, make_sidecars, parse_metadata

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_PREPARE_AGAIN = ". The index of the data set is older: `curator-dali prepare` brings it up to date"


class FolderSource(LearningSource):
    """Image files below a folder, in the order of their paths.

    `image_id` is the path below the folder without its extension (`cats/1` for `cats/1.jpg`). A file keeps it where the
    id would be another's (`cats/1.jpg` and `cats/1.png`), so that ids are unique. `image_path` is the
    file's path or URL. Files of the same stem that end in `.json`, `.txt` or `.cls`, in any case, become the metadata,
    as `parse_metadata` says, read when somebody asks for it (remote ones: together with the image). Fields that are
    missing there come from a `metadata.jsonl`, `.csv` or `.parquet` with a column `file_name`, as `Annotations` says.

    Files and folders whose names begin with a dot are passed over, and outputs of curations below the folder; links to
    folders are followed, once round a loop. A warning counts other files that are not read.

    Args:
        root: The folder, or its URL.
        files: Paths below `root`, instead of all images in it.
        label_from_folder: Whether images get a `label` (int) and a `label_name` from the folders right below `root`,
            numbered by name as torchvision's ImageFolder does (folders without images too), if *every* image lies in
            one and no metadata file says something else. False silences all warnings of classes and splits.
        name: The data set's name; by default the folder's.
        listing: What lies below `root`, where that is known already. With `files`, it need only have their neighbours.
        index: The folder of the index of a data set that `prepare` made. "cache" and "beside" look for one in `root`;
            "none" takes none, and so do `files`. A local folder is listed and compared with it; a remote one is not.
        indexes: Folders of such indexes that were looked into already, with what was found there; None for nothing.

    Raises:
        SourceError: The folder, or one in it, is missing or cannot be listed; a metadata file is damaged. Images of
            the index are gone from a folder that was listed; they are named.
    """

    _advice = ""  # of an image that changed
    _opened: NDArray[np.int64] | None = None  # sizes of `_all_files` at the opening, until the fingerprint is made

    _stamps: NDArray[np.int64] | None = None  # (N, 4), hashes of what the listing says of each file; for a cache

    @checked
    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        files: Sequence[str] | None = None,
        label_from_folder: bool = True,
        name: str | None = None,
        listing: Listing | None = None,
        index: str | os.PathLike[str] = "cache",
        indexes: Mapping[str, Any] | None = None,
    ) -> None:
        root = os.fspath(root)
        self._remote = is_remote(f"{root}/")  # "s3:/" holds all buckets, and "file://" all paths
        self._root = root.rstrip("/") if self._remote else os.path.abspath(root)
        if self._root.endswith(":"):
            self._root = root
        self._named = files is not None
        self._storage = Storage()
        self.read_ahead = 8 if self._remote else 1
        self.name = name or strip_query(self._root).rpartition("/")[2] or "images"
        if files is not None:  # "./a.jpg" is a.jpg
            files = [os.path.normpath(path) if "./" in path and not self._remote else path for path in files]
        prepared = find_folder(self._root, os.fspath(index), indexes or {}) if files is None else None
        if listing is None and prepared is not None and prepared.is_listing_of(self._root):
            listing, self._advice = prepared.make_listing(), _PREPARE_AGAIN
        if listing is None and files is None:
            listing = list_folder(self._root)
        elif listing is None:
            listing = Listing() if self._remote else list_beside(self._root, files or ())
        self._files, others, self._listed = _pick_images(listing, files)
        count = len(self._files)
        self._signed = is_http(f"{self._root}/") and any("?" in path for path in self._files)
        names: Sequence[str] = [self._unsign(path) for path in self._files] if self._signed else self._files
        if self._signed and len(set(names)) < len(set(self._files)):  # what tells images apart is no signature
            self._signed, names = False, self._files
        stems = HashGroups(map(stem_of, names), count)
        self._sidecars, self._spellings, used = _match_sidecars(names, stems, others)
        self._repeated = _find_repeated(names, stems)
        self._tables = [path for path in others if is_metadata_file(path)]
        self._annotations = Annotations(self._root, self._tables, self._files, self._read_table, whole=files is None)
        self._classes: list[str] = []
        self._labels = np.full(count, -1, np.int32)
        if self._annotations:
            logger.info("%s has metadata files: no labels are made of folders", self._root)
            if label_from_folder:
                warn_of_split_folders(listing.folders, self._root)
        elif label_from_folder:
            self._classes, self._labels = number_classes(names, listing.folders, self._root)
        self._class_fields = [{"label": number, "label_name": name} for number, name in enumerate(self._classes)]
        self._class_sidecars = [make_sidecars(fields) for fields in self._class_fields]
        if files is None:
            # img2dataset has a Parquet file of metadata beside each folder
            known = _Stems(names, stems, listing.folders)
            warn_passed_over(self._root, compress(others, ~used), known)
        self._headers = np.zeros(count, HEADER_DTYPE)
        self._bytes: NDArray[np.int64] | None = None  # what `_keep_sizes` keeps
        self._listed_as = ""  # a digest of what the listing says of the files; local files are asked themselves
        if listing.versions:
            versions = (listing.versions.get(os.fsdecode(path)) for path in self._all_files())
            self._listed_as = fingerprint("listing", zip(self._all_files(), versions, strict=True))
            found = (listing.versions.get(os.fsdecode(path)) for path in self._all_files())
            sizes = (-1 if not version or version[0] is None else int(version[0]) for version in found)
            self._keep_sizes(np.fromiter(sizes, np.int64))
            if self._storage.cache is not None:
                found = (listing.versions.get(os.fsdecode(path)) for path in self._all_files())
                stamps = (zlib.crc32(repr(version).encode()) for version in found)
                self._stamps = self._lay_out(np.fromiter(stamps, np.int64))
        if prepared is not None:
            self._opened = None if self._remote else self._ask_sizes()
            then = self.image_sizes(np.arange(count)) if self._opened is None else self._opened[:count]
            self._headers = prepared.look_up(self._root, self._files, then)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not isinstance(files := state["_files"], Paths):  # an array of bytes, of an earlier version
            self._files = Paths(map(os.fsdecode, files.tolist()))

    def __len__(self) -> int:
        return len(self._files)

    @property
    def has_known_ids(self) -> bool:
        """True: ids are names that the fingerprint is made of."""
        return True

    @property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """Names of the labels that come from folders."""
        return {self.name: list(self._classes)}

    @property
    def locations(self) -> Sequence[str]:
        """The folder, or the files that were named."""
        if not self._named:
            return [f"{self._root}/"]
        return [f"{self._root}/{path}" for path in self._files]

    @cached_property
    def fingerprint(self) -> str:
        """Of the class names, and of the paths and sizes of images, sidecars and metadata files.

        Of a remote folder it is also of the files' hashes, where the store lists any. Times of change do not matter,
        so that a copied data set is the same one. Two changes are not seen: a local file that another of equal size
        replaced, and one of a list of remote files, which are never looked at before they are read.
        """
        files: Iterable[object] = self._all_files()
        if self._signed:
            files = (os.fsencode(self._unsign(os.fsdecode(path))) for path in self._all_files())
        if not self._remote:
            sizes, self._opened = self._ask_sizes() if self._opened is None else self._opened, None
            files = zip(files, map(int, sizes), strict=True)
        return fingerprint("folder", chain([self._classes, self._listed_as], files))

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes that files had when they were listed, (N,) int64; -1 where they are not known."""
        return super().image_sizes(indices) if self._bytes is None else self._bytes[indices, 0]

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read files, each into a buffer of its own; see `Source.read`."""
        return self._read(indices, np.zeros(len(indices), bool), members)

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read files, of some samples the sidecars only; see `Source.read_without`."""
        if type(self).read is not FolderSource.read:  # a subclass has its own way
            return self.read(indices, members=members)
        return self._read(indices, skipped, members)

    def _read(self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], members: bool) -> EncodedBatch:
        """Read samples, those that are `skipped` (N,) without their images."""
        indices = np.asarray(indices, np.int64)
        numbers = indices.tolist()
        paths = [self._files[number] for number in numbers]
        spelled = self._sidecars[indices].tolist()
        sidecars = [self._sidecar_urls(path, row) for path, row in zip(paths, spelled, strict=True)]
        stats = self._find_stats(numbers, paths, sidecars)
        results, fetched = self._read_images(paths, sidecars, skipped, stats)
        if members and not self._remote:
            fetched = {url: read_bytes(url, LARGEST_FILE) for beside in sidecars for url in beside.values()}
        batch = EncodedBatch(indices, [], [], [self._root] * len(numbers), self.headers(indices))
        for row, (path, number, result) in enumerate(zip(paths, numbers, results, strict=True)):
            url = f"{self._root}/{path}"
            result = result if skipped[row] else self._check_size(result, number, 0)
            if isinstance(result, BaseException):
                batch.errors[row] = one_line(result)
                readable = self._was_readable(number, 0)
                listed = self._listed is None or bool(self._listed[number])
                if is_unread(result, url, listed=listed, readable=readable):
                    batch.unread.add(row)
                result = np.empty(0, np.uint8)
            elif len(result) == 0 and not skipped[row]:
                batch.errors[row] = "the image has no bytes"
            elif self._bytes is not None and not skipped[row] and len(result) != self._bytes[number, 0]:
                batch.headers[row] = np.zeros((), HEADER_DTYPE)  # another image may be there since the index was made
            batch.images.append(result)
            metadata = self._metadata(number, sidecars[row], fetched)
            key = self._make_id(path, number)
            batch.objects.append(ImageObject(f"{self._root}/{printable(path)}", key, metadata))
        if members:
            batch.members = [
                self._members(batch, row, path, number, sidecars[row], fetched)
                for row, (path, number) in enumerate(zip(paths, numbers, strict=True))
            ]
        return batch

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings and the ends of files; see `Source.read_heads`."""
        numbers = np.asarray(indices, np.int64).tolist()
        urls = [f"{self._root}/{self._files[number]}" for number in numbers]
        if not self._remote:
            return [read_head(url, length) for url in urls]
        known = [-1 if self._bytes is None else int(self._bytes[number, 0]) for number in numbers]
        rows = [row for row, size in enumerate(known) if size > length]  # a whole file costs one request, not two
        ranges = [(urls[row], 0, length) for row in rows]
        got = self._storage.cat([*ranges, *((urls[row], known[row] - TAIL_BYTES, known[row]) for row in rows)])
        heads: list[Head | None] = [None] * len(numbers)
        for row, data, tail in zip(rows, got, got[len(rows) :], strict=False):
            if isinstance(data, bytes) and isinstance(tail, bytes) and len(data) == length:
                heads[row] = Head(np.frombuffer(bytearray(data), np.uint8), tail, known[row])
        return heads

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """Make ids of paths; see `Source.read_ids`."""
        import pyarrow as pa

        numbers = np.asarray(indices, np.int64).tolist()
        return pa.array([self._make_id(self._files[n], n) for n in numbers], pa.large_string())

    def close(self) -> None:
        """Close threads. A later read opens them again."""
        self._storage.close()

    def _make_id(self, path: str, number: int) -> str:
        """The id of an image: its path below the root, without the extension where no other image has that id."""
        name = self._unsign(path) if self._signed else path
        return printable(name if self._repeated[number] else stem_of(name))

    def _metadata(self, number: int, sidecars: Mapping[str, str], fetched: Mapping[str, bytes | BaseException]) -> Any:
        """A sample's metadata, or a function that makes it."""
        if self._annotations:
            defaults: Any = partial(self._annotations.fields, number)
        else:
            defaults = self._class_fields[self._labels[number]] if self._classes else {}
        if not sidecars:
            return dict(defaults) if isinstance(defaults, dict) else defaults
        return partial(_read_metadata, {ext: fetched.get(url, url) for ext, url in sidecars.items()}, defaults)

    def _members(
        self,
        batch: EncodedBatch,
        row: int,
        path: str,
        number: int,
        sidecars: Mapping[str, str],
        fetched: Mapping[str, bytes | BaseException],
    ) -> Mapping[str, memoryview]:
        """A sample's members. One that has a sidecar which cannot be read now is unread: its metadata would be lost."""
        found: dict[str, memoryview] = {}
        lost = False
        if row not in batch.errors and len(batch.images[row]):
            image = batch.images[row].data
            found[path.rpartition(".")[2] if is_image(path) else sniff_extension(image)] = image
        for ext, url in sidecars.items():
            column = 1 + SIDECARS.index(ext)
            data = self._check_size(fetched[url], number, column)
            if isinstance(data, bytes):
                found[ext] = memoryview(data)
                continue
            lost = True
            readable = self._was_readable(number, column)
            if row not in batch.errors and isinstance(data, BaseException) and is_unread(data, url, readable=readable):
                batch.errors[row] = f"a sidecar cannot be read: {one_line(data)}"
                batch.unread.add(row)
        if self._classes and sidecars.keys() <= {"txt"} and not lost:  # .json and .cls are free
            made = self._class_sidecars[self._labels[number]]
            found.update((extension, memoryview(data)) for extension, data in made.items())
        elif lost or self._classes or self._annotations:
            return add_sidecars(found, batch.objects[row].metadata)
        return found

    def _unsign(self, path: str) -> str:
        """Return a path below the root without the signature of its URL."""
        return strip_signature(f"{self._root}/{path}")[len(self._root) + 1 :]

    def _ask_sizes(self) -> NDArray[np.int64]:
        """Ask for the bytes of all local files, keep those of files that may be read, and return all."""
        found = np.fromiter(stat_files(self._root, self._all_files()), FILE_DTYPE)
        self._keep_sizes(np.where(found["readable"], found["size"], -1))
        return found["size"].copy()

    def _keep_sizes(self, sizes: NDArray[np.int64]) -> None:
        """Keep the bytes of `_all_files`, -1 for a file that cannot be read.

        A file that has another size when it is read was changed meanwhile. One that cannot be read any more is
        unread: an image that never could be read is a bad one.
        """
        self._bytes = self._lay_out(sizes)

    def _lay_out(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Lay out a number for each of `_all_files`: (N, 4), the image and its sidecars, -1 where there is none.

        (N, 1) where no image has sidecars.
        """
        count = len(self._files)
        there = self._sidecars > 0
        table = np.full((count, 1 + len(SIDECARS) * bool(there.any())), -1, np.int64)
        table[:, 0] = values[:count]
        table[:, 1:][there[:, : table.shape[1] - 1]] = values[count + len(self._tables) :]
        return table

    def _find_stats(self, numbers: list[int], paths: list[str], sidecars: list[Mapping[str, str]]) -> dict[str, Stat]:
        """Return URL -> `Stat` of images and sidecars, by which a cache knows them; nothing without a cache."""
        if self._stamps is None or self._bytes is None:
            return {}
        found = {}
        for number, path, beside in zip(numbers, paths, sidecars, strict=True):
            columns = {f"{self._root}/{path}": 0} | {url: 1 + SIDECARS.index(ext) for ext, url in beside.items()}
            for url, column in columns.items():
                found[url] = Stat(int(self._bytes[number, column]), int(self._stamps[number, column]))
        return found

    def _check_size(self, data: Any, number: int, column: int) -> Any:
        """Data that were read, or an error where they have not the size that is kept."""
        if self._bytes is None or isinstance(data, BaseException):
            return data
        size = int(self._bytes[number, column])
        # a store may list the compressed size of a file that it serves unpacked
        if size in (-1, len(data)) or (self._remote and len(data) > size):
            return data
        return OSError(
            f"the file changed: it had {size:,} bytes when the data set was opened, and now has {len(data):,}"
            f"{self._advice}"
        )

    def _was_readable(self, number: int, column: int) -> bool | None:
        """Whether a file could be read when the sizes were kept; None where nothing is known."""
        if self._bytes is None:
            return None
        found = bool(self._bytes[number, column] >= 0)
        return found or (None if self._remote else False)

    def _all_files(self) -> Iterator[bytes]:
        """Paths of all files that this is made of: images, metadata files and sidecars."""
        yield from map(os.fsencode, self._files)
        yield from map(os.fsencode, self._tables)
        spellings = [spelling.encode() for spelling in self._spellings]
        for number in np.flatnonzero(self._sidecars.any(1)).tolist():
            stem = os.fsencode(stem_of(self._files[number]))
            yield from (b"%s.%s" % (stem, spellings[at]) for at in self._sidecars[number].tolist() if at)

    def _read_table(self, path: str) -> bytes:
        url = f"{self._root}/{path}"
        data = self._storage.cat([(url, None, None)])[0] if self._remote else read_bytes(url)
        if isinstance(data, BaseException):
            raise SourceError(f"cannot read the metadata file {url!r}: {one_line(data)}") from data
        return data

    def _sidecar_urls(self, path: str, spelled: list[int]) -> Mapping[str, str]:
        if not any(spelled):
            return {}
        stem = f"{self._root}/{stem_of(path)}"
        return {ext: f"{stem}.{self._spellings[at]}" for ext, at in zip(SIDECARS, spelled, strict=True) if at}

    def _read_images(
        self,
        paths: list[str],
        sidecars: list[Mapping[str, str]],
        skipped: NDArray[np.bool_],
        stats: Mapping[str, Stat],
    ) -> tuple[list[NDArray[np.uint8] | BaseException], Mapping[str, bytes | BaseException]]:
        """Read a batch's images; of remote ones also the sidecars, in the same round trip."""
        images: list[NDArray[np.uint8] | BaseException] = [np.empty(0, np.uint8)] * len(paths)
        rows = np.flatnonzero(~skipped).tolist()
        urls = [f"{self._root}/{paths[row]}" for row in rows]
        if not self._remote:
            for row, url in zip(rows, urls, strict=True):
                images[row] = read_file(url, limit=LARGEST_FILE)
            return images, {}
        more = list(dict.fromkeys(url for beside in sidecars for url in beside.values()))
        got = self._storage.cat([(url, None, None) for url in urls + more], stats=stats)
        for row, data in zip(rows, got, strict=False):
            images[row] = data if isinstance(data, BaseException) else np.frombuffer(bytearray(data), np.uint8)
        return images, dict(zip(more, got[len(urls) :], strict=True))


def _pick_images(
    listing: Listing, files: Sequence[str] | None
) -> tuple[Paths, Sequence[str], NDArray[np.bool_] | None]:
    """Pick the images of a listing, or those that are named.

    Returns:
        The N images; the other files, in order; and (N,) whether each is in the listing, None where all are.
    """
    if files is not None:
        known = set(listing.paths)
        return Paths(files), sorted(known.difference(files)), np.array([path in known for path in files], bool)
    listed = listing.paths if isinstance(listing.paths, Paths) else Paths(listing.paths)
    mask = np.fromiter(map(is_image, listed), bool, len(listed))
    return listed.where(mask), listed.where(~mask), None


class _Stems:
    """Stems of images, and names of folders.

    Args:
        names: N paths of images.
        groups: Their stems.
        folders: Names.
    """

    def __init__(self, names: Sequence[str], groups: HashGroups, folders: Iterable[str]) -> None:
        self._names, self._groups, self._folders = names, groups, frozenset(folders)

    def __contains__(self, stem: object) -> bool:
        rows = self._groups.find(str(stem))
        return stem in self._folders or any(stem_of(self._names[row]) == stem for row in rows)


def _find_repeated(names: Sequence[str], stems: HashGroups) -> NDArray[np.bool_]:
    """(N,) whether the stem of an image's name is another's stem, or the whole name of another.

    "a.jpg.jpg" must not be "a.jpg", which may be an id, too.
    """
    repeated = np.zeros(len(names), bool)
    for rows in stems.repeated():
        counts = Counter(stem_of(names[row]) for row in rows)
        repeated[[row for row in rows if counts[stem_of(names[row])] > 1]] = True
    for number, name in enumerate(names):
        stem = stem_of(name)
        if is_image(stem) and any(names[row] == stem for row in stems.find(stem_of(stem))):
            repeated[number] = True
    return repeated


def _match_sidecars(
    names: Sequence[str], stems: HashGroups, others: Sequence[str]
) -> tuple[NDArray[np.uint8], list[str], NDArray[np.bool_]]:
    """Find the sidecars beside images. The case of an extension does not matter, and lower case goes first.

    Args:
        names: N paths of images.
        stems: Their stems.
        others: M paths of other files, in order.

    Returns:
        (N, 3) uint8, places in the list of spellings, a column each of SIDECARS, 0 where there is none; that list; and
        (M,) whether a file lies beside an image of its stem.
    """
    spellings = [""]
    found = np.zeros((len(names), len(SIDECARS)), np.uint8)
    used = np.zeros(len(others), bool)
    unused: list[str] = []  # those of one name in lower case that do not count
    for number, path in enumerate(others):
        stem, dot, extension = path.rpartition(".")
        lower = extension.lower()
        if not dot or lower not in SIDECARS:
            continue
        rows = [row for row in stems.find(stem) if stem_of(names[row]) == stem]
        if extension not in spellings:
            spellings.append(extension)
        if not rows:
            continue
        used[number] = True
        column = SIDECARS.index(lower)
        if before := int(found[rows[0], column]):
            unused.append(f"{stem}.{spellings[before] if extension == lower else extension}")
            if extension != lower:
                continue
        found[rows, column] = spellings.index(extension)
    if unused:
        logger.warning(
            "passing over %s that differ from another in nothing but the case of the extension, such as %r: lower case "
            "goes first, then the first by name",
            count(len(unused), "sidecar"),
            unused[0],
        )
    return found, spellings, used


def _read_metadata(sidecars: Mapping[str, str | bytes | BaseException], defaults: Any) -> dict[str, Any]:
    """A sample's metadata of its sidecars: extension -> their bytes, the path to read them from, or why that failed.

    `defaults` are fields of lowest precedence, or a function that makes these.
    """
    found: dict[str, bytes] = {}
    problems = []
    for ext, value in sidecars.items():
        data = read_bytes(value, LARGEST_FILE) if isinstance(value, str) else value
        if isinstance(data, BaseException):
            problems.append(f"a sidecar cannot be read: {one_line(data)}")
        else:
            found[ext] = data
    defaults = defaults() if callable(defaults) else defaults
    return parse_metadata(*(found.get(ext) for ext in SIDECARS), defaults=defaults, problem="; ".join(problems))

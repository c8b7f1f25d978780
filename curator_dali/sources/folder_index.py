"""A folder of images as its index has it: the listing of its files, and the headers of its images."""

from __future__ import annotations

import logging
import os
import stat
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import is_remote, printable
from curator_dali.sources.base import HEADER_DTYPE, is_image, quote
from curator_dali.sources.header_columns import ROW_NUMBERS, Codecs, header_fields, make_header_columns, parse_entries
from curator_dali.sources.listing import Listing, list_folder, list_names
from curator_dali.sources.paths import Paths
from curator_dali.threads import run_ahead

logger = logging.getLogger(__name__)

FILE_DTYPE = np.dtype([("size", "<i8"), ("version", "<i8"), ("readable", "?")])
"""Fields of a local file: bytes, -1 where there is no file; mtime in ns; whether it may be read."""

_STAT_THREADS, _STAT_FILES = 8, 1024  # files whose sizes each thread asks for at once
_ROWS = 16_384  # of a record batch, and paths that are texts at once


@dataclass
class FolderTable:
    """M files below a folder, in the order of their paths.

    Attributes:
        root: The folder, as it was when it was listed.
        folders: Names of the folders right below it, in order.
        paths: M paths below it, images and others, a `pyarrow.ChunkedArray`.
        sizes: (M,) int64 bytes, -1 where they are not known.
        versions: (M,) int64, mtime in ns of a local file, else 0.
        contents: M content hashes, "" where a store tells none, a `pyarrow.ChunkedArray`.
        headers: (M,) `HEADER_DTYPE`, codec 0 where nothing is known.
        problems: Row -> why the image is refused.
    """

    root: str
    folders: Sequence[str]
    paths: Any
    sizes: NDArray[np.int64]
    versions: NDArray[np.int64]
    contents: Any
    headers: NDArray[np.void]
    problems: dict[int, str]

    def __len__(self) -> int:
        return len(self.paths)

    def is_listing_of(self, root: str) -> bool:
        """Whether the table is what a store told of this very folder, so that the folder need not be listed again.

        Another store may tell other hashes, by which the fingerprint is made; a local folder tells none.
        """
        return is_remote(f"{root}/") and self.root.rstrip("/") == root.rstrip("/")

    def make_listing(self) -> Listing:
        """Make the listing that the store gave."""
        return Listing(Paths(iterate_texts(self.paths)), self.folders, _Versions(self))

    def find_images(self) -> NDArray[np.int64]:
        """Rows of the images."""
        return np.flatnonzero(np.fromiter(map(is_image, iterate_texts(self.paths)), bool, len(self)))

    def take(self, rows: NDArray[np.int64]) -> FolderTable:
        """Choose rows, in ascending order."""
        problems = {at: self.problems[row] for at, row in enumerate(rows.tolist()) if row in self.problems}
        facts = (self.sizes[rows], self.versions[rows], self.contents.take(rows), self.headers[rows])
        return FolderTable(self.root, self.folders, self.paths.take(rows), *facts, problems)

    def find(self, paths: Iterable[str]) -> NDArray[np.int64]:
        """(N,) int64: the row of each of N paths, which are in order; -1 where there is none."""
        rows, left = array("q"), enumerate(iterate_texts(self.paths))
        row, known = next(left, (-1, ""))
        for path in paths:
            while known < path and row >= 0:
                row, known = next(left, (-1, ""))
            rows.append(row if known == path else -1)
        return np.frombuffer(rows, np.int64).copy()

    def look_up(self, root: str, paths: Sequence[str], sizes: NDArray[np.int64]) -> NDArray[np.void]:
        """Look up the headers of all images of a folder. Of those that are new or have another size none is known.

        Args:
            root: The folder, for messages.
            paths: N paths of its images, in order.
            sizes: (N,) int64 bytes of these, -1 where they are not known.

        Returns:
            (N,) `HEADER_DTYPE`.

        Raises:
            SourceError: Images of the index are gone; they are named.
        """
        rows = self.find(paths)
        missing = np.ones(len(self), bool)
        missing[rows[rows >= 0]] = False
        gone = [path for path in self.paths.filter(missing).to_pylist() if is_image(path)]
        if gone:
            raise SourceError(
                f"{len(gone):,} images of the index of {root} are gone: {list_names(gone)}. Bring these back, or "
                "run `curator-dali prepare` where the data set is meant to have fewer images"
            )
        headers = np.zeros(len(paths), HEADER_DTYPE)
        same = rows >= 0
        same[same] = self.sizes[rows[same]] == sizes[same]
        headers[same] = self.headers[rows[same]]
        if not same.all():
            logger.warning(
                "%s of %s images, such as %s, are new or have changed since the index of %s was made, and their "
                "headers are read when they are needed: `curator-dali prepare` brings it up to date",
                f"{int((~same).sum()):,}", f"{len(paths):,}", quote(paths[int(np.argmin(same))]), root,
            )  # fmt: skip
        return headers

    @property
    def schema(self) -> Any:
        """The columns."""
        import pyarrow as pa

        texts = [("path", pa.string()), ("size", pa.int64()), ("version", pa.int64()), ("content", pa.string())]
        return pa.schema([*texts, *header_fields()])

    def batches(self, codecs: Codecs) -> Iterator[Any]:
        """Yield the rows as record batches."""
        import pyarrow as pa

        schema = self.schema
        for start in range(0, len(self), _ROWS):
            rows = slice(start, start + _ROWS)
            sizes, end = self.sizes[rows], min(start + _ROWS, len(self))
            problems = {row - start: self.problems[row] for row in range(start, end) if row in self.problems}
            columns = {
                "path": pa.concat_arrays(self.paths[start:end].chunks),
                "size": pa.array(sizes, mask=sizes < 0),
                "version": pa.array(self.versions[rows]),
                "content": pa.concat_arrays(self.contents[start:end].chunks),
                **make_header_columns(sizes, self.headers[rows], problems, codecs),
            }
            yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


class _Versions(Mapping[str, tuple[Any, ...]]):
    """Path -> size and content hash, as `Listing.versions` has these, of a few thousand files at a time.

    Whoever asks in the order of the paths has each made once; a dict of a million takes 300 MB.
    """

    def __init__(self, table: FolderTable) -> None:
        self._table = table
        self._firsts = [table.paths[row].as_py() for row in range(0, len(table), _ROWS)]
        self._number, self._some = -1, dict[str, tuple[Any, ...]]()

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[str]:
        return iterate_texts(self._table.paths)

    def __getitem__(self, path: str) -> tuple[Any, ...]:
        if path not in self._some:
            number = bisect_right(self._firsts, path) - 1
            if number < 0:
                raise KeyError(path)
            if number != self._number:
                self._number, self._some = number, self._read(slice(number * _ROWS, (number + 1) * _ROWS))
        return self._some[path]

    def _read(self, rows: slice) -> dict[str, tuple[Any, ...]]:
        table = self._table
        sizes = (None if size < 0 else size for size in table.sizes[rows].tolist())
        versions = zip(sizes, table.contents[rows].to_pylist(), strict=True)
        return dict(zip(table.paths[rows].to_pylist(), versions, strict=True))


def read_folder_table(reader: Any, about: Mapping[str, Any]) -> FolderTable:
    """Read the table of an index, a record batch at a time.

    Args:
        reader: The open file, a `pyarrow.RecordBatchFileReader`.
        about: `listed` and `folders` of its metadata.
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {"path": [], "size": [], "version": [], "content": []}
    headers: list[NDArray[np.void]] = [np.zeros(0, HEADER_DTYPE)]
    problems: dict[int, str] = {}
    count = 0
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate(full=True)
        for name, found in columns.items():
            found.append(batch.column(name))
        entries = np.asarray(batch.column("entry").flatten()).reshape(-1, ROW_NUMBERS)
        headers.append(parse_entries(entries.astype(np.int64))[0])
        refused = np.flatnonzero(batch.column("problem").is_valid().to_numpy(zero_copy_only=False))
        reasons = batch.column("problem").take(refused).to_pylist()
        problems.update(zip((refused + count).tolist(), reasons, strict=True))
        count += batch.num_rows
    paths, contents = (pa.chunked_array(columns[name], pa.string()) for name in ("path", "content"))
    sizes, versions = (pa.chunked_array(columns[name], pa.int64()) for name in ("size", "version"))
    numbers = (sizes.fill_null(-1).to_numpy().copy(), versions.to_numpy().copy())
    folders = tuple(map(str, about["folders"]))
    return FolderTable(str(about["listed"]), folders, paths, *numbers, contents, np.concatenate(headers), problems)


def iterate_texts(texts: Any) -> Iterator[str]:
    """Iterate over a `pyarrow.ChunkedArray` of texts."""
    for start in range(0, len(texts), _ROWS):
        yield from texts[start : start + _ROWS].to_pylist()


def list_files(root: str, listing: Listing | None = None) -> FolderTable:
    """List a folder, and ask what local files are.

    Args:
        root: The folder.
        listing: What lies in it, where that is known.

    Raises:
        SourceError: It cannot be listed, or has a file whose name an index cannot hold.
    """
    import pyarrow as pa

    listing = listing or list_folder(root)
    left, count = iter(listing.paths), len(listing.paths)
    starts = range(0, count, _ROWS)
    paths = pa.chunked_array([pa.array(_to_texts(islice(left, _ROWS)), pa.string()) for _ in starts], pa.string())
    if is_remote(f"{root}/"):
        told = [listing.versions[path] for path in listing.paths]
        sizes = np.array([-1 if size is None else int(size) for size, _ in told], np.int64)
        versions, contents = np.zeros(count, np.int64), pa.array([content for _, content in told], pa.string())
    else:
        found = np.fromiter(stat_files(root, map(os.fsencode, listing.paths)), FILE_DTYPE, count)
        sizes, versions, contents = found["size"].copy(), found["version"].copy(), pa.array([""] * count, pa.string())
    headers = np.zeros(count, HEADER_DTYPE)
    return FolderTable(root, listing.folders, paths, sizes, versions, pa.chunked_array([contents]), headers, {})


def _to_texts(paths: Iterable[str]) -> list[str]:
    """Paths as a list; one that is no UTF-8 is refused."""
    found = list(paths)
    odd = next((path for path in found if printable(path) != path), None)
    if odd is not None:
        raise SourceError(f"{printable(odd)!r} is no UTF-8, as names in an index are: rename the file")
    return found


def stat_files(root: str, paths: Iterable[bytes]) -> Iterator[tuple[int, int, bool]]:
    """Ask for bytes, mtime and access of local files, in the fields of `FILE_DTYPE`.

    From threads, as a network's disk takes a while for each.
    """
    with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="curator-dali-stat") as pool:
        blocks = iter(partial(lambda it: list(islice(it, _STAT_FILES)), iter(paths)), [])
        for found in run_ahead(pool, partial(_stat_block, os.fsencode(root)), blocks, 2 * _STAT_THREADS):
            yield from found


def _stat_block(root: bytes, paths: Sequence[bytes]) -> list[tuple[int, int, bool]]:
    found = []
    for path in paths:
        whole = b"%s/%s" % (root, path)
        try:
            status = os.stat(whole)
            readable = stat.S_ISREG(status.st_mode) and os.access(whole, os.R_OK)
            found.append((status.st_size, status.st_mtime_ns, readable))
        except OSError:
            found.append((-1, 0, False))
    return found

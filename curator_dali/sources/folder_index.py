"""A folder of images as its index has it: the listing of its files, and the headers of its images."""

from __future__ import annotations

import logging
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import is_remote
from curator_dali.sources.base import HEADER_DTYPE, is_image, quote
from curator_dali.sources.header_columns import ROW_NUMBERS, Codecs, header_fields, make_header_columns, parse_entries
from curator_dali.sources.listing import Listing, list_folder, list_names
from curator_dali.sources.paths import Paths
from curator_dali.threads import run_ahead

logger = logging.getLogger(__name__)

FILE_DTYPE = np.dtype([("size", "<i8"), ("version", "<i8"), ("readable", "?")])
"""What `stat_files` tells of a local file: bytes, -1 where it is not there; mtime in ns; whether it may be read."""

_STAT_THREADS, _STAT_FILES = 8, 1024  # files whose sizes each thread asks for at once
_ROWS = 65_536  # of a record batch, and paths that are texts at once


@dataclass
class FolderTable:
    """M files below a folder, in the order of their paths.

    Attributes:
        root: The folder, as it was when it was listed.
        folders: Names of the folders right below it, in order.
        paths: M paths below it, images and others.
        sizes: (M,) int64 bytes, -1 where they are not known.
        versions: (M,) int64, mtime in ns of a local file, else 0.
        contents: M content hashes, "" where a store tells none, a `pyarrow.ChunkedArray`.
        headers: (M,) `HEADER_DTYPE`, codec 0 where nothing is known.
        problems: Row -> why the image is refused.
    """

    root: str
    folders: Sequence[str]
    paths: Paths
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
        sizes = (None if size < 0 else size for size in self.sizes.tolist())
        contents = (value.as_py() for value in self.contents)
        return Listing(self.paths, self.folders, dict(zip(self.paths, zip(sizes, contents, strict=True), strict=True)))

    def find_images(self) -> NDArray[np.int64]:
        """Rows of the images."""
        return np.flatnonzero(np.fromiter(map(is_image, self.paths), bool, len(self)))

    def take(self, rows: NDArray[np.int64]) -> FolderTable:
        """Choose rows, in ascending order."""
        problems = {at: self.problems[row] for at, row in enumerate(rows.tolist()) if row in self.problems}
        paths = Paths(self.paths[row] for row in rows.tolist())
        facts = (self.sizes[rows], self.versions[rows], self.contents.take(rows), self.headers[rows])
        return FolderTable(self.root, self.folders, paths, *facts, problems)

    def find(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """(len(paths),) int64: the row of each path, -1 where there is none. The paths are in order."""
        rows = np.full(len(paths), -1, np.int64)
        left = iter(paths)
        for start in range(0, len(paths), _ROWS):
            some = list(islice(left, _ROWS))
            begin, end = bisect_left(self.paths, some[0]), bisect_right(self.paths, some[-1])
            known = {self.paths[row]: row for row in range(begin, end)}
            rows[start : start + len(some)] = [known.get(path, -1) for path in some]
        return rows

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
        gone = np.setdiff1d(self.find_images(), rows)
        if len(gone):
            raise SourceError(
                f"{len(gone):,} images of the index of {root} are gone: "
                f"{list_names(self.paths[row] for row in gone.tolist())}. Bring these back, or run `curator-dali "
                "prepare` where the data set is meant to have fewer images"
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

        schema, left = self.schema, iter(self.paths)
        for start in range(0, len(self), _ROWS):
            rows = slice(start, start + _ROWS)
            sizes, end = self.sizes[rows], min(start + _ROWS, len(self))
            problems = {row - start: self.problems[row] for row in range(start, end) if row in self.problems}
            columns = {
                "path": pa.array(islice(left, _ROWS), pa.string()),
                "size": pa.array(sizes, mask=sizes < 0),
                "version": pa.array(self.versions[rows]),
                "content": pa.concat_arrays([pa.array([], pa.string()), *self.contents[start:end].chunks]),
                **make_header_columns(sizes, self.headers[rows], problems, codecs),
            }
            yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def read_folder_table(reader: Any, about: Mapping[str, Any]) -> FolderTable:
    """Read the table of an index, a record batch at a time.

    Args:
        reader: The open file, a `pyarrow.RecordBatchFileReader`.
        about: `listed` and `folders` of its metadata.
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {"size": [], "version": [], "content": [], "headers": []}
    problems: dict[int, str] = {}

    def read() -> Iterator[str]:
        count = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            numbers = np.asarray(batch.column("entry").flatten()).reshape(-1, ROW_NUMBERS)
            columns["headers"].append(parse_entries(numbers.astype(np.int64))[0])
            columns["size"].append(batch.column("size").fill_null(-1).to_numpy())
            columns["version"].append(batch.column("version").to_numpy())
            columns["content"].append(batch.column("content"))
            refused = np.flatnonzero(batch.column("problem").is_valid().to_numpy(zero_copy_only=False))
            reasons = batch.column("problem").take(refused).to_pylist()
            problems.update(zip((refused + count).tolist(), reasons, strict=True))
            count += batch.num_rows
            yield from batch.column("path").to_pylist()

    paths = Paths(read())
    sizes, versions = (np.concatenate([np.zeros(0, np.int64), *columns[name]]) for name in ("size", "version"))
    contents = pa.chunked_array(columns["content"], pa.string())
    headers = np.concatenate([np.zeros(0, HEADER_DTYPE), *columns["headers"]])
    folders = tuple(map(str, about["folders"]))
    return FolderTable(str(about["listed"]), folders, paths, sizes, versions, contents, headers, problems)


def list_files(root: str, listing: Listing | None = None) -> FolderTable:
    """List a folder, and ask what local files are.

    Args:
        root: The folder.
        listing: What lies in it, where that is known.

    Raises:
        SourceError: It cannot be listed.
    """
    import pyarrow as pa

    listing = listing or list_folder(root)
    paths = listing.paths if isinstance(listing.paths, Paths) else Paths(listing.paths)
    count = len(paths)
    if is_remote(f"{root}/"):
        told = [listing.versions[path] for path in paths]
        sizes = np.array([-1 if size is None else int(size) for size, _ in told], np.int64)
        versions, contents = np.zeros(count, np.int64), pa.array([content for _, content in told], pa.string())
    else:
        found = np.fromiter(stat_files(root, map(os.fsencode, paths)), FILE_DTYPE, count)
        sizes, versions, contents = found["size"].copy(), found["version"].copy(), pa.array([""] * count, pa.string())
    headers = np.zeros(count, HEADER_DTYPE)
    return FolderTable(root, listing.folders, paths, sizes, versions, pa.chunked_array([contents]), headers, {})


def stat_files(root: str, paths: Iterable[bytes]) -> Iterator[tuple[int, int, bool]]:
    """What local files are, as `FILE_DTYPE` has it.

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

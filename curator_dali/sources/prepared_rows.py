"""Parquet files that the index of a data set knows: their footers, and the headers of the images in their rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import Stat, Storage, is_remote, stat_of
from curator_dali.sources.base import HEADER_DTYPE
from curator_dali.sources.dataset_index import PLACES, DatasetIndex, find_reference, open_known
from curator_dali.sources.header_columns import ROW_NUMBERS, parse_entries
from curator_dali.sources.index_parts import IndexParts

logger = logging.getLogger(__name__)

_ENTRIES = PLACES.index("entries")


class IndexedRows:
    """Rows of Parquet files in the index of a data set.

    A local file of another size or time is not looked up: opening it reads its footer, which is as cheap.

    Args:
        urls: The files.
        index: The index.
        rows: (F,) int64, the row of each file in the index, -1 where it has none.

    Attributes:
        folder: The index's folder.
        column: The column of the images that the headers are of.
        prepared: (F,) bool, whether the index has the file.
        stats: Size and version of each file that the index has.
    """

    def __init__(self, urls: Sequence[str], index: DatasetIndex, rows: NDArray[np.int64]) -> None:
        known = np.maximum(rows, 0)
        self.folder, self.column = index.folder, index.column
        self.stats = index.stats(known)
        self.prepared = rows >= 0
        storage = Storage()
        for number, url in enumerate(urls):
            if self.prepared[number] and not is_remote(url):
                self.prepared[number] = _is_same(storage, url, self.stats[number])
        self._entries, self._part = index.places[known, _ENTRIES], index.part_of[known]
        self._parts = IndexParts(index.folder, index.parts, index.part_sizes)

    def look_up(self, file: NDArray[np.int64], row: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Headers, codec 0 where nothing is known, and bytes of images, -1 likewise, of (N,) rows of (N,) files."""
        headers, sizes = np.zeros(len(file), HEADER_DTYPE), np.full(len(file), -1, np.int64)
        at = self.prepared[file].nonzero()[0]
        if not len(at):
            return headers, sizes
        width = 4 * ROW_NUMBERS
        places = self._entries[file[at]] + row[at] * width
        data, position, failed = self._parts.gather(self._part[file[at]], places, np.full(len(at), width))
        if failed:
            logger.warning("cannot look up headers: %s", next(iter(failed.values())))
        numbers = data.view(np.uint32)[(position // 4)[:, None] + np.arange(ROW_NUMBERS)].astype(np.int64)
        headers[at], sizes[at] = parse_entries(numbers)
        return headers, sizes

    def known_stats(self, urls: Sequence[str], stats: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Sizes and versions that files must have when they are read; sizes alone, if the index is of local copies."""
        return [
            stat[:1] if ok and is_remote(url) and not any(stat[2:]) else stat
            for url, stat, ok in zip(urls, stats, self.prepared.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Close the parts. A later look opens them again."""
        self._parts.close()


def open_rows(
    urls: Sequence[str], index: str, known: Mapping[str, DatasetIndex | None]
) -> tuple[IndexedRows | None, list[bytes | None]]:
    """Look Parquet files up in the index of their data set.

    Args:
        urls: The files.
        index: See `dataset_index.find_reference`.
        known: See `prepared.open_shards`.

    Returns:
        What the index has of them, None where there is none; and the footer of each file, None where it is to be read.
    """
    nothing: list[bytes | None] = [None] * len(urls)
    reference = find_reference(urls, index)
    if reference is None:
        return None, nothing
    found = open_known(reference, known, "parquet")
    if found is None:
        return None, nothing
    rows = found.find(urls)
    if not (rows >= 0).any():
        return None, nothing
    indexed = IndexedRows(urls, found, rows)
    column: Any = found.table.column("footer")
    footers = [column[int(row)].as_py() if ok else None for row, ok in zip(rows, indexed.prepared, strict=True)]
    return indexed, footers


def parse_footer(footer: bytes) -> Any:
    """Open a footer, kept as a Parquet file without rows, as a `pyarrow.parquet.ParquetFile`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(footer))


def _is_same(storage: Storage, url: str, then: Stat) -> bool:
    try:
        now = storage.stat(url)
    except OSError:
        return False  # whoever opens it meets the reason
    return (now.size, now.version) == (then.size, then.version)


def stat_open_file(url: str, file: Any, fs: Any, path: str) -> Stat:
    """The `Stat` of an open file."""
    if not is_remote(url):
        return Stat.of_local(os.fstat(file.fileno()))
    details = getattr(file, "details", None)  # most remote files know, so that this costs no request
    return stat_of(details if isinstance(details, Mapping) else fs.info(path))

"""Indexes of tars that other tools left beside these: DALI's `wds2idx` files, and Energon's `.nv-meta`.

Such an index says where members lie, and nothing of their headers. So it never replaces the walk through a tar. Its
places let the headers of a tar in a store be asked for many at once. Wrong places cost requests, and nothing else.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import Storage, one_line, parse_json, strip_query

logger = logging.getLogger(__name__)

_BLOCK = 512
_LARGEST_DATABASE = 8 << 30  # bytes of an `index.sqlite` that is fetched
_PIECE = 16 << 20
# Of the format v1.2: extension, offset, size and name of each member; v1.1 has no names. (DALI's tools/wds2idx.py)
_FIELDS = {"v1.2": 4, "v1.1": 3}
_META = ".nv-meta"


class ForeignIndexes:
    """Indexes of other tools in the folders of tars. Thread-safe; pickles without what was found.

    Args:
        storage: Reads them.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._start()

    def __reduce__(self) -> tuple[type[ForeignIndexes], tuple[Storage]]:
        return ForeignIndexes, (self._storage,)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._databases: dict[str, _Database | None] = {}  # folder -> Energon's index of it
        self._without: set[str] = set()  # folders in which a tar has no `wds2idx` file

    def find(self, url: str) -> NDArray[np.int64]:
        """Find where the headers of a tar's members are, as far as an index of another tool says.

        Returns:
            (M,) int64, ascending multiples of 512: where the header behind each member begins. None are known where M
            is 0.
        """
        path = strip_query(url)
        if path != url:  # a signature is of one file
            return np.zeros(0, np.int64)
        folder, _, name = path.rpartition("/")
        try:
            with self._lock:
                ends = self._look_up(folder, name)
        except Exception as error:  # of a store, or of a damaged file: the tar is gone through as any other
            logger.info("no places of %s are known beforehand: %s", url, one_line(error))
            ends = np.zeros(0, np.int64)
        return np.unique(-(-ends // _BLOCK) * _BLOCK)

    def _look_up(self, folder: str, name: str) -> NDArray[np.int64]:
        """Look up where the bodies of a tar's members end, (M,) int64."""
        above, _, last = folder.rpartition("/")
        for root, path in ((folder, name), (above, f"{last}/{name}")):
            database = self._open(root) if "://" in root else None  # there is no folder above a store
            if database is not None and path in database.numbers:
                return database.read(path)
        if folder not in self._without:
            stem = name.partition(".")[0]
            (data,) = self._storage.cat([(f"{folder}/{stem}.idx", None, None)])
            if isinstance(data, bytes):
                return parse_idx(data)
            self._without.add(folder)
        return np.zeros(0, np.int64)

    def _open(self, root: str) -> _Database | None:
        if root not in self._databases:
            self._databases[root] = None
            (info,) = self._storage.cat([(f"{root}/{_META}/.info.json", None, None)])
            if isinstance(info, bytes):
                counts = parse_json(info).get("shard_counts", {})
                self._databases[root] = _Database(self._storage, f"{root}/{_META}/index.sqlite", list(counts))
        return self._databases[root]


class _Database:
    """Energon's `index.sqlite`, fetched into a file that goes away with this object.

    Args:
        storage: Fetches it.
        url: Where it is.
        tars: Paths of the tars, in the order of their numbers.

    Attributes:
        numbers: Path of a tar -> its number.
    """

    def __init__(self, storage: Storage, url: str, tars: list[str]) -> None:
        self.numbers: Mapping[str, int] = {path: number for number, path in enumerate(tars)}
        self._file: Any = tempfile.NamedTemporaryFile(prefix="curator-dali-", suffix=".sqlite")  # noqa: SIM115
        size = storage.stat(url).size
        if size > min(_LARGEST_DATABASE, shutil.disk_usage(self._file.name).free // 2):
            raise OSError(f"{url} has {size:,} bytes, too many to be fetched")
        read = storage.reader(url)
        for start in range(0, size, _PIECE):
            self._file.write(read(start, min(_PIECE, size - start)))
        self._file.flush()

    def __del__(self) -> None:
        self._file.close()

    def read(self, path: str) -> NDArray[np.int64]:
        """Read where the bodies of a tar's members, or its samples, end: (M,) int64."""
        import sqlite3

        where = " FROM {} WHERE tar_file_id = ?"
        with closing(sqlite3.connect(f"file:{self._file.name}?mode=ro&immutable=1", uri=True)) as database:
            try:
                query = "SELECT content_byte_offset + content_byte_size" + where.format("sample_parts")
                rows = database.execute(query, (self.numbers[path],)).fetchall()
            except sqlite3.OperationalError:  # of an earlier version
                query = "SELECT byte_offset + byte_size" + where.format("samples")
                rows = database.execute(query, (self.numbers[path],)).fetchall()
        return np.array([end for (end,) in rows if isinstance(end, int)], np.int64)


def parse_idx(data: bytes) -> NDArray[np.int64]:
    """Read where the bodies of members end from a file that `wds2idx` wrote.

    Returns:
        (M,) int64.

    Raises:
        ValueError: It is no such file, or has names with spaces, which the format does not tell apart.
    """
    head, _, rest = data.decode("utf-8", "surrogateescape").partition("\n")
    version = head.partition(" ")[0]
    if version not in _FIELDS:
        raise ValueError(f"an index of wds2idx begins with {' or '.join(_FIELDS)}, not {version[:20]!r}")
    fields, words = _FIELDS[version], rest.split()
    if len(words) % fields:
        raise ValueError("its lines are no members")
    offsets, sizes = (np.array(words[place::fields], np.int64) for place in (1, 2))
    ends: NDArray[np.int64] = offsets + sizes
    return ends

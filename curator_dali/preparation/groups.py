"""Groups of files: those whose samples make a part of an index, indexed in one go by one process."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.decoding import Codec, read_headers
from curator_dali.errors import SourceError
from curator_dali.io import AtomicFile, Stat, fingerprint, join, one_line
from curator_dali.sources import HEADER_DTYPE, Codecs, ParquetSource, Source, TarSource, describe_parquet, index_of
from curator_dali.sources import dataset_index as layout
from curator_dali.threads import ignore, run_ahead

logger = logging.getLogger(__name__)

_MOST_FILES = 128  # of a group
_MOST_BYTES = 16 << 30  # of the files of a group
_LEAST_GROUPS = 64  # so that there is work for many, where there are as many files
_COPY_BYTES = 1 << 24
_FORMATS = tuple(dict.fromkeys(codec.format for codec in Codec if codec is not Codec.UNKNOWN))
CODECS = Codecs(_FORMATS, {int(codec): _FORMATS.index(codec.format) for codec in Codec if codec})
"""The formats of the column `codec`."""

_MEMORY = 2 << 30  # bytes of remote tars that a process keeps between their scan and the reading of images' headers

SMALL_FILE = 2**32 - 2
"""Bytes up to which all offsets of a file fit into 32 bits."""


class _Memory:
    """A limit of what all threads keep together."""

    def __init__(self, limit: int) -> None:
        self._left, self._lock = limit, threading.Lock()

    @contextmanager
    def lend(self, size: int) -> Iterator[bool]:
        """Lend so many bytes, if they are left."""
        with self._lock:
            is_lent = size <= self._left
            self._left -= size if is_lent else 0
        try:
            yield is_lent
        finally:
            with self._lock:
                self._left += size if is_lent else 0


_memory = _Memory(_MEMORY)


class File(NamedTuple):
    """A file that is to be indexed: its URL, its name in the index, and what it is."""

    url: str
    name: str
    stat: Stat


@dataclass(frozen=True)
class Group:
    """Files whose samples make one part.

    Attributes:
        folder: The index's folder.
        files: The files.
        headers: Whether the images' headers are read.
        kind: "tar" or "parquet".
        column: The column of the images, of Parquet files.
    """

    folder: str
    files: tuple[File, ...]
    headers: bool
    kind: str = "tar"
    column: str = ""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def root(self) -> str:
        """A file, or a folder, that lies where all files do."""
        return self.files[0].url

    @property
    def key(self) -> str:
        """A text that other files, or other contents of these, do not have."""
        facts = [(file.name, *file.stat) for file in self.files]
        return fingerprint("", [self.headers, self.kind, self.column, *facts]).strip("-")

    @property
    def part(self) -> str:
        """Name of the part."""
        return f"samples-{self.key}.arrow"

    @property
    def record(self) -> str:
        """Name of the file that says what `files.arrow` will say of the files; it is there once the part is."""
        return f"group-{self.key}.arrow"


def make_groups(folder: str, files: Sequence[File], headers: bool, kind: str, column: str) -> list[Group]:
    """Cut files into groups, the same whoever does so."""
    most = min(_MOST_FILES, max(1, len(files) // _LEAST_GROUPS))
    groups: list[list[File]] = []
    size = 0
    for file in files:
        if not groups or len(groups[-1]) >= most or size + file.stat.size > _MOST_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.stat.size
    return [Group(folder, tuple(some), headers, kind, column) for some in groups]


def index_group(
    group: Group,
    threads: int = 1,
    progress: Callable[[int, int], object] = ignore,
    is_stopped: Callable[[], bool] = bool,
) -> int:
    """Index the files of a group: write its part, and then its record.

    Args:
        group: The group.
        threads: Files that are indexed at the same time, each by one thread.
        progress: Called with the numbers of files and samples that were done since the last call.
        is_stopped: Tells whether the group is not wanted any more. Nothing is written then.

    Returns:
        How many samples the files have.

    Raises:
        SourceError: A file cannot be read, or changed since it was listed. Nothing is written.
        OSError: The index cannot be written.
    """
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    small = all(file.stat.size < SMALL_FILE for file in group.files)
    names = [file.name for file in group.files]
    bad: dict[str, str] = {}
    with tempfile.TemporaryFile(prefix="curator-dali-") as file:
        schema = layout.sample_schema(small) if group.kind == "tar" else layout.row_schema()
        with pa.ipc.new_file(file, schema) as writer:
            for number, result in enumerate(_index_files(group, names, small, threads)):
                if is_stopped():
                    return 0
                if isinstance(result, str):
                    bad[group.files[number].url] = result
                    continue
                row, batch = result
                if not bad:
                    writer.write_batch(batch)
                rows.append({**row, "part": group.part})
                progress(1, int(row["samples"]))
        if bad:
            raise SourceError("; ".join(f"{url}: {reason}" for url, reason in bad.items()))
        file.flush()
        locate = layout.locate_columns if group.kind == "tar" else layout.locate_rows
        places = locate(f"/proc/self/fd/{file.fileno()}")
        _copy(file, join(group.folder, group.part))
    begin = 0
    for row, place in zip(rows, places.tolist(), strict=True):
        row |= {"places": place, "row": begin}
        begin += row["samples"]
    _write_record(group, rows)
    return begin


def _index_files(
    group: Group, names: Sequence[str], small: bool, threads: int
) -> Iterator[tuple[dict[str, Any], Any] | str]:
    """Index the files of a group, in order: the row and the record batch of each, or why it cannot be read."""
    index = partial(_index_tar, names=names, small=small, headers=group.headers)
    if group.kind == "parquet":
        index = partial(_index_parquet, names=names, column=group.column, headers=group.headers)
    with ThreadPoolExecutor(threads, thread_name_prefix="curator-dali-prepare") as pool:
        yield from run_ahead(pool, index, enumerate(group.files), threads - 1)


def _index_tar(
    numbered: tuple[int, File], names: Sequence[str], small: bool, headers: bool
) -> tuple[dict[str, Any], Any] | str:
    """Index a tar: its row of `files.arrow`, and the record batch of its samples; or why it cannot be read."""
    number, (url, name, stat) = numbered
    try:
        with _memory.lend(stat.size) as is_lent, closing(TarSource([url], index="none")) as source:
            now, index = index_of(source, 0, keep=headers and is_lent)
            if now != stat:
                return "it changed while the index was made: run it again"
            found, _, problems = read_image_headers(source, headers)
    except Exception as error:  # of a store, or of a hostile file; the others are indexed
        return one_line(error)
    batch = layout.make_batch(number, names, index, found, problems, CODECS, small)
    about = index.summary
    return {
        **stat._asdict(),
        **{"name": name, "samples": about.samples, "digest": about.digest, "duplicates": about.duplicates},
        **{"note": about.note, "warnings": list(about.warnings), "headers": headers},
        **{"refused": len(problems), "reasons": list(Counter(map(shorten, problems.values())).items())},
    }, batch


def _index_parquet(
    numbered: tuple[int, File], names: Sequence[str], column: str, headers: bool
) -> tuple[dict[str, Any], Any] | str:
    """Index a Parquet file, as `_index_tar` a tar."""
    number, (url, name, stat) = numbered
    try:
        with closing(ParquetSource([url], image_column=column, index="none")) as source:
            now, footer, digest = describe_parquet(source)
            if (now.size, now.version) != (stat.size, stat.version):
                return "it changed while the index was made: run it again"
            found, sizes, problems = read_image_headers(source, headers)
            keys = source.read_ids(np.arange(len(source)))
    except Exception as error:  # as of a tar
        return one_line(error)
    batch = layout.make_row_batch(number, names, keys, sizes, found, problems, CODECS)
    return {
        **stat._asdict(),
        **{"name": name, "samples": len(found), "digest": digest, "duplicates": 0, "note": "", "warnings": []},
        **{"headers": headers, "footer": footer},
        **{"refused": len(problems), "reasons": list(Counter(map(shorten, problems.values())).items())},
    }, batch


def read_image_headers(
    source: Source,
    wanted: bool,
    progress: Callable[[int], object] = ignore,
    is_stopped: Callable[[], bool] = bool,
) -> tuple[NDArray[np.void], NDArray[np.int64], dict[int, str]]:
    """Read the headers of all images of a source, their bytes, and sample -> why its image is refused.

    Args:
        source: The source.
        wanted: Whether they are read at all.
        progress: Called with how many images were done since the last call.
        is_stopped: Tells whether nobody wants the rest any more.
    """
    found, sizes = np.zeros(len(source), HEADER_DTYPE), np.full(len(source), -1, np.int64)
    problems: dict[int, str] = {}
    for chunk in read_headers(source) if wanted else ():
        if is_stopped():
            break
        found[chunk.indices], sizes[chunk.indices] = chunk.headers, chunk.sizes
        for row, reason in chunk.problems.items():
            problems[int(chunk.indices[row])] = reason
        progress(len(chunk.indices))
    found[found["codec"] == 0] = np.zeros((), HEADER_DTYPE)  # of an image that is too large, the size is known
    return found, sizes, problems


def shorten(reason: str) -> str:
    """The kind of a reason, without what is of one image."""
    return reason.partition(":")[0][:80]


def _write_record(group: Group, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa

    schema = layout.file_schema()
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    with AtomicFile(join(group.folder, group.record)) as file:
        layout.write_files(file, pa.table(columns, schema=schema), {"root": "", "kind": group.kind, "covers": []})


def _copy(file: IO[bytes], url: str) -> None:
    """Copy an open file to where it belongs, whole or not at all."""
    file.seek(0)
    with AtomicFile(url) as copy:
        while piece := file.read(_COPY_BYTES):
            copy.write(piece)


def silence_interrupts() -> None:
    """Leave Ctrl-C to the process that has others work for it, and end with that process, however it ends."""
    import ctypes
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGKILL") and os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

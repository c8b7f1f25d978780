"""Row groups of Parquet files, unpacked within bounds; their rows; files that these name; local files, read whole."""

from __future__ import annotations

import errno
import io
import os
import posixpath
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import LARGEST_FILE, Storage, is_remote, one_line, open_regular, strip_query
from curator_dali.sources.base import TAIL_BYTES, Head, quote, sniff_extension

# Bytes that a row group may unpack to. 10,000 photographs have a few GB, and reading takes three times as many.
_UNPACKED_LIMIT = 8 << 30
_STEP_ROWS = 64  # unpacked before their bytes are counted
# A column that unpacks to so many times its bytes holds no photographs: it is unpacked row by row, and to less.
_PACKED_RATIO = 100
_PACKED_LIMIT = 1 << 30
_PACKED_SLACK = 1 << 16  # bytes for which the ratio does not matter
_GROUP_FIX = ": write the file anew in smaller row groups, as by pyarrow.parquet.write_table(..., row_group_size=1000)"

# Failures that the next read of an unchanged file meets again: it may not be read, is too large, a folder, a device.
_LASTING_ERRORS = frozenset(
    [errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EFBIG]
)

# Bytes of a file that a row names. A batch's files are in memory at once, and the largest photographs have 100 MB.
_FILE_LIMIT = 256 << 20
_HEAD_BYTES = 32  # by which an image is told
_LOCAL_PROTOCOLS = ("file://", "local://")


class RowGroupTooLarge(ValueError):
    """A row group unpacks to more bytes than are read at once."""


def check_sizes(rows: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse row groups that are too large by the footer's numbers of rows and unpacked bytes.

    Raises:
        RowGroupTooLarge: One is.
    """
    largest = max([*sizes, *(8 * count for count in rows)], default=0)  # a row has an offset, also where it is null
    if largest > _UNPACKED_LIMIT:
        raise RowGroupTooLarge(
            f"a row group unpacks to {largest:,} bytes by the footer, over the limit of {_UNPACKED_LIMIT:,}{_GROUP_FIX}"
        )


def read_row_group(reader: Any, group: int, columns: Collection[str]) -> Any:
    """Read a row group as an Arrow table.

    A footer that is forged can have 64 rows unpacked at once before their size is known.

    Args:
        reader: The `pyarrow.parquet.ParquetFile`.
        group: The number of the row group.
        columns: The columns to read; others are left out.

    Raises:
        RowGroupTooLarge: It unpacks to more than is read, whatever the footer says.
        OSError: The footer of a column is damaged; Arrow raises this and other errors.
    """
    import pyarrow as pa

    names = [name for name in reader.schema_arrow.names if name in columns]
    _check_chunks(reader.metadata, group)
    about = reader.metadata.row_group(group)
    chunks = [about.column(number) for number in range(about.num_columns)]
    packed = any(
        chunk.total_uncompressed_size > _PACKED_RATIO * chunk.total_compressed_size + _PACKED_SLACK for chunk in chunks
    )
    limit = _PACKED_LIMIT if packed else _UNPACKED_LIMIT
    batches, size = [], 0
    for batch in reader.iter_batches(1 if packed else _STEP_ROWS, row_groups=[group], columns=names):
        batches.append(batch)
        size += batch.nbytes
        if size > limit:
            raise RowGroupTooLarge(f"it unpacks to more than the limit of {limit:,} bytes{_GROUP_FIX}")
    return pa.Table.from_batches(batches)


def _check_chunks(footer: Any, group: int) -> None:
    """Check what a footer says of the columns of a row group; Arrow raises OSError and others for damage.

    Arrow ends the process where `RowGroupMetaData.column` meets damage; a reader raises. It looks at all columns before
    it reads the first one, so that the file is never read here.
    """
    import pyarrow.parquet as pq

    file = _UnreadFile()
    try:
        next(pq.ParquetFile(file, metadata=footer, buffer_size=4096).iter_batches(1, row_groups=[group]), None)
    except Exception:
        if not file.asked:
            raise


class _UnreadFile(io.RawIOBase):
    """A file without content that refuses to be read, and remembers that it should have been."""

    asked = False
    _position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, 1 << 60)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        self.asked = True
        raise OSError("not read")


def combine(table: Any) -> Any:
    """A table in one piece, which rows are taken from faster; as it is where Arrow cannot join a column."""
    import pyarrow as pa

    try:
        return table.combine_chunks()
    except pa.ArrowException:
        return table


def is_binary(kind: Any) -> bool:
    """Whether a type is one of bytes."""
    import pyarrow as pa

    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or getattr(pa.types, "is_binary_view", lambda _: False)(kind)
    )


def read_rows(table: Any, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Read rows of an Arrow table as dicts, all at once if that is possible: a cell at a time takes much longer."""
    if not table.num_columns:
        return [{} for _ in rows]
    if not any(map(_has_nanoseconds, table.schema.types)):
        try:
            found: list[dict[str, Any]] = table.take(rows).to_pylist()
            return found
        except Exception:  # Arrow has no `take` of some types, and Python no value for some dates
            pass
    return [read_row(table, row) for row in rows.tolist()]


def read_row(table: Any, row: int) -> dict[str, Any]:
    r"""Read a row of an Arrow table as a dict.

    A value that Python cannot hold (a date in the year 29349, a time of day with nanoseconds) is a text. In a text that
    is no UTF-8, bytes are halves of surrogate pairs, as Python has them in names of files (`\xff` is `\udcff`).
    """
    found: dict[str, Any] = {}
    problems = []
    for name in table.column_names:
        try:
            found[name] = _read_cell(table.column(name), row)
        except Exception as error:
            problems.append(f"column {name!r}: {one_line(error)}")
    return found | ({"metadata_error": "; ".join(problems)} if problems else {})


def _read_cell(column: Any, row: int) -> Any:
    cell = column[row]
    try:
        value = cell.as_py()
        exact = not _has_nanoseconds(column.type) or cell.value is None or cell.value % 1000 == 0
    except UnicodeDecodeError:  # Arrow checks no text that it reads
        if not hasattr(cell, "as_buffer"):
            raise
        return cell.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    except Exception:
        exact = False
    if exact:
        return value
    piece = column.slice(row, 1)
    try:
        return piece.cast("string")[0].as_py()
    except Exception:  # of a list with such a date in it, Arrow has a text only for people
        text = piece.chunk(0).to_string(indent=0, window=1 << 30, container_window=1 << 30, skip_new_lines=True)
        return text.removeprefix("[").removesuffix("]")


def _has_nanoseconds(kind: Any) -> bool:
    """Whether a type is a time of day in nanoseconds; Python has microseconds, and Arrow cuts the rest off."""
    return str(kind) == "time64[ns]"


class OutsideError(ValueError):
    """A file that a data set names lies outside the data set."""


class NamedFiles:
    """Image files that the rows of one Parquet file name by a path or a URL.

    A relative path counts from the folder of the Parquet file. Files outside this folder are not read, nor are links
    that lead out of it. Links may lead to the folder that the Parquet file itself is a link into: the cache of the
    Hugging Face Hub has its files there.

    Args:
        url: The Parquet file.
        allow_outside: Whether files anywhere may be read, of any store.
    """

    def __init__(self, url: str, allow_outside: bool) -> None:
        self._args = url, allow_outside
        self._url = _strip_local(url)
        self._remote = is_remote(self._url)
        self.allow_outside = allow_outside

    def __reduce__(self) -> tuple[type[NamedFiles], tuple[str, bool]]:
        return NamedFiles, self._args  # links may lead elsewhere on another machine

    @cached_property
    def inside(self) -> Sequence[str]:
        """Real paths of the folders that a local file must lie in; none where a file may lie anywhere."""
        if self._remote or self.allow_outside:
            return ()
        folders = os.path.dirname(self._url), os.path.dirname(os.path.realpath(self._url))
        return tuple(dict.fromkeys(map(os.path.realpath, folders)))

    def resolve(self, name: str) -> str:
        """Resolve a name to a path or a URL.

        Raises:
            OutsideError: The file lies elsewhere, and must not be read.
        """
        plain = _strip_local(name)
        if self.allow_outside:
            return plain if is_remote(plain) or plain.startswith("/") else self._below(plain)
        path = self._resolve_remote(name) if self._remote else self._resolve_local(plain)
        if path is None:
            raise OutsideError("the file lies elsewhere")
        return path

    def _resolve_local(self, name: str) -> str | None:
        if is_remote(name):
            return None
        path = os.path.normpath(self._below(name))
        above = os.path.dirname(self._url), *self.inside
        return path if any(path.startswith(f"{folder.rstrip('/')}/") for folder in above) else None

    def _resolve_remote(self, name: str) -> str | None:
        folder = self._below("")
        name = name[len(folder) :] if name.startswith(folder) else name
        if is_remote(name):  # elsewhere, or a chain ("x::http://host") that would lead there
            return None
        for spelt in (name, unquote(name)):  # a server may take "%2e%2e" for "..", and a backslash for a slash
            if f"{posixpath.normpath(spelt.replace(chr(92), '/'))}/".startswith(("../", "/")):
                return None
        return self._below(name)

    def _below(self, name: str) -> str:
        """The path or URL of a name that counts from the Parquet file's folder."""
        if not self._remote:
            return os.path.join(os.path.dirname(self._url), name)
        # Of "zip://a.parquet::s3://b/c.zip" the path is in the first URL, of "filecache::s3://b/a.parquet" in the last.
        first, chain, last = self._url.partition("::")
        path, rest = (first, f"::{last}") if chain and "://" in first else (strip_query(self._url), "")
        return f"{path.rpartition('/')[0]}/{name}{rest}"


def read_named(
    wanted: Mapping[int, tuple[NamedFiles, str]], storage: Storage
) -> dict[int, tuple[NDArray[np.uint8] | str, bool]]:
    """Read files that rows name, row -> the files that it may name, and the name.

    Of a file that is no image, no byte stands in a reason.

    Returns:
        Row -> the bytes, or the reason why there are none; and whether a later read may succeed.
    """
    found: dict[int, NDArray[np.uint8] | BaseException] = {}
    paths: dict[int, str] = {}
    for row, (files, name) in wanted.items():
        try:
            paths[row] = files.resolve(name)
        except OutsideError as error:
            found[row] = error
    remote = {row: path for row, path in paths.items() if is_remote(path)}
    if remote:
        got = storage.cat([(url, None, None) for url in remote.values()])
        for row, data in zip(remote, got, strict=True):
            found[row] = data if isinstance(data, BaseException) else np.frombuffer(bytearray(data), np.uint8)
    for row in paths.keys() - remote.keys():
        found[row] = read_file(paths[row], inside=wanted[row][0].inside, limit=_FILE_LIMIT)
    return {row: _judge(name, paths.get(row, ""), found[row]) for row, (_, name) in wanted.items()}


def _strip_local(url: str) -> str:
    """The path of a local file's URL; another URL, or a path, as it is."""
    return next((url[len(start) :] for start in _LOCAL_PROTOCOLS if url.startswith(start)), url)


def _judge(name: str, path: str, data: NDArray[np.uint8] | BaseException) -> tuple[NDArray[np.uint8] | str, bool]:
    """The bytes of a named file, or the reason why these are none of an image; and whether a later read may succeed."""
    shown = quote(name)
    if isinstance(data, OutsideError):
        reason = (
            f"names a file outside: {shown} is not in the folder of the Parquet file, or a link that leads out of it. "
            "To read it, give allow_outside=True to open_source() or ParquetSource(), if you trust who made the file"
        )
        return reason, False
    if isinstance(data, BaseException):
        return f"no image bytes, and its file cannot be read: {one_line(data)}", is_unread(data, path, listed=False)
    if len(data) == 0:
        return "the image has no bytes", False
    if not sniff_extension(data[:_HEAD_BYTES].data, ""):  # whoever decodes it would quote how it begins
        return f"not an image: the file {shown} begins like none", False
    return data, False


def read_file(path: str, *, inside: Sequence[str] = (), limit: int | None = None) -> NDArray[np.uint8] | BaseException:
    """Read a local regular file into a writable array of its own; a failure is returned, not raised.

    Args:
        path: The file; links are followed.
        inside: Real paths of folders. If there are any, the file must lie in one of these, links resolved.
        limit: The most bytes that the file may have; None for any number.
    """
    try:
        fd = open_regular(path, limit)
        try:
            if inside:
                real = os.readlink(f"/proc/self/fd/{fd}")  # of what was opened, so that nobody can swap a link
                if not any(real.startswith(f"{folder.rstrip('/')}/") for folder in inside):
                    return OutsideError(f"{path} is a link to {real}")
            size = os.fstat(fd).st_size
            data = np.empty(size, np.uint8)
            view, done = data.data, 0
            while done < size:
                count = os.readv(fd, [view[done:]])
                if count == 0:
                    return OSError(f"{path} became shorter while it was read ({done} of {size} bytes)")
                done += count
        finally:
            os.close(fd)
    except (OSError, MemoryError) as error:
        return error
    return data


def read_head(path: str, length: int) -> Head | None:
    """Read the beginning, of `length` bytes, and the end of a local regular file; None where that fails."""
    try:
        fd = open_regular(path, LARGEST_FILE)
        try:
            size = os.fstat(fd).st_size
            data = np.empty(min(length, size), np.uint8)
            whole = os.preadv(fd, [data.data], 0) == len(data) > 0
            return Head(data, os.pread(fd, TAIL_BYTES, max(size - TAIL_BYTES, 0)), size) if whole else None
        finally:
            os.close(fd)
    except OSError:
        return None


def read_bytes(path: str, limit: int | None = None) -> bytes | BaseException:
    """Read a local file of at most `limit` bytes; a failure is returned, not raised."""
    result = read_file(path, limit=limit)
    return result if isinstance(result, BaseException) else result.tobytes()


def is_unread(error: BaseException, url: str, *, listed: bool = True, readable: bool | None = None) -> bool:
    """Whether a failed read says nothing of the file's content, so that a later read may succeed.

    Args:
        error: The failure; of a remote file the one that was left after all tries.
        url: The file's path or URL.
        listed: Whether the file was there once. A file that nobody has seen may well not exist.
        readable: Whether the file could be read earlier in this process; None where nobody has tried.
    """
    if isinstance(error, OutsideError):
        return False
    if readable is not None:
        return readable
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return listed and (is_remote(url) or not os.path.islink(url))  # a dangling link is as it was
    return is_remote(url) or not (isinstance(error, OSError) and error.errno in _LASTING_ERRORS)

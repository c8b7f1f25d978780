"""Row groups of Parquet files: unpacked step by step, so that a small file cannot fill the memory."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["RowGroupTooLarge", "check_sizes", "combine", "holds_binary", "is_binary", "read_row_group"]

# Bytes that a row group may unpack to. 10,000 photographs have a few GB, and reading takes three times as many.
_LIMIT = 8 << 30
_STEP = 64  # rows that are unpacked before their bytes are counted
# A column that unpacks to so many times its bytes holds no photographs: it is unpacked row by row, and to less.
_RATIO = 100
_PACKED_LIMIT = 1 << 30
_FIX = ": write the file anew in smaller row groups, as by pyarrow.parquet.write_table(..., row_group_size=1000)"
_SMALL = 1 << 16  # bytes for which the ratio does not matter


class RowGroupTooLarge(ValueError):
    """A row group unpacks to more bytes than are read at once."""


def check_sizes(rows: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse row groups that are too large by a footer.

    Args:
        rows: Numbers of rows.
        sizes: Bytes that they unpack to.

    Raises:
        RowGroupTooLarge: One is.
    """
    largest = max([*sizes, *(8 * count for count in rows)], default=0)  # a row has an offset, also where it is null
    if largest > _LIMIT:
        raise RowGroupTooLarge(
            f"a row group unpacks to {largest:,} bytes by the footer, over the limit of {_LIMIT:,}{_FIX}"
        )


def read_row_group(reader: Any, group: int, keep: Collection[str]) -> Any:
    """Read a row group as an Arrow table.

    A footer that is forged can have 64 rows unpacked at once before their size is known.

    Args:
        reader: The `pyarrow.parquet.ParquetFile`.
        group: The number of the row group.
        keep: Columns that may hold bytes; others with bytes are left out.

    Raises:
        RowGroupTooLarge: It unpacks to more than is read, whatever the footer says.
        OSError: The footer of a column is damaged; Arrow raises this and other errors.
    """
    import pyarrow as pa

    names = [field.name for field in reader.schema_arrow if field.name in keep or not holds_binary(field.type)]
    _check_chunks(reader.metadata, group)
    about = reader.metadata.row_group(group)
    chunks = [about.column(number) for number in range(about.num_columns)]
    packed = any(chunk.total_uncompressed_size > _RATIO * chunk.total_compressed_size + _SMALL for chunk in chunks)
    limit = _PACKED_LIMIT if packed else _LIMIT
    batches, size = [], 0
    for batch in reader.iter_batches(1 if packed else _STEP, row_groups=[group], columns=names):
        batches.append(batch)
        size += batch.nbytes
        if size > limit:
            raise RowGroupTooLarge(f"it unpacks to more than the limit of {limit:,} bytes{_FIX}")
    return pa.Table.from_batches(batches)


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


def _check_chunks(footer: Any, group: int) -> None:
    """Check what a footer says of the columns of a row group.

    Arrow ends the process where `RowGroupMetaData.column` meets damage; a reader raises. It looks at all columns before
    it reads the first one, so that the file is never read here.

    Raises:
        OSError: A column's part of the footer is damaged; Arrow raises this and other errors.
    """
    import pyarrow.parquet as pq

    file = _UnreadFile()
    try:
        next(pq.ParquetFile(file, metadata=footer, buffer_size=4096).iter_batches(1, row_groups=[group]), None)
    except Exception:
        if not file.asked:
            raise


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


def holds_binary(kind: Any) -> bool:
    """Whether a type is binary, or a list, struct or map with a binary one in it."""
    return is_binary(kind) or any(holds_binary(kind.field(n).type) for n in range(kind.num_fields))

"""`KeyIndex`: the rows that have a text, by a sorted array of hashes; `KeyList`: a list's texts and their lines.

A text is looked up by its hash of 64 bits; whoever has the texts then compares them, so that equal hashes of different
texts cost time and no mistake. The hash of a text is a polynomial of its bytes in integers of 64 bits: one running sum
over a block of texts gives all of theirs.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import Table, open_regular, open_table

_MULTIPLIER = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_MULTIPLIER, -1, 2**64)
_NULL_HASH = 0x6E756C6C6E756C6C
_BLOCK_BYTES = 1 << 20  # of texts hashed at once
_LONGEST = 4096  # bytes; longer texts have a hash of another kind, so that blocks stay small
_SORTED_AT_ONCE = 1 << 22  # hashes in memory
_BUCKET_BITS = 10
_MOST_EQUAL = 16  # rows of one hash that are compared: these are nearly always of one text


def hash_texts(texts: Any) -> NDArray[np.uint64]:
    """Hash texts: equal ones have equal hashes, on every machine.

    Args:
        texts: N texts or bytes, a `pyarrow.Array`. All nulls have one hash, which is no text's but by chance.

    Returns:
        (N,) uint64.
    """
    import pyarrow as pa

    column = texts.cast(pa.large_binary())
    _, offsets, data = column.buffers()
    # (N + 1,) where texts begin and end among the bytes
    bounds = np.frombuffer(offsets, np.int64, len(column) + 1, column.offset * 8) if len(column) else np.zeros(1, int)
    flat = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    hashes = np.empty(len(column), np.uint64)
    sizes = np.diff(bounds)
    long = np.flatnonzero(sizes > _LONGEST)
    cuts = _cut(bounds, long)
    for first, last in cuts:
        hashes[first:last] = _hash_block(flat, bounds[first : last + 1])
    for row in long.tolist():
        digest = hashlib.blake2b(flat[bounds[row] : bounds[row + 1]].data, digest_size=8).digest()
        hashes[row] = int.from_bytes(digest, "little")
    if column.null_count:
        hashes[~np.asarray(column.is_valid())] = _NULL_HASH
    return hashes


def _cut(bounds: NDArray[np.int64], long: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut N texts into ranges of about a block's bytes, without the long texts."""
    first = 0
    for stop in [*long.tolist(), len(bounds) - 1]:
        while first < stop:
            last = int(np.searchsorted(bounds[: stop + 1], bounds[first] + _BLOCK_BYTES, "right")) - 1
            last = min(max(last, first + 1), stop)
            yield first, last
            first = last
        first = stop + 1


def _hash_block(flat: NDArray[np.uint8], bounds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash neighbouring texts; `bounds` are (n + 1,) places in `flat`."""
    powers, inverses = _powers()
    start, sizes = int(bounds[0]), np.diff(bounds)
    begins = bounds - start
    sums = np.zeros(int(begins[-1]) + 1, np.uint64)
    # (bytes,) each byte times a power that grows along the block; a zero byte counts, too
    terms = (flat[start : bounds[-1]].astype(np.uint64) + np.uint64(1)) * powers[: len(sums) - 1]
    np.cumsum(terms, out=sums[1:])
    # (n,) each text's sum, and the same counted from its own first byte
    found = (sums[begins[1:]] - sums[begins[:-1]]) * inverses[begins[:-1]]
    found ^= found >> np.uint64(32)
    found *= np.uint64(_MULTIPLIER)
    found ^= (found >> np.uint64(29)) ^ sizes.astype(np.uint64)
    return found


@cache
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The powers of the multiplier and of its inverse, from the first on, for every place in a block."""
    both = []
    for base in (_MULTIPLIER, _INVERSE):
        steps = np.full(_BLOCK_BYTES + _LONGEST + 1, base, np.uint64)
        steps[0] = 1
        both.append(np.cumprod(steps, dtype=np.uint64))
    return both[0], both[1]


class KeyIndex(NamedTuple):
    """Hashes in order, with the rows that have these; in memory, or mapped from a file.

    Attributes:
        hashes: (N,) uint64, ascending.
        rows: (N,) int64; the rows of equal hashes ascend.
    """

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]

    @classmethod
    def build(cls, blocks: Iterable[NDArray[np.uint64]]) -> KeyIndex:
        """Build it in memory of (n,) hashes of neighbouring rows, from row 0 on."""
        hashes = np.concatenate([np.empty(0, np.uint64), *blocks])
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order)

    @classmethod
    def write(cls, path: str, blocks: Iterable[NDArray[np.uint64]]) -> None:
        """Write it to a file, of (n,) hashes of neighbouring rows, from row 0 on; in bounded memory.

        The file appears whole or not at all.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        folder = os.path.dirname(path) or "."
        name = f"{path}.{os.getpid()}-{os.urandom(4).hex()}.part"  # with the permissions that any new file has
        with tempfile.TemporaryFile(dir=folder) as raw, open(name, "xb") as made:
            try:
                count = sum(raw.write(np.ascontiguousarray(block, np.uint64).data) for block in blocks) // 8
                raw.flush()
                if count:
                    os.posix_fallocate(made.fileno(), 0, 16 * count)  # a full disk must not be met by a mapped file
                    _sort(np.memmap(raw, np.uint64, "r", shape=(count,)), *_map(name, count, "r+"))
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise

    @classmethod
    def load(cls, path: str) -> KeyIndex:
        """Map a file that `write` wrote."""
        os.close(open_regular(path))  # a pipe would be waited for
        return cls(*_map(path, os.path.getsize(path) // 16, "r"))

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the places of hashes: (Q,) where each begins among those of the index, and (Q,) where it ends."""
        first = np.searchsorted(self.hashes, hashes, "left")
        there = np.flatnonzero(first < len(self.hashes))
        there = there[self.hashes[first[there]] == hashes[there]]
        last = first.copy()
        last[there] = np.searchsorted(self.hashes, hashes[there], "right")
        return first, last

    def match(self, texts: Any, table: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the rows that have texts.

        Args:
            texts: Q texts, a `pyarrow.Array`; null is found nowhere.
            table: A function from (n,) int64 rows to their texts, a `pyarrow.Array` of large_string.

        Returns:
            (Q,) int64, the first row that has each text, -1 where none has; and (Q,) int64, the number of such rows.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = texts.cast(pa.large_string())
        first, last = self.find(hash_texts(texts))
        last = np.where(np.asarray(texts.is_valid()), last, first)
        # (M,) candidates: the query of each, and its row
        counts = np.minimum(last - first, _MOST_EQUAL)
        query = np.repeat(np.arange(len(counts)), counts)
        ends = np.cumsum(counts)
        rows = np.asarray(self.rows)[
            np.repeat(first, counts) + np.arange(len(query)) - np.repeat(ends - counts, counts)
        ]
        found, number = np.full(len(counts), -1, np.int64), np.zeros(len(counts), np.int64)
        if not len(query):
            return found, number
        # in the order of the rows: a table is read front to back
        order = np.argsort(rows, kind="stable")
        equal = np.empty(len(query), bool)
        same = pc.equal(table(rows[order]).cast(pa.large_string()), texts.take(pa.array(query[order])))
        equal[order] = np.asarray(same.fill_null(False))
        query, rows = query[equal], rows[equal]
        # rows of one query ascend, so that the one assigned last is the first
        found[query[::-1]] = rows[::-1]
        np.add.at(number, query, 1)
        cut = (last - first > _MOST_EQUAL) & (number > 0)
        number[cut] = (last - first)[cut]
        return found, number


def _map(path: str, count: int, mode: Any) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    if not count:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return (
        np.memmap(path, np.uint64, mode, shape=(count,)),
        np.memmap(path, np.int64, mode, offset=8 * count, shape=(count,)),
    )


def _sort(raw: NDArray[np.uint64], hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
    """Sort hashes, with their rows, into two arrays: first into buckets by their upper bits, then each bucket."""
    count = len(raw)
    if count <= _SORTED_AT_ONCE:
        order = np.argsort(raw, kind="stable")
        hashes[:], rows[:] = raw[order], order
        return
    shift = np.uint64(64 - _BUCKET_BITS)
    blocks = [slice(start, start + _SORTED_AT_ONCE) for start in range(0, count, _SORTED_AT_ONCE)]
    sizes = np.zeros(1 << _BUCKET_BITS, np.int64)
    for block in blocks:
        sizes += np.bincount((raw[block] >> shift).astype(np.int64), minlength=len(sizes))
    # (buckets + 1,) where buckets begin; (buckets,) how far each is filled
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    filled = bounds[:-1].copy()
    for block in blocks:
        part = raw[block]
        bucket = (part >> shift).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        numbers, starts = np.unique(bucket[order], return_index=True)
        for number, mine in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            at = slice(filled[number], filled[number] + len(mine))
            hashes[at], rows[at] = part[mine], mine + block.start
            filled[number] += len(mine)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        order = np.argsort(hashes[start:stop], kind="stable")
        hashes[start:stop], rows[start:stop] = hashes[start:stop][order], rows[start:stop][order]


class KeyList:
    """Texts of a list (ids, URLs, digests), and the line of each.

    Args:
        source: A path or URL of a text file with one text a line (blank lines count for nothing), of a table as
            `curator_dali.io.open_table` reads it, several of these, or texts in a list or an array.
        column: The column of a table; may be left out where it has one only, or one with the name `default`.
        default: The name of a column.
        spell: A function from an entry that is neither a text nor an integer (of 64 bits) to its text.
        lower: Whether case does not matter, as of hexadecimal digits.

    Attributes:
        name: The file's name, for reasons.

    Raises:
        SourceError: The file cannot be read, or has no such column.
    """

    def __init__(
        self,
        source: Any,
        column: str | None = None,
        *,
        default: str = "image_id",
        spell: Callable[[Any], str | None] = str,
        lower: bool = False,
    ) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._lower = lower
        self._texts, self.name, self._unit = _read_list(source, column, default, spell)
        if lower:
            self._texts = pc.utf8_lower(self._texts)
        filled = np.asarray(pc.fill_null(pc.not_equal(self._texts, pa.scalar("", pa.large_string())), False))
        self._rows = np.flatnonzero(filled)
        self._texts = self._texts.take(pa.array(self._rows))
        self._index = KeyIndex.build([hash_texts(self._texts)])

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, texts: Any) -> NDArray[np.int64]:
        """Find texts: (Q,) int64, the line (from 1) of each one's first mention, 0 where the list has not got it.

        Args:
            texts: Q texts, a sequence or a `pyarrow.Array`; None is in no list.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(texts, pa.large_string()) if not isinstance(texts, pa.Array) else texts
        wanted = pc.utf8_lower(wanted) if self._lower else wanted
        found, _ = self._index.match(wanted, lambda rows: self._texts.take(pa.array(rows)))
        return np.where(found < 0, 0, self._rows[found] + 1 if len(self._rows) else 0)

    @property
    def digest(self) -> str:
        """A digest of the texts and their lines, by which a list that was changed is another one."""
        found = hashlib.blake2b(self._rows.data, digest_size=8)
        found.update(hash_texts(self._texts).data)
        return found.hexdigest()

    def describe(self, line: int) -> str:
        """Name a line in a reason, as "takedown.txt, line 17"."""
        return f"{self.name}, {self._unit} {line}"

    def texts(self) -> Any:
        """Return all texts of the list, in order: a `pyarrow.Array` of large_string."""
        return self._texts

    def lines(self) -> NDArray[np.int64]:
        """Return the line of each text, (N,) int64, from 1."""
        return self._rows + 1


def _read_list(
    source: Any, column: str | None, default: str, spell: Callable[[Any], str | None]
) -> tuple[Any, str, str]:
    """Read the texts of a list as one array; also its name, and the word for a place in it."""
    import pyarrow as pa

    is_series = hasattr(source, "to_list")  # of pandas or polars
    if isinstance(source, (str, os.PathLike)) or (hasattr(source, "__arrow_c_stream__") and not is_series):
        table = open_table(source, text=True)
        chosen = column or _choose_column(table, default)
        blocks = [_to_texts(block.column(0), spell) for block in table.blocks([chosen])]
        if len(table.schema.names) == 1 and chosen not in (column, default) and table.has_header:
            blocks.insert(0, pa.array([chosen], pa.large_string()))  # a file of entries alone has no header
        return pa.concat_arrays([pa.array([], pa.large_string()), *blocks]), table.name, table.unit
    items = source.tolist() if hasattr(source, "tolist") else list(source)
    texts = [item if isinstance(item, str) else None if item is None else spell(item) for item in items]
    return pa.array(texts, pa.large_string()), "the list", "item"


def _to_texts(column: Any, spell: Callable[[Any], str | None]) -> Any:
    """Entries as texts; those of other types are spelt as values of the metadata are, so that the two are equal."""
    import pyarrow as pa
    import pyarrow.types as kinds

    kind = column.type
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_integer(kind):
        return column.cast(pa.large_string())
    values = column.to_pylist()
    return pa.array([None if value is None else spell(value) for value in values], pa.large_string())


def _choose_column(table: Table, default: str) -> str:
    names: list[str] = table.schema.names
    if len(names) == 1 or default in names:
        return default if default in names else names[0]
    raise SourceError(
        f"{table.name} has the columns {', '.join(names)}: call the one that is meant {default!r}, or give column="
    )

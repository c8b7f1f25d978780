"""`Join`: columns of a table beside a data set, as fields of its samples' metadata."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked, list_paths
from curator_dali.errors import SourceError, count
from curator_dali.index import KeyIndex, hash_texts
from curator_dali.io import AtomicFile, Table, fingerprint, is_remote, open_table, printable
from curator_dali.sources.base import KINDS, Source, quote
from curator_dali.sources.open import reopen
from curator_dali.sources.rows import HeldRows, MappedRows, RowSource, chunk_rows, keep_file, to_slice
from curator_dali.sources.sidecars import to_text

logger = logging.getLogger(__name__)

_KEYS = "\0keys"  # the column of the keys as text, beside those of the table
_SAMPLES_AT_ONCE = 65_536  # whose keys are in memory
_READ_AT_ONCE = 256  # of these, where the samples must be read to learn their keys
_MOST_NAMED = 3  # keys in a message
_COUNTS = ("matched", "unmatched", "repeated", "unused")  # stand behind the row numbers of a file
_MAGIC = 0x6D61746368657331  # ends a file: one that a power cut left is another
_PAIRS = {"label": "label_name", "label_name": "label"}  # fields that say one thing


class Join(RowSource):
    """Samples of a source with the columns of a table; see `Source.join`, which makes it.

    A row belongs to the samples whose key it has; several samples may have one key. Keys are compared as text: the
    integer 7 of a column is the key "7", and not "007". The columns go over fields of the same name; a null is None. A
    sample without a row has no such fields. A new `label` takes the place of `label_name`, too, and the reverse.

    What was read of the table's files, and which row each sample has, lies in files in the cache folder, which are
    mapped. They are found again until a file changes. A table in memory is held, and pickles with the source.

    Attributes:
        source: The whole.
        matched: Samples that have a row.
        unmatched: Samples that have none.
        repeated: Samples that have several rows.
        unused: Rows that no sample has: of other keys, or behind the first of their key.
    """

    matched: int
    unmatched: int
    repeated: int
    unused: int

    @checked
    def __init__(
        self,
        source: Source,
        table: Any,
        on: str | tuple[str, str] = "image_id",
        columns: Sequence[str] | None = None,
        *,
        missing: Literal["keep", "drop", "refuse"] = "keep",
        repeated: Literal["first", "drop", "refuse"] = "first",
    ) -> None:
        if not isinstance(source, Source):
            raise ValueError(f"source is {source!r}; give a Source, as open_source() returns it")
        if getattr(source, "weights", None) is not None:
            raise ValueError(
                f"{source.name!r} is a Mixture with weights, which a join would lose: join each of its sources, and "
                "mix the joins"
            )
        field, key = ("image_id", on) if isinstance(on, str) else on
        table = _spell_table(table)
        opened = open_table(table)
        chosen = _choose_columns(opened, key, columns)
        rows, self._identity = _make_rows(table, opened, key, chosen)
        matches = _Matches(source, rows, field)
        for name, number in zip(_COUNTS, matches.counts, strict=True):
            setattr(self, name, number)
        self._matches = matches
        self._check(opened, len(source), missing, repeated)
        types = {name: opened.schema.field(name).type for name in chosen}
        super().__init__(source, self._choose(matches, missing, repeated), rows, np.empty(0, np.int64), types)
        self._log_counts(opened, missing, repeated)
        self._choices = {"on": [field, key], "columns": chosen, "missing": missing, "repeated": repeated}
        self.origin = None
        if source.origin is not None and isinstance(table, list):
            self.origin = {"of": source.origin, "join": {"table": table, **self._choices}}

    @cached_property
    def fingerprint(self) -> str:
        """Of the whole's fingerprint, the table's files (their names and sizes), and the choices."""
        return fingerprint("join", [self.source.fingerprint, self._identity, sorted(self._choices.items())])

    @property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """The whole's, unless the labels, or their names, are the table's."""
        return {} if _PAIRS.keys() & self._table.columns else self.source.class_lists

    @classmethod
    def reopen(cls, origin: Mapping[str, Any], data: Any = None) -> Join:
        """Open a join again from its `origin`; `data` is where its data set is now."""
        about = dict(origin["join"])
        return cls(reopen(origin["of"], data), about.pop("table"), tuple(about.pop("on")), **about)

    def close(self) -> None:
        """Close the whole, and let the mapped files go. A later read opens these again."""
        super().close()
        self._matches.close()

    @staticmethod
    def _merge(metadata: Any, rows: MappedRows, number: int) -> dict[str, Any]:
        merged = RowSource._merge(metadata, rows, number)
        for name, partner in _PAIRS.items():
            if name in rows.columns and partner not in rows.columns:
                merged.pop(partner, None)
        return merged

    def _find_rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._matches.find(self._whole(indices))

    def _check(self, table: Table, many: int, missing: str, repeated: str) -> None:
        """Refuse samples without a row, and samples with several, where these are to be refused."""
        if missing == "refuse" and self.unmatched:
            raise SourceError(
                f"{count(self.unmatched, 'sample')} of {many:,} have no row in {table.name}, such as "
                f"{self._matches.name_samples(-1)}: give missing='keep' or 'drop', or add the rows"
            )
        if repeated == "refuse" and self.repeated:
            raise SourceError(
                f"{count(self.repeated, 'sample')} of {many:,} have several rows in {table.name}, such as "
                f"{self._matches.name_samples(-2)}: give repeated='first' or 'drop', or remove rows"
            )

    def _log_counts(self, table: Table, missing: str, repeated: str) -> None:
        quiet = (not self.unmatched or missing == "drop") and (not self.repeated or repeated == "drop")
        level, hint = logging.INFO if quiet else logging.WARNING, ""
        if len(self.source) and not self.matched:
            samples = self._matches.name_samples(-1)
            keys = [quote(str(key)) for block in self._table.blocks(_KEYS) for key in block[:_MOST_NAMED].to_pylist()]
            hint = f". Samples have keys such as {samples}; rows: {', '.join(keys[:_MOST_NAMED]) or 'none'}"
        logger.log(
            level,
            "%s joined with %s: %d samples have a row, %d have none%s, %d have several%s; rows without a sample: %d%s",
            self.source.name,
            table.name,
            self.matched,
            self.unmatched,
            " and are dropped" if missing == "drop" and self.unmatched else "",
            self.repeated,
            "" if not self.repeated else " and are dropped" if repeated == "drop" else " (the first counts)",
            self.unused,
            hint,
        )

    def _choose(self, matches: _Matches, missing: str, repeated: str) -> slice | NDArray[np.int64]:
        """The samples that are not dropped."""
        drops = (missing == "drop" and self.unmatched) or (repeated == "drop" and self.repeated)
        return to_slice(matches.select(missing != "drop", repeated != "drop")) if drops else slice(None)


class _Matches:
    """The row of each sample of a source, in a file that is mapped; made when it is missing. Pickles without it.

    The file has N int64: the number of a row, -1 where a sample has none, -2 - number for the first of several rows;
    behind them the four `_COUNTS`, and `_MAGIC`.

    Args:
        source: N samples.
        rows: The table, with the column `_KEYS`.
        field: The samples' keys: "image_id", "image_path" or a field of the metadata.

    Raises:
        SourceError: No sample has the field, or a sample cannot be read now.
    """

    def __init__(self, source: Source, rows: MappedRows, field: str) -> None:
        self._source, self._rows, self._field = source, rows, field
        self._mapped: NDArray[np.int64] | None = None
        parts = [source.fingerprint, rows.key, field]
        if field == "image_id" and source.has_known_ids:
            self._key = fingerprint("join", parts)
            _ = self.counts
            return
        # metadata, paths and columns of ids may change where the fingerprint does not: the keys themselves tell
        with tempfile.TemporaryFile() as scratch:
            self._key = fingerprint("join", [*parts, self._spool(scratch)])
            self._spooled: Any = scratch
            _ = self.counts
            self._spooled = None

    def find(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) numbers of samples' rows, of several the first; -1 where a sample has none."""
        found = self._numbers[indices]
        return np.where(found < -1, -2 - found, found)

    @property
    def counts(self) -> list[int]:
        """The four `_COUNTS`."""
        found: list[int] = self._numbers[len(self._source) : -1].tolist()
        return found

    def select(self, without_row: bool, with_several: bool) -> NDArray[np.int64]:
        """(M,) samples, ascending: those with one row and, where wanted, those without a row and with several."""
        blocks = []
        for start in range(0, len(self._source), _SAMPLES_AT_ONCE):
            block = self._numbers[start : min(start + _SAMPLES_AT_ONCE, len(self._source))]
            wanted = (block >= 0) | ((block == -1) & without_row) | ((block < -1) & with_several)
            blocks.append(np.flatnonzero(wanted) + start)
        return np.concatenate([np.empty(0, np.int64), *blocks])

    def name_samples(self, code: int) -> str:
        """The keys, in quotes, of some samples without a row (`code` -1) or with several (-2)."""
        for start in range(0, len(self._source), _SAMPLES_AT_ONCE):
            block = self._numbers[start : min(start + _SAMPLES_AT_ONCE, len(self._source))]
            found = np.flatnonzero(block == -1 if code == -1 else block < -1)[:_MOST_NAMED]
            if len(found):
                keys = _read_keys(self._source, self._field, found + start)
                return ", ".join(quote(str(key)) for key in keys.to_pylist())
        return ""

    def close(self) -> None:
        """Let the mapped file go."""
        self._mapped = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mapped": None}

    _spooled: Any = None  # a file of the keys, in the call that gathers these

    def _spool(self, file: IO[bytes]) -> str:
        """Write the samples' keys to a file, as an Arrow stream; returns their digest."""
        import pyarrow as pa

        digest, known = hashlib.blake2b(digest_size=16), 0
        with pa.ipc.new_stream(file, pa.schema([("key", pa.large_string())])) as writer:
            for keys in self._read_keys():
                digest.update(hash_texts(keys).data)
                known += len(keys) - keys.null_count
                writer.write_batch(pa.RecordBatch.from_arrays([keys], ["key"]))
        if len(self._source) and not known:
            raise SourceError(f"no sample of {self._source.name!r} has a field {self._field!r} to join by")
        return digest.hexdigest()

    def _read_keys(self) -> Iterator[Any]:
        """Iterate over the samples' keys in order, each a `pyarrow.Array` of at most 65,536."""
        if self._spooled is not None:
            import pyarrow as pa

            self._spooled.seek(0)
            yield from (batch.column(0) for batch in pa.ipc.open_stream(self._spooled))
            return
        for start in range(0, len(self._source), _SAMPLES_AT_ONCE):
            samples = np.arange(start, min(start + _SAMPLES_AT_ONCE, len(self._source)))
            yield _read_keys(self._source, self._field, samples)

    @property
    def _numbers(self) -> NDArray[np.int64]:
        if self._mapped is None:
            path = keep_file(self._key, ".matches", self._write)
            size = len(self._source) + len(_COUNTS) + 1
            if os.path.getsize(path) != 8 * size or np.memmap(path, np.int64, "r")[-1] != _MAGIC:  # damaged
                self._write(path)
            # no `memmap`, whose every slice costs microseconds
            self._mapped = np.asarray(np.memmap(path, np.int64, "r", shape=(size,))).view(np.ndarray)
        return self._mapped

    def _write(self, path: str) -> None:
        index = self._open_index()
        counts = dict.fromkeys(_COUNTS, 0)
        total = len(index.rows)
        with tempfile.TemporaryFile() as scratch, AtomicFile(path, sync=False) as file:
            scratch.truncate(max(total, 1))
            used = np.memmap(scratch, bool, shape=(max(total, 1),))  # whether a row is that of a sample
            for keys in self._read_keys():
                numbers, times = index.match(keys, partial(self._rows.take, _KEYS))
                used[numbers[numbers >= 0]] = True
                counts["matched"] += int((numbers >= 0).sum())
                counts["repeated"] += int((times > 1).sum())
                file.write(np.where(times > 1, -2 - numbers, numbers).astype(np.int64).data)
            counts["unmatched"] = len(self._source) - counts["matched"]
            counts["unused"] = total - int(np.count_nonzero(used))
            file.write(np.array([*(counts[name] for name in _COUNTS), _MAGIC], np.int64).data)

    def _open_index(self) -> KeyIndex:
        hashes = (hash_texts(block) for block in self._rows.blocks(_KEYS))
        if isinstance(self._rows, HeldRows):
            return KeyIndex.build(hashes)
        write = partial(KeyIndex.write, blocks=hashes)
        path = keep_file(self._rows.key, ".keys", write)
        if os.path.getsize(path) != 16 * self._rows.count():  # damaged
            write(path)
        return KeyIndex.load(path)


def _spell_table(table: Any) -> Any:
    """A table's paths and URLs as a list of texts that other processes find; a table in memory as it is."""
    if hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__"):
        return table
    if not isinstance(table, (str, os.PathLike, list, tuple)):
        return table  # refused by `open_table`
    paths = list_paths(table)
    return [path if is_remote(path) else os.path.abspath(os.path.expanduser(path)) for path in paths]


def _choose_columns(table: Table, key: str, columns: Sequence[str] | None) -> list[str]:
    """The columns to add."""
    table.check_column(key)
    if columns is None:
        return [name for name in table.schema.names if name != key]
    for name in columns:
        table.check_column(name)
    if not columns:
        raise SourceError(f"columns is empty: name some of {', '.join(table.schema.names)}, or leave it out for all")
    return list(dict.fromkeys(columns))


def _make_rows(table: Any, opened: Table, key: str, columns: Sequence[str]) -> tuple[MappedRows, str]:
    """The rows of a table with their keys as text; and a text by which a copy of the table is the same."""
    kind = opened.schema.field(key).type
    _check_key(opened.name, key, kind)
    names = list(dict.fromkeys([*columns, key]))
    if opened.version:
        mark = fingerprint("join", [opened.version, names, key])
        return MappedRows(mark, partial(_read_blocks, table, opened.identity, names, key), columns), opened.identity
    batches = list(chunk_rows(_add_keys(opened.blocks(names), key)))  # however the table came in pieces
    digest = hashlib.blake2b(repr([(name, str(opened.schema.field(name).type)) for name in names]).encode())
    for batch in batches:
        digest.update(batch.serialize())
    mark = fingerprint("join", [digest.hexdigest(), names, key])
    return HeldRows(mark, batches, columns), digest.hexdigest()


def _check_key(name: str, key: str, kind: Any) -> None:
    """Refuse a column of keys that are neither text nor whole numbers."""
    import pyarrow.types as kinds

    inner = kind.value_type if kinds.is_dictionary(kind) else kind
    text = kinds.is_string(inner) or kinds.is_large_string(inner) or kinds.is_string_view(inner)
    if not (text or kinds.is_integer(inner) or kinds.is_null(inner)):
        raise SourceError(
            f"the keys in column {key!r} of {name} are {kind}, and keys are text or whole numbers: cast the column, as "
            "by table.cast or astype(str)"
        )


def _read_blocks(table: Any, identity: str, names: Sequence[str], key: str) -> Iterator[Any]:
    """Read a table's columns and keys, if it is still the one that was joined."""
    opened = open_table(table)
    if opened.identity != identity:
        raise SourceError(f"{opened.name} has changed since it was joined: join it again")
    yield from _add_keys(opened.blocks(names), key)


def _add_keys(blocks: Iterator[Any], key: str) -> Iterator[Any]:
    """Add to record batches the column `_KEYS`."""
    import pyarrow as pa

    for block in blocks:
        keys = block.column(key)
        keys = keys.dictionary_decode() if pa.types.is_dictionary(keys.type) else keys
        columns = [*block.columns, keys.cast(pa.large_string())]
        yield pa.RecordBatch.from_arrays(columns, names=[*block.schema.names, _KEYS])


def _read_keys(source: Source, field: str, samples: NDArray[np.int64]) -> Any:
    """(n,) keys of samples, a `pyarrow.Array` of large_string; null where a sample has none."""
    import pyarrow as pa

    if field == "image_id":
        return source.read_ids(samples)
    read: Callable[[Any], Any] = _read_path if field == "image_path" else partial(_read_field, field)
    keys: list[str | None] = []
    for start in range(0, len(samples), _READ_AT_ONCE):
        batch = source.read(samples[start : start + _READ_AT_ONCE])
        batch.check_read()  # what is kept of the matching must not depend on a store's bad minute
        keys += map(read, batch.objects)
    return pa.array(keys, pa.large_string())


def _read_path(item: Any) -> str:
    return str(item.image_path)


def _read_field(field: str, item: Any) -> str | None:
    value = item.metadata.get(field)
    return None if value is None else printable(to_text(value))


KINDS["join"] = Join

"""`View`: the kept samples of an output, read from the original data set, with every score and decision."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Limits, checked
from curator_dali.errors import SourceError
from curator_dali.index import KeyList
from curator_dali.io import Written, fingerprint, is_remote, join
from curator_dali.outputs import EMBEDDING, METADATA, Manifest, RowFiles, to_numpy
from curator_dali.sources.base import KINDS
from curator_dali.sources.open import reopen
from curator_dali.sources.recorded import open_recorded
from curator_dali.sources.rows import MappedRows, RowSource, to_slice
from curator_dali.sources.sidecars import is_same

logger = logging.getLogger(__name__)

_NO_FIELDS = ("index", "image_id", "image_path", EMBEDDING)  # columns that samples have in other places, or not
_MOST_RECORDED = 10_000  # ids of a list that was given as such, and is part of an origin

_Numbers = Annotated[Mapping[str, float], Limits('numbers by column, as {"aesthetic_score": 5.5}')]
_Values = Annotated[Mapping[str, Any], Limits('values by column, as {"label_name": "cat"}')]


class View(RowSource):
    """The samples that a curation kept, read from the original data set: nothing is written for it.

    The ids, images and metadata are those of the data set. Every other column of the output's Parquet files but `index`
    and the embedding is among the metadata, too: scores, `status`, `tar`, and so on. Where a sample has another value
    under the name of a column, that value is the field `source_NAME`. The order is that of the output. An unfinished
    output gives its finished parts, and a warning.

    The original is opened as the output says. Its files may have moved: give `data`, in which they may have other names
    and another order. A data set that has changed is refused, and the files that changed are named.

    The thresholds hold on top of the curation's own decisions; with `status=None` they hold instead of these.

    Args:
        out: The output's folder, or its URL. It needs no tars.
        data: The data set, where it has moved, or the output does not say how to open it: what `open_source` takes.
        status: "kept", "dropped", or None for both. Samples that could not be decoded are in no view.
        min: Column -> smallest value that stays. Null and NaN never stay.
        max: Column -> largest value that stays.
        equals: Column -> the value that stays, or a list of these.
        where: Column -> a function from (m,) values, none of them missing, to m booleans: true for what stays.
        exclude: Ids of samples that are left out: a text file with one id a line, a table with a column `image_id`, a
            list or an array of ids.
        include: Ids of the only samples that may stay, likewise.
        name: The data set's name; by default the folder's.

    Attributes:
        out: The output.
        source: The data set.

    Raises:
        OutputError: There is no output, or none of its parts is finished.
        SourceError: The data set cannot be opened, or is another one by now; or a list cannot be read.
        ValueError: A column is not stored, or cannot be compared with a number.

    Example:
        >>> view = cd.View("curated/", min={"aesthetic_score": 5.5}, exclude="takedown.txt")
        >>> loader = cd.ImageLoader(view, batch_size=256, shuffle=42)
    """

    @checked
    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        data: Any = None,
        status: Literal["kept", "dropped"] | None = "kept",
        min: _Numbers | None = None,
        max: _Numbers | None = None,
        equals: _Values | None = None,
        where: _Values | None = None,
        exclude: Any = None,
        include: Any = None,
        name: str | None = None,
    ) -> None:
        manifest = Manifest.load(os.fspath(out))
        self.out = manifest.folder
        limits = (dict(given or {}) for given in (min, max, equals, where))
        choice = _Choice(status, *limits, *map(_hold_list, (exclude, include)))
        rows = _read_rows(manifest, choice)
        whole = open_recorded(manifest, data, argument=f"data= of cd.View({manifest.folder!r}, ...)")
        try:
            make = partial(_read_columns, self.out, rows.files, rows.columns)
            table = MappedRows(rows.key, make, rows.columns)
            super().__init__(whole, to_slice(rows.indices), table, rows.numbers, rows.types)
        except BaseException:
            if whole is not data:
                whole.close()
            raise
        self.name = name or self.out.rstrip("/").rpartition("/")[2] or whole.name
        self.origin = self._make_origin(choice, data, name)

    @cached_property
    def fingerprint(self) -> str:
        """Of the data set's fingerprint, the samples that were chosen, and the output's rows."""
        chosen = fingerprint("rows", [self._rows if isinstance(self._rows, range) else self._rows.tobytes()])
        return fingerprint("view", [self.source.fingerprint, chosen, self._table.key])

    @property
    def locations(self) -> Sequence[str]:
        """The data set's, and the output."""
        return [*self.source.locations, f"{self.out.rstrip('/')}/"]

    @property
    def shards(self) -> Sequence[Any]:
        """None: the output knows of which files its data set is made."""
        return ()

    @classmethod
    def reopen(cls, origin: Mapping[str, Any], data: Any = None) -> View:
        """Open a view again from its `origin`; `data` is where its data set is now."""
        about = dict(origin["view"])
        given = about.pop("data", None)
        if data is None and given is not None:
            data = reopen(given)
        return cls(data=data, **about)

    def _make_origin(self, choice: _Choice, data: Any, name: str | None) -> Mapping[str, Any] | None:
        """How `reopen` opens the view again; None where a function or an object of yours is part of it."""
        lists = [_record_list(some) for some in (choice.exclude, choice.include)]
        if choice.where or (data is not None and self.source.origin is None) or _UNKNOWN in lists:
            return None
        values = {column: list(_values_of(value)) for column, value in choice.equals.items()}
        about: dict[str, Any] = {"status": choice.status, "min": choice.min, "max": choice.max, "equals": values}
        about |= {"exclude": lists[0], "include": lists[1], "name": name}
        if data is not None:
            about["data"] = self.source.origin
        return {"view": {"out": self.out, **about}}

    @staticmethod
    def _merge(metadata: Any, rows: MappedRows, number: int) -> dict[str, Any]:
        own = metadata() if callable(metadata) else metadata
        columns = rows.row(number)
        merged = {**own, **columns}
        for name in own:
            if name in columns and is_same(own[name], columns[name], exact=False):
                merged[name] = own[name]  # 7 is no 7.0
            elif name in columns:
                free = f"source_{name}"
                while free in merged:
                    free = f"source_{free}"
                merged[free] = own[name]
        return merged


class _Choice(NamedTuple):
    """The arguments by which samples are chosen for a view; see `View`."""

    status: str | None
    min: dict[str, float]
    max: dict[str, float]
    equals: dict[str, Any]
    where: dict[str, Callable[[NDArray[Any]], Any]]
    exclude: Any
    include: Any

    @property
    def columns(self) -> list[str]:
        """The columns that tell."""
        lists = ["image_id"] if self.exclude is not None or self.include is not None else []
        return list(dict.fromkeys(["index", "status", *self.min, *self.max, *self.equals, *self.where, *lists]))


class _Rows(NamedTuple):
    """Rows of an output, of M chosen samples.

    Attributes:
        indices: (M,) int64 in the data set.
        numbers: (M,) int64 in the output's rows.
        files: The output's Parquet files, in order, as they were recorded.
        columns: The columns that become metadata.
        types: Their types, as `Source.arrow_fields` has them.
        key: A text that changes when any value of these columns does.
    """

    indices: NDArray[np.int64]
    numbers: NDArray[np.int64]
    files: list[Written]
    columns: list[str]
    types: Mapping[str, Any]
    key: str


def _read_rows(manifest: Manifest, choice: _Choice) -> _Rows:
    """Find the rows of an output that are meant, by no more columns than that needs."""
    parts = manifest.parts()
    done = sum(map(len, parts))
    none = np.empty(0, np.int64)
    if not manifest.samples:
        return _Rows(none, none, [], [], {}, "")
    if done < manifest.samples:
        logger.warning(
            "%s is not finished: %d of its %d samples are missing. Run that curation again to have them",
            manifest.folder,
            manifest.samples - done,
            manifest.samples,
        )
    files = RowFiles(manifest.folder)  # refuses an output without any
    names = {url.rpartition("/")[2] for url in files.files}
    written = [file for part in parts for file in part.files if file.name in names]
    _check_columns(choice, files.schema, manifest.folder)
    lists = [
        KeyList(some) if not isinstance(some, KeyList | None) else some for some in (choice.exclude, choice.include)
    ]
    # the data set itself has the fields of the metadata, of which columns hold copies
    copies = {*files.fields.types, *files.fields.read, *([METADATA] if files.fields.rest else [])}
    columns = [name for name in files.schema.names if name not in _NO_FIELDS and name not in copies]
    key = fingerprint("rows", [columns, *((file.name, file.size, file.blake2b) for file in written)])
    most = sum(part.counts[status] for part in parts for status in _statuses_of(choice))
    # (M,) of the samples chosen so far, in one piece of memory from the beginning
    indices, numbers = np.empty(most, np.int64), _Numbered(most)
    at = found = 0
    for batch in files.batches(choice.columns):
        chosen = np.flatnonzero(_choose(batch, choice, *lists))
        indices[found : found + len(chosen)] = batch.column("index").to_numpy()[chosen]
        numbers.add(indices, found, chosen + at)
        at, found = at + len(batch), found + len(chosen)
    if found == 0 and most:
        logger.warning("no sample of %s passes the view's thresholds and lists", manifest.folder)
    types = {name: files.schema.field(name).type for name in columns}
    return _Rows(indices[:found], numbers.of(indices)[:found], written, columns, types, key)


class _Numbered:
    """Numbers of rows that are nearly always the samples' indices: an array of their own is made where one differs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._own: NDArray[np.int64] | None = None

    def add(self, indices: NDArray[np.int64], start: int, numbers: NDArray[np.int64]) -> None:
        """Append numbers of rows, the first at place `start`; `indices` are those of all samples up to these."""
        stop = start + len(numbers)
        if self._own is None and (indices[start:stop] != numbers).any():
            self._own = np.empty(self._most, np.int64)
            self._own[:start] = indices[:start]
        if self._own is not None:
            self._own[start:stop] = numbers

    def of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """All numbers; the array of the samples' indices itself where they are equal."""
        return indices if self._own is None else self._own


def _statuses_of(choice: _Choice) -> Sequence[str]:
    return (choice.status,) if choice.status else ("kept", "dropped")


def _check_columns(choice: _Choice, schema: Any, out: str) -> None:
    """Refuse thresholds on columns that are not stored, or have no numbers."""
    import pyarrow.types as kinds

    stored = [name for name in schema.names if name != EMBEDDING]
    for argument in ("min", "max", "equals", "where"):
        for name, value in getattr(choice, argument).items():
            if name not in stored:
                raise ValueError(
                    f"{argument} names the column {name!r}, which {out} has not; it has {', '.join(stored)}"
                )
            kind = schema.field(name).type
            if argument in ("min", "max") and not (kinds.is_integer(kind) or kinds.is_floating(kind)):
                raise ValueError(f"{argument} limits {name!r}, whose values are {kind}: give equals= or where= for it")
            if argument in ("min", "max") and not (isinstance(value, Real) and value == value):
                raise ValueError(f"{argument}[{name!r}] is {value!r}; allowed: a number")
            if argument == "where" and not callable(value):
                raise ValueError(f"where[{name!r}] is {value!r}; give a function from (m,) values to m booleans")


def _choose(batch: Any, choice: _Choice, exclude: KeyList | None, include: KeyList | None) -> NDArray[np.bool_]:
    """(n,) which rows of a `pyarrow.RecordBatch` are meant."""
    import pyarrow as pa
    import pyarrow.compute as pc

    status = batch.column("status")
    chosen = _to_mask(pc.not_equal(status, "failed") if choice.status is None else pc.equal(status, choice.status))
    for name, limit in choice.min.items():
        chosen &= _to_mask(pc.greater_equal(batch.column(name), _as_limit(limit)))
    for name, limit in choice.max.items():
        chosen &= _to_mask(pc.less_equal(batch.column(name), _as_limit(limit)))
    for name, value in choice.equals.items():
        column = batch.column(name)
        try:
            wanted = pa.array(_values_of(value)).cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise ValueError(f"equals[{name!r}] is {value!r}, and its values are {column.type}: {error}") from error
        chosen &= _to_mask(pc.is_in(column, wanted)) & _to_mask(column.is_valid())
    for name, function in choice.where.items():
        chosen &= _apply(function, name, batch.column(name))
    if exclude is not None:
        chosen &= exclude.find(batch.column("image_id")) == 0
    if include is not None:
        chosen &= include.find(batch.column("image_id")) > 0
    return chosen


def _as_limit(number: Any) -> Any:
    """A number as Arrow compares it: a float where it is no integer of 64 bits."""
    return int(number) if isinstance(number, Integral) and -(2**63) <= int(number) < 2**63 else float(number)


def _to_mask(mask: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = mask.fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _apply(function: Callable[[NDArray[Any]], Any], name: str, column: Any) -> NDArray[np.bool_]:
    """(n,) where a function from values to booleans holds; never where there is no value."""
    import pyarrow as pa

    values = to_numpy(pa.chunked_array([column]))
    there = np.flatnonzero(np.array([value is not None and value == value for value in values.tolist()], bool))
    passes = np.asarray(function(values[there]))
    if passes.shape != there.shape or passes.dtype != bool:
        raise ValueError(
            f"where[{name!r}] gave {passes.dtype} of shape {passes.shape} for {len(there)} values; give a bool for each"
        )
    chosen = np.zeros(len(values), bool)
    chosen[there[passes]] = True
    return chosen


def _values_of(value: Any) -> list[Any]:
    """One value, or several, as a list."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _hold_list(some: Any) -> Any:
    """A list of ids as it was given, but for a generator, which would be used up, and an array."""
    if some is None or isinstance(some, (str, os.PathLike, KeyList)) or hasattr(some, "__arrow_c_stream__"):
        return some
    return some.tolist() if hasattr(some, "tolist") else list(some)


_UNKNOWN = object()


def _record_list(some: Any) -> Any:
    """A list of ids in JSON's types: its path, or the ids; `_UNKNOWN` where it is neither, or long."""
    if some is None:
        return None
    if isinstance(some, (str, os.PathLike)):
        path = os.fspath(some)
        return path if is_remote(path) else os.path.abspath(path)
    if isinstance(some, KeyList) or hasattr(some, "__arrow_c_stream__"):
        return _UNKNOWN
    return list(map(str, some)) if len(some) <= _MOST_RECORDED else _UNKNOWN


def _read_columns(out: str, files: Sequence[Written], columns: Sequence[str]) -> Iterator[Any]:
    """Iterate over the rows of Parquet files of an output, as `pyarrow.RecordBatch`es of some columns."""
    there = {file for part in Manifest.load(out).parts() for file in part.files}
    if changed := [file.name for file in files if file not in there]:
        raise SourceError(f"{join(out, changed[0])} was written anew since the view was opened: open it again")
    for file in files:
        yield from RowFiles(join(out, file.name)).batches(columns)


KINDS["view"] = View

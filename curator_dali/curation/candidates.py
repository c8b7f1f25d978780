"""What a stage that sees everything is given: the rows of an output, and the executor's workers to share its work."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.curation.executors import Executor, Mapper
from curator_dali.errors import OutputError
from curator_dali.files import make_folder
from curator_dali.sinks import RowFiles, store
from curator_dali.sinks.explain import join
from curator_dali.sinks.rows import read_embeddings
from curator_dali.stages import Spread

__all__ = ["Candidates", "Workroom", "workroom"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_NAME = "_work"  # folder in the output, while something is decided
_DELAYS = (0.0, 0.5, 2.0)  # a process that is being ended may still write


@dataclass(frozen=True)
class Workroom:
    """Who shares what is decided of an output, and where their files go.

    Attributes:
        mapper: Of the executor.
        folder: For files, which need not be there yet.
    """

    mapper: Mapper
    folder: str


@contextmanager
def workroom(executor: Executor, folder: str) -> Iterator[Workroom | None]:
    """The workers of an executor, for what is decided of an output; None where it has no others.

    What a killed run left in the folder is removed before, and what is there removed afterwards.

    Args:
        executor: The executor.
        folder: The output.
    """
    place = join(folder, _NAME)
    _clear(place)
    try:
        with executor.mapper() as mapper:
            yield None if mapper is None else Workroom(mapper, place)
    finally:
        _clear(place)


class Candidates:
    """The rows of an output that a stage has to judge: what `Scored` promises.

    Args:
        files: The output's rows.
        rows: (M,) int64, ascending: which of them.
        kinds: Name -> type of the columns.
        workroom: Who shares the work; None: nobody.
    """

    def __init__(
        self,
        files: RowFiles,
        rows: NDArray[np.int64],
        kinds: Mapping[str, str],
        workroom: Workroom | None = None,
    ) -> None:
        self._files, self.rows, self._kinds, self._workroom = files, rows, kinds, workroom
        self._judged = np.zeros(len(files), bool)
        self._judged[rows] = True

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> NDArray[Any]:
        """(M,) values; of the column's type where none is missing."""
        values: NDArray[Any] = self._files.columns([name])[name][self.rows]
        whole = values.dtype == object and self._kinds.get(name, "string") != "string" and None not in values.tolist()
        return values.astype(self._kinds[name]) if whole else values

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """Blocks of (m, D), M rows in all."""
        for numbers, block in self._files.embeddings():
            yield block[self._judged[numbers]]

    @property
    def spread(self) -> Spread | None:
        """Who may share the work."""
        return None if self._workroom is None else _Sharing(self._workroom, self._files, self.rows)


class _Sharing:
    """The workers of a `Workroom`, and the embeddings of M candidates for them: what `Spread` promises."""

    def __init__(self, workroom: Workroom, files: RowFiles, rows: NDArray[np.int64]) -> None:
        self._workroom, self._files, self._rows = workroom, files, rows
        self.device, self.dim = workroom.mapper.device, files.embedding_dim

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What a function gives for each item, in their order."""
        return self._workroom.mapper.map(function, items)

    def reader(self, rows: NDArray[np.int64]) -> _Reader:
        """The embeddings of some candidates, by their numbers among these, ascending."""
        wanted = self._rows[rows]
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1  # of their files
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        pieces = zip(numbers[first].tolist(), np.split(wanted, first[1:]), strict=True) if len(first) else ()
        return _Reader(tuple((self._files.files[n], some - self._starts[n]) for n, some in pieces), self.dim)

    @contextmanager
    def room(self) -> Iterator[str]:
        """A new folder for files."""
        folder = join(self._workroom.folder, secrets.token_hex(8))  # nobody's who is still about to write
        make_folder(folder)
        try:
            yield folder
        finally:
            _clear(folder)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The first row of every file."""
        return np.cumsum([0, *self._files.counts()], dtype=np.int64)[:-1]


@dataclass(frozen=True)
class _Reader:
    """Some rows of Parquet files.

    Attributes:
        pieces: File and (n,) rows of it, ascending.
        dim: D.
    """

    pieces: tuple[tuple[str, NDArray[np.int64]], ...]
    dim: int

    def read(self) -> NDArray[np.float32]:
        """(m, D)."""
        blocks = [read_embeddings(url, rows) for url, rows in self.pieces]
        return np.concatenate([np.empty((0, self.dim), np.float32), *blocks])


def _clear(folder: str) -> None:
    for delay in _DELAYS:
        time.sleep(delay)
        try:
            store.remove_folder(folder)
            return
        except OutputError as error:
            problem = error
    logger.warning("%s; the next run will", problem)

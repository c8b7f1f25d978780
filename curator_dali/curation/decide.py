"""The second phase of a run with a stage that sees everything: decide, then write who stays from the source's bytes.

What the stage decides may be shared among the executor's workers.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.curation.rows import DECODE, Account, Output, Rows, add_misfits, write_rows
from curator_dali.curation.worker import Executor, Mapper
from curator_dali.errors import OutputError, StageError, kind_of_failure
from curator_dali.io import join, make_folder, store
from curator_dali.outputs import Manifest, Part, RowFiles, RowSubset, part_name, read_embeddings, to_numpy
from curator_dali.sampling import Range
from curator_dali.sources import Source
from curator_dali.stages import GlobalSelector, Plan, Selector, Spread

__all__ = [
    "FAILED",
    "KEPT",
    "Candidates",
    "Decisions",
    "Workroom",
    "apply",
    "decide_with",
    "finish",
    "read_rows",
    "workroom",
    "write_kept",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

KEPT, FAILED = np.int16(32767), np.int16(-1)  # numbers in `Decisions.stage`, beside those of stages
_WORK_FOLDER = "_work"  # in the output, while something is decided
_REMOVAL_DELAYS = (0.0, 0.5, 2.0)  # a process that is being ended may still write
_CHUNK_SAMPLES = 256  # whose bytes are in memory at once, times the source's read-ahead


def finish(
    source: Source,
    scored: Manifest,
    plan: Plan,
    output: Output,
    parts: Sequence[Range],
    finished: Callable[[Part], object],
    progress: Callable[[int], object],
    executor: Executor,
) -> None:
    """Decide, and write parts of a scored output with the bytes of who stays.

    Args:
        source: What was scored.
        scored: The scored output, every part of it.
        plan: The stages.
        output: Where to.
        parts: Which of the scored parts to write.
        finished: Called with each part that is written and recorded.
        progress: Called with the number of samples written since the last call.
        executor: Whose workers share what is decided.
    """
    with workroom(executor, output.manifest.folder) as shared:
        decisions = _decide(RowFiles(scored.folder), plan, shared)
    scoring = {(part.start, part.stop): part.info for part in scored.parts()}
    for part in parts:
        rows = read_rows(scored.folder, part, plan)
        apply(rows, decisions, part, plan)
        if not output.schema.embedding_dim:
            rows.embeddings = rows.embedded = None
        add_misfits(rows.misfits, scoring[part].get("misfits", {}))
        seconds = {**scoring[part]["seconds"]}
        for label, spent in decisions.take_seconds().items():
            seconds[label] = seconds.get(label, 0.0) + spent
        finished(write_kept(source, rows, output, part, progress, seconds))


def _decide(files: RowFiles, plan: Plan, workroom: Workroom | None = None) -> Decisions:
    """Let the stages that see everything judge the rows of a scored output.

    Args:
        files: A row for every sample, in the source's order.
        plan: The stages that scored them.
        workroom: Who shares the work; None: nobody.

    Raises:
        StageError: A stage does not give a reason or None for every row.
    """
    found = files.columns(["status", "stage"])
    numbers = {label: number for number, label in enumerate(plan.labels)}
    stage = np.array(
        [
            KEPT if status == "kept" else FAILED if status == "failed" else numbers[label]
            for status, label in zip(found["status"].tolist(), found["stage"].tolist(), strict=True)
        ],
        np.int16,
    )
    decisions = Decisions(stage)
    for number, selector in enumerate(plan.stages):
        if not isinstance(selector, GlobalSelector):
            continue
        rows = np.flatnonzero(stage > number)
        decide_with(selector, number, Candidates(files, rows, plan.columns, workroom), plan, decisions)
    return decisions


def decide_with(
    selector: GlobalSelector, number: int, candidates: Candidates, plan: Plan, decisions: Decisions
) -> None:
    """Let one stage that sees everything judge, and write down what it says.

    Raises:
        StageError: It does not give a reason or None for every row.
    """
    rows, stage, label = candidates.rows, decisions.stage, plan.labels[number]
    began = time.perf_counter()
    reasons, columns = selector.decide(candidates)
    decisions.seconds[label] = time.perf_counter() - began
    if len(reasons) != len(rows) or set(columns) != set(selector.decides):
        raise StageError(
            f"{label} gave {len(reasons)} reasons and the columns {sorted(columns)} for {len(rows)} images; it "
            f"declares {sorted(selector.decides)}"
        )
    for name, values in columns.items():
        kind = selector.decides[name]
        whole = np.full(len(stage), np.nan, kind) if kind.startswith("float") else np.full(len(stage), None, object)
        whole[rows] = values
        decisions.columns[name] = whole
    decisions.drop(number, rows, reasons)


@dataclass
class Decisions:
    """Decisions on all samples, made once every sample was seen.

    Attributes:
        stage: (N,) number of the stage that drops a sample, -1 where it failed, 32767 where it is kept.
        reasons: Sample -> reason, of those that a `GlobalSelector` dropped.
        columns: Name -> (N,) values that the `GlobalSelector`s added.
        seconds: Stage -> what deciding took.
    """

    stage: NDArray[np.int16]
    reasons: dict[int, str] = field(default_factory=dict)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def drop(self, number: int, rows: NDArray[np.int64], reasons: NDArray[np.object_]) -> None:
        """Write down the reasons of a stage for some rows: None for a row that stays.

        A later stage may have had a reason for a row, too: the first one in the list counts.
        """
        dropped = np.array([reason is not None for reason in reasons], bool)
        self.stage[rows[dropped]] = number
        self.reasons.update(zip(rows[dropped].tolist(), reasons[dropped].tolist(), strict=True))

    def take_seconds(self) -> dict[str, float]:
        """The seconds, once: they go into the record of the part that is written first."""
        taken, self.seconds = self.seconds, {}
        return taken


def read_rows(folder: str, part: Range, plan: Plan) -> Rows:
    """The rows of a scored part, as they were written."""
    import pyarrow as pa

    files = RowFiles(join(folder, f"{part_name(*part)}.parquet"))
    table = pa.Table.from_batches(files.batches(), files.schema)
    columns: dict[str, NDArray[Any]] = {}
    for name in [*plan.columns, "status", "stage", "reason"]:
        if name in table.column_names:
            columns[name] = to_numpy(table.column(name))
    # floats have NaN, anything else is of objects: as when the rows were made
    rows = Rows({name: v if v.dtype.kind == "f" else v.astype(object) for name, v in columns.items()})
    rows.columns["index"] = rows.columns["index"].astype(np.int64)
    if files.embedding_dim:
        rows.embeddings = np.zeros((len(rows), files.embedding_dim), np.float32)
        rows.embedded = np.zeros(len(rows), bool)
        for at, block in files.embeddings():
            rows.embeddings[at], rows.embedded[at] = block, True
    return rows


def apply(rows: Rows, decisions: Decisions, part: Range, plan: Plan) -> None:
    """Bring rows of a scored part up to the decisions, and count their reasons."""
    stage = decisions.stage[part[0] : part[1]]
    for name, values in decisions.columns.items():
        rows.columns[name] = values[part[0] : part[1]]
    rows.reasons.clear()
    for row, number in enumerate(stage.tolist()):
        reason = decisions.reasons.get(part[0] + row, rows.columns["reason"][row])
        if number == KEPT:
            continue
        if number == FAILED:
            rows.reasons["failed", DECODE, kind_of_failure(reason)] += 1
            continue
        selector = plan.stages[number]
        assert isinstance(selector, (Selector, GlobalSelector))
        rows.decide(np.array([row]), "dropped", plan.labels[number], [reason], [selector.kind(reason)])


def write_kept(
    source: Source | None,
    rows: Rows,
    output: Output,
    part: Range,
    progress: Callable[[int], object] = lambda count: None,
    seconds: Mapping[str, float] | None = None,
) -> Part:
    """Write a part whose rows are decided, with the original bytes of who stays; nothing is decoded.

    Args:
        source: Where the bytes are; None where no tars are written.
        rows: Of every sample of the part, in order.
        output: Where to.
        part: Its range of samples.
        progress: Called with the number of samples written since the last call.
        seconds: What else took time, for the record.

    Raises:
        SourceError: The bytes of a sample that is kept can no longer be read.
    """
    account = Account(Counter(rows.reasons), dict(seconds or {}), rows.misfits)
    with output.open(part) as writer:
        began = time.perf_counter()
        for chunk in _with_bytes(source, rows, output.tars):
            write_rows(writer, chunk)
            account.add(chunk, time.perf_counter() - began)
            progress(len(chunk))
            began = time.perf_counter()
        return writer.commit(account.info())


def _with_bytes(source: Source | None, rows: Rows, tars: bool) -> Iterator[Rows]:
    """Pieces of rows, with the bytes of who is kept; several are read at once where the source is far."""

    def read(piece: Rows) -> Rows:
        kept = np.flatnonzero(piece.columns["status"] == "kept")
        if tars and len(kept):
            assert source is not None
            found = source.read(piece.columns["index"][kept].astype(np.int64), members=True)
            if found.errors:  # whatever is wrong now, the sample was decoded before
                raise found.explain_unread(min(found.errors))
            piece.keep(kept, found.members)
        return piece

    ahead: deque[Future[Rows]] = deque()
    read_ahead = 1 if source is None else max(1, source.read_ahead)
    with ThreadPoolExecutor(read_ahead, thread_name_prefix="curator-dali-read") as pool:
        try:
            for start in range(0, len(rows), _CHUNK_SAMPLES):
                ahead.append(pool.submit(read, rows[start : start + _CHUNK_SAMPLES]))
                if len(ahead) > read_ahead:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@dataclass(frozen=True)
class Workroom:
    """The workers that share a decision on an output, and the folder for their files.

    Attributes:
        mapper: Of the executor.
        folder: For files, which need not be there yet.
    """

    mapper: Mapper
    folder: str


@contextmanager
def workroom(executor: Executor, folder: str) -> Iterator[Workroom | None]:
    """Yield the workers of an executor and a scratch folder, or None if the executor is local.

    The scratch folder is removed before and afterwards, so a killed run leaves nothing behind.

    Args:
        executor: The executor.
        folder: The output.
    """
    place = join(folder, _WORK_FOLDER)
    _remove_folder(place)
    try:
        with executor.mapper() as mapper:
            yield None if mapper is None else Workroom(mapper, place)
    finally:
        _remove_folder(place)


class Candidates(RowSubset):
    """The rows of an output that a stage has to judge, as a `Scored`.

    Args:
        files: The output's rows.
        rows: (M,) int64, the numbers of the rows, ascending.
        kinds: Name -> type of the columns.
        workroom: The workers that share the work; None: this process alone.
    """

    def __init__(
        self,
        files: RowFiles,
        rows: NDArray[np.int64],
        kinds: Mapping[str, str],
        workroom: Workroom | None = None,
    ) -> None:
        super().__init__(files, rows, kinds)
        self._workroom = workroom

    @property
    def spread(self) -> Spread | None:
        """The workers that may share the work."""
        return None if self._workroom is None else _Sharing(self._workroom, self.files, self.rows)


class _Sharing:
    """The workers of a `Workroom`, and the embeddings of M candidates for them: what `Spread` promises."""

    def __init__(self, workroom: Workroom, files: RowFiles, rows: NDArray[np.int64]) -> None:
        self._workroom, self._files, self._rows = workroom, files, rows
        self.device, self.dim = workroom.mapper.device, files.embedding_dim

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of a function for each item, in their order."""
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
            _remove_folder(folder)

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


def _remove_folder(folder: str) -> None:
    for delay in _REMOVAL_DELAYS:
        time.sleep(delay)
        try:
            store.remove_folder(folder)
            return
        except OutputError as error:
            problem = error
    logger.warning("%s; the next run will", problem)

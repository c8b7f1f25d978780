"""The thread that writes: rows and bytes of a batch while the next ones are decoded and scored."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dali.curation.metadata import Misfits, add_misfits
from curator_dali.curation.rows import Rows, scores_of
from curator_dali.errors import OutputError
from curator_dali.io.store import join
from curator_dali.outputs.manifest import Manifest, Part, part_name
from curator_dali.outputs.parquet import RowSchema, read_types
from curator_dali.outputs.part import PartWriter
from curator_dali.sampling.order import Range
from curator_dali.threads import Background

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Account", "Output", "Writing", "write_rows"]

_WAITING = 4  # batches that wait for the writer, with the bytes of their kept samples


@dataclass(frozen=True)
class Output:
    """What is written, and where.

    Attributes:
        manifest: Of the folder.
        schema: Columns of the rows.
        tars: Whether kept samples are written to tars.
        max_samples: Samples in a tar.
        max_bytes: Bytes in a tar.

    Raises:
        OutputError: The folder holds finished parts with other columns, as an earlier version left them.
    """

    manifest: Manifest
    schema: RowSchema
    tars: bool = True
    max_samples: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        ranges = self.manifest.ranges()
        if not ranges or not self.manifest.missing():
            return
        folder = self.manifest.folder
        found = read_types(join(folder, f"{part_name(*ranges[0])}.parquet"))
        # types and not their texts: the items of a list have another name in a file than in the schema
        wanted = {field.name: field.type for field in self.schema.to_arrow()}
        if differing := sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name)):
            name = differing[0]
            raise OutputError(
                f"{folder} holds finished parts with other columns ({name!r} is {found.get(name, 'missing')} there and "
                f"{wanted.get(name, 'missing')} now), as another version of curator_dali writes them: go on with that "
                "version, choose another folder, or delete this one"
            )

    def open(self, part: Range) -> PartWriter:
        """Begin to write a part."""
        return PartWriter(
            self.manifest, *part, self.schema, tars=self.tars, max_samples=self.max_samples, max_bytes=self.max_bytes
        )


@dataclass
class Account:
    """What the rows of a part add up to."""

    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    misfits: Misfits = field(default_factory=dict)

    def add(self, rows: Rows, writing: float = 0.0) -> None:
        """Add what rows say, and the seconds that it took to write them."""
        self.reasons.update(rows.reasons)
        add_misfits(self.misfits, rows.misfits)
        for name, value in {**rows.seconds, "write": rows.seconds.get("write", 0.0) + writing}.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def info(self) -> dict[str, Any]:
        """As a part's record has it."""
        nested: dict[str, Any] = {"dropped": {}, "failed": {}}
        for (status, stage, kind), count in sorted(self.reasons.items()):
            nested[status].setdefault(stage, {})[kind] = count
        seconds = {name: round(value, 6) for name, value in self.seconds.items()}
        return nested | {"seconds": seconds} | ({"misfits": self.misfits} if self.misfits else {})


class Writing:
    """Writes parts in a thread of its own, in the order that their rows come in.

    As a context manager it waits at the end until everything is written. If the block raises, the part under way is
    dropped and the finished ones stay.

    Args:
        output: Where to.
        finished: Called in the thread with every part once it is recorded.
    """

    def __init__(self, output: Output, finished: Callable[[Part], object]) -> None:
        self._output, self._finished = output, finished
        self._rows: queue.SimpleQueue[tuple[Range, Rows] | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # holds one for each batch that may come to wait
        for _ in range(_WAITING):
            self._room.put(None)
        self._error: BaseException | None = None
        self._stopping = False
        self._thread = Background(self._run, name="curator-dali-write")

    def put(self, part: Range, rows: Rows) -> None:
        """Hand over rows of a part; waits while too many wait already.

        Raises:
            OutputError: An earlier one could not be written.
        """
        if self._error is None:
            self._room.get()
        if self._error is not None:
            raise self._error
        self._rows.put((part, rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = kind is not None
        try:
            self._rows.put(None)
            self._thread.join()
        finally:
            self._stopping = True  # where Ctrl-C ended the wait
            self._rows.put(None)
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        writer: PartWriter | None = None
        account = Account()
        try:
            while (item := self._rows.get()) is not None and not self._stopping:
                self._room.put(None)
                part, rows = item
                began = time.perf_counter()
                if writer is None:
                    writer, account = self._output.open(part), Account()
                write_rows(writer, rows)
                account.add(rows, time.perf_counter() - began)
                if rows.columns["index"][-1] == part[1] - 1:
                    committed = writer.commit(account.info())
                    writer = None
                    self._finished(committed)
        except BaseException as error:  # raised where the next rows are put
            self._error = error
            self._room.put(None)  # for who waits to put them
        finally:
            if writer is not None:
                writer.discard()


def write_rows(writer: PartWriter, rows: Rows) -> None:
    """Write rows, and the samples of those that are kept."""
    kept = np.flatnonzero(rows.columns["status"] == "kept").tolist()
    curation: list[dict[str, Any] | None] | None = None
    if rows.members is not None:
        curation = [None] * len(rows)
        for row, scores in zip(kept, scores_of(rows.columns, kept), strict=True):
            curation[row] = scores
    writer.write(
        rows.columns, embeddings=rows.embeddings, embedded=rows.embedded, members=rows.members, curation=curation
    )

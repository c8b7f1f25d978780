"""`Rows`: a row a sample, filled in by the stages; the thread that writes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.arrays import missing
from curator_dali.batch import ImageBatch
from curator_dali.curation.config import Settings
from curator_dali.curation.fields import Misfits, add_misfits
from curator_dali.curation.write import STAGE, WrittenSample
from curator_dali.decoding import Codec, Decoded, upright_sizes
from curator_dali.errors import OutputError, kind_of_failure
from curator_dali.io import join, printable
from curator_dali.outputs import (
    CURATION,
    DECIDED,
    DECODE,
    METADATA,
    Manifest,
    Part,
    PartWriter,
    RowSchema,
    part_name,
    read_types,
)
from curator_dali.sampling import Range
from curator_dali.sources import SIDECARS, image_extension
from curator_dali.threads import Background, HandOver

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_WAITING = 4  # batches that wait for the writer, with the bytes of their kept samples


@dataclass
class Rows:
    """N samples of a source, each with what is known of it.

    Attributes:
        columns: Name -> (N,) values: floats with NaN, anything else as objects with None where nothing is known.
        embeddings: None or (N, D) on the host; only the rows of `embedded` count.
        embedded: (N,) which rows have an embedding.
        members: None or a sample's members' original bytes, None for a sample that is not kept.
        encoding: None or, of each kept sample, its row and what is written instead of the original bytes.
        images: Row -> extension of the image that is written, where `encoding` gave another one.
        seconds: Stage -> seconds that it took.
        misfits: Values of the metadata that do not fit their columns.
        fields: A `pyarrow.RecordBatch` of N rows, or None: the columns of `RowSchema.fields`.
    """

    columns: dict[str, NDArray[Any]]
    embeddings: NDArray[Any] | None = None
    embedded: NDArray[np.bool_] | None = None
    members: list[Mapping[str, Any] | None] | None = None
    encoding: list[tuple[int, Future[WrittenSample]]] | None = None
    images: dict[int, str] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    misfits: Misfits = field(default_factory=dict)
    fields: Any = None

    @classmethod
    def from_step(cls, decoded: Decoded, kinds: Mapping[str, str]) -> Rows:
        """Make rows of all samples of a decoded step, of which only the failures are known so far.

        Args:
            decoded: The step.
            kinds: The columns to keep, with their types.
        """
        encoded = decoded.encoded
        n = len(encoded)
        columns = {name: missing(n, kind) for name, kind in {**kinds, **DECIDED}.items()}
        columns["index"] = encoded.indices
        columns["image_id"][:] = [item.image_id for item in encoded.objects]
        columns["image_path"][:] = [item.image_path for item in encoded.objects]
        known = np.flatnonzero(encoded.headers["codec"] != Codec.UNKNOWN)
        sizes = upright_sizes(encoded.headers[known])
        columns["height"][known], columns["width"][known] = sizes[:, 0], sizes[:, 1]
        rows = cls(columns)
        for row, reason in decoded.errors.items():
            rows.decide([row], "failed", DECODE, [reason], [kind_of_failure(reason)])
        return rows

    def __len__(self) -> int:
        return len(self.columns["index"])

    def __getitem__(self, rows: slice) -> Rows:
        """Some of the rows, without their bytes, seconds and misfits."""
        return Rows(
            {name: values[rows] for name, values in self.columns.items()},
            None if self.embeddings is None else self.embeddings[rows],
            None if self.embedded is None else self.embedded[rows],
            fields=None if self.fields is None else self.fields.slice(*_begin_and_length(rows, len(self))),
        )

    def record(
        self, at: NDArray[np.int64], batch: ImageBatch, dim: int, chosen: NDArray[np.bool_] | None = None
    ) -> None:
        """Take over what a batch knows of its images.

        Args:
            at: (M,) the rows that the batch's images have here.
            batch: M images.
            dim: Width of the embeddings to keep; 0 for none.
            chosen: (M,) whether to do it for an image; None for all.
        """
        picked = np.arange(len(at)) if chosen is None else np.flatnonzero(chosen)
        at = at[picked]
        for name, values in self.columns.items():
            if name in batch.columns and name not in ("index", "image_id", "image_path"):
                values[at] = batch.columns[name][picked]
        if dim and batch.embeddings is not None:
            if self.embeddings is None:
                self.embeddings, self.embedded = np.zeros((len(self), dim), np.float32), np.zeros(len(self), bool)
            assert self.embedded is not None
            self.embeddings[at] = arrays.to_host(arrays.take(batch.embeddings, picked))
            self.embedded[at] = True

    def add_time(self, stage: str, seconds: float) -> None:
        """Count what a stage took."""
        self.seconds[stage] += seconds

    def decide(self, at: Any, status: str, stage: str, reasons: Sequence[str], kinds: Sequence[str]) -> None:
        """Say what became of rows that are dropped or failed: by which stage, why, and the kinds of these reasons."""
        for name, values in zip(DECIDED, (status, stage, reasons, kinds), strict=True):
            self.columns[name][at] = values

    def keep(self, at: NDArray[np.int64], members: Sequence[Mapping[str, memoryview]] | None) -> None:
        """Say that rows are kept.

        Args:
            at: (M,) rows.
            members: Their M samples' bytes, if they are to be written.
        """
        self.columns["status"][at] = "kept"
        if members is not None:
            self.members = [None] * len(self)
            for row, found in zip(at.tolist(), members, strict=True):
                self.members[row] = found

    def take_encoded(self) -> None:
        """Wait for the images that are encoded, and let the rows say what is written; some turn out to be dropped."""
        encoding, self.encoding = self.encoding or [], None
        for row, future in encoding:
            sample = future.result()
            assert self.members is not None
            if sample.problem is not None:
                self.decide([row], "dropped", STAGE, [sample.problem], [sample.problem.kind])
                self.members[row] = None
                continue
            self.members[row], self.images[row] = sample.members, sample.image
            for name, value in sample.columns.items():
                column = self.columns.get(name)  # there is none of a name that a field of the metadata has
                if column is not None and column[row] is None:  # else a stage or an earlier run knows it
                    column[row] = value


def _begin_and_length(rows: slice, count: int) -> tuple[int, int]:
    begin, end, _ = rows.indices(count)
    return begin, max(0, end - begin)


@dataclass(frozen=True)
class Output:
    """The output of a run; see `open_output`.

    Attributes:
        manifest: Of the folder.
        schema: Columns of the rows.
        settings: Of the run, of which `tars`, `shard_samples` and `shard_bytes` count here.
    """

    manifest: Manifest
    schema: RowSchema
    settings: Settings

    def open(self, part: Range) -> PartWriter:
        """Begin to write a part."""
        tars, samples, nbytes = self.settings.tars, self.settings.shard_samples, self.settings.shard_bytes
        layout = "webdataset" if self.settings.write is None else self.settings.write.layout
        return PartWriter(
            self.manifest,
            *part,
            self.schema,
            tars=tars,
            shard_samples=samples,
            shard_bytes=nbytes,
            layout=layout,
        )


def open_output(manifest: Manifest, schema: RowSchema, settings: Settings) -> Output:
    """Begin an output, or go on with one; what an earlier version began goes on without the columns that are new.

    Raises:
        OutputError: The folder holds finished parts with other columns.
    """
    ranges = manifest.ranges()
    if not ranges or not manifest.missing():
        return Output(manifest, schema, settings)
    found = read_types(join(manifest.folder, f"{part_name(*ranges[0])}.parquet"))
    fields = replace(schema.fields, rest=schema.fields.rest and METADATA in found)
    schema = replace(schema, reason_kind="reason_kind" in found, fields=fields)
    # types and not their texts: the items of a list have another name in a file than in the schema
    wanted = {field.name: field.type for field in schema.to_arrow()}
    if differing := sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name)):
        name = differing[0]
        then, now = found.get(name, "missing"), wanted.get(name, "missing")
        raise OutputError(
            f"{manifest.folder} holds finished parts with other columns ({name!r} is {then} there and {now} now), as "
            "another version of curator_dali writes them: go on with that version, choose another folder, or delete "
            "this one"
        )
    return Output(manifest, schema, settings)


@dataclass
class Account:
    """Sums over the rows of a part.

    Attributes:
        reasons: How often (status, stage, kind of reason) occurs.
        seconds: Stage -> seconds that it took.
        misfits: Values of the metadata that do not fit their columns.
    """

    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    misfits: Misfits = field(default_factory=dict)

    def add(self, rows: Rows, writing: float = 0.0) -> None:
        """Add what rows say, and the seconds that it took to write them."""
        lost = np.flatnonzero(rows.columns["status"] != "kept")
        status, stage, kind = (rows.columns[name][lost].tolist() for name in ("status", "stage", "reason_kind"))
        self.reasons.update(zip(status, stage, [printable(str(text)) for text in kind], strict=True))  # as it is stored
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
        self._rows: HandOver[tuple[Range, Rows]] = HandOver(_MOST_WAITING)
        self._thread = Background(self._run, name="curator-dali-write")

    def put(self, part: Range, rows: Rows) -> None:
        """Hand over rows of a part; waits while too many wait already.

        Raises:
            OutputError: An earlier one could not be written.
        """
        self._rows.reserve()
        if self._rows.error is not None:
            raise self._rows.error
        self._rows.put((part, rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._rows.finish()
            else:
                self._rows.cancel()
            self._thread.join()
        finally:  # Ctrl-C may have ended the wait
            self._rows.cancel()
            self._thread.join()
        if kind is None and self._rows.error is not None:
            raise self._rows.error

    def _run(self) -> None:
        writer: PartWriter | None = None
        account = Account()
        try:
            while (item := self._rows.take()) is not None and not self._rows.cancelled:
                self._rows.free()
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
            self._rows.cancel(error)
        finally:
            if writer is not None:
                writer.discard()


def write_rows(writer: PartWriter, rows: Rows) -> None:
    """Write rows, and the samples of those that are kept."""
    rows.take_encoded()
    kept = np.flatnonzero(rows.columns["status"] == "kept").tolist()
    curation: list[dict[str, Any] | None] | None = None
    images = _split_members(rows, kept) if writer.layout == "huggingface" else None
    if rows.members is not None:
        curation = [None] * len(rows)
        for row, scores in zip(kept, _scores_of(rows.columns, kept), strict=True):
            curation[row] = scores
    writer.write(
        rows.columns,
        embeddings=rows.embeddings,
        embedded=rows.embedded,
        members=rows.members,
        curation=curation,
        fields=rows.fields,
        images=images,
    )


def _split_members(rows: Rows, kept: Sequence[int]) -> list[str | None]:
    """Leave only those members of kept rows that no column holds; returns the extension of each row's image."""
    images: list[str | None] = [None] * len(rows)
    for row in kept:
        assert rows.members is not None
        found = rows.members[row] or {}
        images[row] = image = rows.images.get(row) or image_extension(found, str(rows.columns["image_path"][row]))
        held = (*SIDECARS, CURATION)
        rows.members[row] = {name: data for name, data in found.items() if name == image or name.lower() not in held}
    return images


def _scores_of(columns: Mapping[str, Any], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Make `curation.json` of some rows: where the image came from, its size, and every score that it has.

    What is not known (None, NaN) is left out. Hugging Face's `datasets` takes a field that begins with null for null.
    """
    names = [name for name in columns if name not in ("image_id", "index", *DECIDED)]
    picked = {name: np.asarray(columns[name])[list(rows)].tolist() for name in names}
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not None and value == value}
        for values in zip(*picked.values(), strict=True)
    ]

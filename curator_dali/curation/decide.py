"""Decisions on all samples, made once every one is scored, for a run or anew; and the parts that come of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import missing, objects
from curator_dali.batch import ImageBatch, ImageObject
from curator_dali.curation.config import Settings
from curator_dali.curation.fields import add_misfits, make_fields, to_column
from curator_dali.curation.rows import Account, Output, Rows, write_rows
from curator_dali.curation.worker import DECODE_CHECK_VIEW, Finished, Progress, encode_rows, make_encoder
from curator_dali.curation.write import Encoder
from curator_dali.errors import StageError, kind_of_failure
from curator_dali.io import join
from curator_dali.loader import ImageLoader
from curator_dali.outputs import (
    DECIDED,
    DECODE,
    EMBEDDING,
    FieldColumns,
    Manifest,
    RowFiles,
    RowSubset,
    part_name,
    to_numpy,
)
from curator_dali.report import find_kinds
from curator_dali.sampling import Range
from curator_dali.sources import Source, Subset, kind_of_type
from curator_dali.stages import GlobalSelector, Plan, Selector, Workers
from curator_dali.threads import ignore, run_ahead

logger = logging.getLogger(__name__)

WORK_FOLDER = "_work"
"""The folder in an output for files of the workers that share a decision."""

_KEPT, _FAILED = np.int16(32767), np.int16(-1)  # numbers in `Decisions.stage`, beside those of stages
_CHUNK_SAMPLES = 256  # whose bytes are in memory at once, times the source's read-ahead
_BLOCK_ROWS = 8192  # that a selector judges at once


@dataclass
class Decisions:
    """Decisions on N samples.

    Attributes:
        stage: (N,) number of the stage that drops a sample, -1 where it failed, 32767 where it is kept.
        anew: Whether they replace the decisions that the samples' rows tell, or add to them.
        reasons: Sample -> reason, of those that are dropped here.
        columns: Name -> (N,) values that the `GlobalSelector`s added.
        seconds: Stage -> what deciding took.
        failures: Sample -> reason, of those that `check_decoding` found damaged.
        sizes: Sample -> height and width, of the others that it decoded: the metadata may have told other ones.
    """

    stage: NDArray[np.int16]
    anew: bool
    reasons: dict[int, str] = field(default_factory=dict)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def drop(self, number: int, rows: NDArray[np.int64], reasons: NDArray[np.object_]) -> NDArray[np.int64]:
        """Write down a stage's reasons for (M,) rows, each a text or None; returns the rows with None.

        A later stage may have had a reason for a row, too: the first one in the list counts.
        """
        dropped = np.array([reason is not None for reason in reasons], bool)
        self.stage[rows[dropped]] = number
        self.reasons.update(zip(rows[dropped].tolist(), reasons[dropped].tolist(), strict=True))
        left: NDArray[np.int64] = rows[~dropped]
        return left

    def take_seconds(self) -> dict[str, float]:
        """The seconds, once: they go into the record of the part that is written first."""
        taken, self.seconds = self.seconds, {}
        return taken


def decide(files: RowFiles, plan: Plan, workers: Workers | None = None, *, anew: bool) -> Decisions:
    """Let stages decide on the rows of an output.

    Args:
        files: A row for every sample, in the source's order.
        plan: The stages.
        workers: Other processes that share the work.
        anew: True: earlier drops do not count, and every stage decides, from stored columns. False: the rows were
            scored by these stages, and what is still to decide is for the `GlobalSelector`s.

    Raises:
        StageError: A stage does not give a reason or None for every row.
    """
    decisions = Decisions(_find_stages(files, plan, anew), anew)
    kinds = {name: kind_of_type(kind) for name, kind in files.fields.types.items()} | dict(plan.columns)
    for number, (stage, label) in enumerate(zip(plan.stages, plan.labels, strict=True)):
        rows = np.flatnonzero(decisions.stage > number)
        if anew and isinstance(stage, GlobalSelector):
            rows = decisions.drop(number, rows, _find_unscored(files, stage, rows))
        began = time.perf_counter()
        if isinstance(stage, GlobalSelector):
            reasons, columns = stage.decide(RowSubset(files, rows, kinds, workers))
            if len(reasons) != len(rows) or set(columns) != set(stage.decides):
                raise StageError(
                    f"{label} gave {len(reasons)} reasons and the columns {sorted(columns)} for {len(rows)} images; it "
                    f"declares {sorted(stage.decides)}"
                )
            for name, values in columns.items():
                decisions.columns[name] = missing(len(decisions.stage), stage.decides[name])
                decisions.columns[name][rows] = values
        elif anew and isinstance(stage, Selector):
            reasons = _judge(files, stage, rows)
        else:
            continue
        decisions.seconds[label] = time.perf_counter() - began
        decisions.drop(number, rows, reasons)
    return decisions


def _find_stages(files: RowFiles, plan: Plan, anew: bool) -> NDArray[np.int16]:
    """`Decisions.stage` before anything is decided."""
    found = files.columns(["status", "stage"])
    stage = np.full(len(found["status"]), _KEPT, np.int16)
    stage[found["status"] == "failed"] = _FAILED
    if not anew:
        numbers = {label: number for number, label in enumerate(plan.labels)}
        dropped = found["status"] == "dropped"
        stage[dropped] = [numbers[label] for label in found["stage"][dropped].tolist()]
    return stage


def _judge(files: RowFiles, selector: Selector, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """Reasons of a selector, which is given batches without pixels."""
    names = sorted({*selector.needs, "image_id", "image_path", "index"} - {"embeddings"})
    columns = {name: values[rows] for name, values in files.columns(names).items()}
    for name in columns.keys() & files.fields.types.keys():  # as a stage of a run reads the field
        columns[name], _ = to_column(columns[name].astype(object), kind_of_type(files.fields.types[name]))
    reasons = missing(len(rows), "string")
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = {name: values[start : start + _BLOCK_ROWS] for name, values in columns.items()}
        pairs = zip(block["image_path"].tolist(), block["image_id"].tolist(), strict=True)
        batch = ImageBatch(data=[ImageObject(path, key) for path, key in pairs], columns=block)
        reasons[start : start + _BLOCK_ROWS] = selector.judge(batch)
    return reasons


def _find_unscored(files: RowFiles, selector: GlobalSelector, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """Reasons for rows that the first run dropped before it knew of them what the stage needs."""
    reasons = missing(len(rows), "string")
    for name in selector.needs:
        if name in selector.optional:
            continue
        known = _find_known(files, EMBEDDING if name == "embeddings" else name)[rows]
        if f"{name}_blank" in files.schema.names:  # a blank image was looked at and has no hash
            known |= _find_known(files, f"{name}_blank")[rows]
        reasons[~known & (reasons == None)] = f"{name} is missing"  # noqa: E711 - element by element
    if count := sum(reason is not None for reason in reasons):
        logger.warning(
            "%d images have nothing to be compared by: the first run dropped them before; they stay dropped. To judge "
            "them too, curate again", count,
        )  # fmt: skip
    return reasons


def _find_known(files: RowFiles, name: str) -> NDArray[np.bool_]:
    """(N,) whether a column has a value."""
    masks = [batch.column(0).is_valid().to_numpy(zero_copy_only=False) for batch in files.batches([name])]
    return np.concatenate([np.empty(0, bool), *masks])


def find_undecoded(files: RowFiles, labels: Collection[str], decisions: Decisions) -> NDArray[np.int64]:
    """Find the samples that are kept now, and that the output's run dropped before they were decoded.

    Args:
        files: The output's rows.
        labels: The stages that drop images before these are decoded.
        decisions: On all its samples.

    Returns:
        (M,) sample indices.
    """
    if not labels:
        return np.zeros(0, np.int64)
    dropped = np.isin(files.columns(["stage"])["stage"].astype(str), sorted(labels))
    return np.flatnonzero(dropped & (decisions.stage == _KEPT))


def check_decoding(
    source: Source, samples: NDArray[np.int64], decisions: Decisions, settings: Settings, device: str
) -> None:
    """Decode samples, and let those fail that do not decode.

    Args:
        source: The data set.
        samples: (M,) indices.
        decisions: Gets the failures, and the sizes of the others.
        settings: Of the run.
        device: Where images are decoded.

    Raises:
        SourceError: A sample cannot be read now.
    """
    logger.info("decoding %d images that the first run dropped by their headers", len(samples))
    chosen = Subset(source, samples)
    loader = ImageLoader(
        chosen,
        batch_size=settings.batch_size,
        device=device,
        transforms=None,
        views=(DECODE_CHECK_VIEW,),
        num_threads=settings.num_threads,
        max_pixels=settings.max_pixels,
    )
    loader.max_errors = 0
    with loader, closing(loader.over([(0, len(chosen))], refuse_unread=True)) as steps:
        for decoded, _ in steps:
            for row, reason in decoded.errors.items():
                decisions.failures[int(samples[decoded.encoded.indices[row]])] = reason
            sizes = map(tuple, decoded.sizes.tolist())
            decisions.sizes.update(zip(samples[decoded.indices].tolist(), sizes, strict=True))


def write_decided(
    source: Source | None,
    scored: Manifest,
    plan: Plan,
    decisions: Decisions,
    output: Output,
    parts: Sequence[Range],
    finished: Finished = ignore,
    progress: Progress = ignore,
    device: str = "cpu",
) -> None:
    """Write parts of a scored output as it was decided, with the bytes of what is kept.

    Images are decoded only where the settings say how to encode them.

    Args:
        source: Where the bytes are; None where no tars are written.
        scored: The scored output, every part of it.
        plan: The stages that decided.
        decisions: On all its samples.
        output: Where to.
        parts: Which of the scored parts to write.
        finished: See `Finished`.
        progress: See `Progress`.
        device: Where images are decoded.

    Raises:
        SourceError: The bytes of a sample that is kept can no longer be read.
    """
    scoring = {(part.start, part.stop): part.info for part in scored.parts()}
    with _open_reader(source, output.settings, device) as read:
        for part in parts:
            rows = _read_rows(scored.folder, part, plan, scoring[part])
            _apply_decisions(rows, decisions, part, plan)
            for name, kind in output.schema.columns.items():  # of what is written, which is not known yet
                rows.columns.setdefault(name, missing(len(rows), kind))
            if not output.schema.embedding_dim:
                rows.embeddings = rows.embedded = None
            account = Account()
            if not decisions.anew:  # the part's record sums up both phases
                account.seconds.update(scoring[part]["seconds"])
                add_misfits(account.misfits, scoring[part].get("misfits", {}))
            for label, spent in decisions.take_seconds().items():
                account.seconds[label] = account.seconds.get(label, 0.0) + spent
            with output.open(part) as writer:
                began = time.perf_counter()
                for piece in read(rows, _Fields(scored.folder, part, output.schema.fields)):
                    write_rows(writer, piece)
                    account.add(piece, time.perf_counter() - began)
                    progress(len(piece))
                    began = time.perf_counter()
                finished(writer.commit(account.info()))


def _read_rows(folder: str, part: Range, plan: Plan, info: Mapping[str, Any]) -> Rows:
    """Read the rows of a scored part as they were written; `info` is of its record."""
    import pyarrow as pa

    files = RowFiles(join(folder, f"{part_name(*part)}.parquet"))
    names = [name for name in [*plan.columns, *DECIDED] if name in files.schema.names]
    table = pa.Table.from_batches(files.batches(names), pa.schema(map(files.schema.field, names)))
    columns: dict[str, NDArray[Any]] = {name: to_numpy(table.column(name)) for name in names}
    # floats have NaN, anything else is of objects: as when the rows were made
    rows = Rows({name: v if v.dtype.kind == "f" else v.astype(object) for name, v in columns.items()})
    rows.columns["index"] = rows.columns["index"].astype(np.int64)
    if "reason_kind" not in columns:  # of an earlier version, whose record counts the kinds of each stage
        rows.columns["reason_kind"] = objects(find_kinds(table, info["dropped"]).to_pylist())
    if files.embedding_dim:
        rows.embeddings = np.zeros((len(rows), files.embedding_dim), np.float32)
        rows.embedded = np.zeros(len(rows), bool)
        for at, block in files.embeddings():
            rows.embeddings[at], rows.embedded[at] = block, True
    return rows


class _Fields:
    """The fields of a scored part's rows, which are read as they are asked for, front to back.

    Where the scored output keeps no fields, those of the samples that are kept come from the source.

    Args:
        folder: The scored output.
        part: The part.
        columns: The columns; none give None for every piece.
    """

    def __init__(self, folder: str, part: Range, columns: FieldColumns) -> None:
        self._held: Any = None
        self._batches: Iterator[Any] = iter(())
        self._columns, names = columns, columns.names
        if names:
            import pyarrow as pa

            files = RowFiles(join(folder, f"{part_name(*part)}.parquet"))
            if files.fields:
                self._held = pa.schema(map(files.schema.field, names)).empty_table()
                self._batches = files.batches(names, rows=_CHUNK_SAMPLES)

    def cut(self, rows: Rows, start: int, stop: int) -> Rows:
        """Cut the next piece out of the part's rows, [start, stop), with its fields."""
        piece = rows[start:stop]
        if self._held is not None:
            import pyarrow as pa

            while len(self._held) < len(piece):
                self._held = pa.concat_tables([self._held, pa.Table.from_batches([next(self._batches)])])
            piece.fields = self._held.slice(0, len(piece)).combine_chunks().to_batches()[0]
            self._held = self._held.slice(len(piece))
        return piece

    def fill(self, piece: Rows, at: NDArray[np.int64], samples: Sequence[ImageObject]) -> None:
        """Take the fields of rows from the source's samples, where the scored output keeps none; others have null.

        Args:
            piece: Rows that `cut` made.
            at: (M,) rows of it.
            samples: Their M samples.
        """
        if self._held is None and self._columns:
            import pyarrow as pa

            made = make_fields([item.metadata for item in samples], {}, self._columns)
            places: list[int | None] = [None] * len(piece)
            for place, row in enumerate(at.tolist()):
                places[row] = place
            piece.fields = made.take(pa.array(places, pa.int64()))


def _apply_decisions(rows: Rows, decisions: Decisions, part: Range, plan: Plan) -> None:
    """Bring rows of a scored part up to the decisions."""
    for name, values in decisions.columns.items():
        rows.columns[name] = values[part[0] : part[1]]
    if decisions.anew:
        judged = np.flatnonzero(rows.columns["status"] != "failed")
        for name, value in zip(DECIDED, ("kept", None, None, None), strict=True):
            rows.columns[name][judged] = value
    for sample, size in decisions.sizes.items():
        if part[0] <= sample < part[1]:
            rows.columns["height"][sample - part[0]], rows.columns["width"][sample - part[0]] = size
    for sample, reason in decisions.failures.items():
        if part[0] <= sample < part[1]:
            rows.decide([sample - part[0]], "failed", DECODE, [reason], [kind_of_failure(reason)])
    dropped = np.array([sample in decisions.reasons for sample in range(*part)], bool)
    numbers = decisions.stage[part[0] : part[1]]
    for number in np.unique(numbers[dropped]).tolist():
        stage, at = plan.stages[number], np.flatnonzero(dropped & (numbers == number))
        assert isinstance(stage, (Selector, GlobalSelector))
        reasons = [decisions.reasons[sample] for sample in (at + part[0]).tolist()]
        rows.decide(at, "dropped", plan.labels[number], reasons, [stage.kind(reason) for reason in reasons])


@contextmanager
def _open_reader(
    source: Source | None, settings: Settings, device: str
) -> Iterator[Callable[[Rows, _Fields], Iterator[Rows]]]:
    """Have a function that yields pieces of a part's rows, with fields and the bytes to be written of what is kept."""
    encoding = settings.encoding
    if encoding is None or source is None:
        yield partial(_with_bytes, source, settings.tars)
        return
    loader = ImageLoader(
        source,
        batch_size=settings.batch_size,
        device=device,
        transforms=None,
        views=(encoding.view,),
        num_threads=settings.num_threads,
        keep_encoded=True,
        max_pixels=settings.max_pixels,
    )
    loader.max_errors = 0  # the rows have them
    with loader, closing(make_encoder(settings, device)) as encoder:
        yield lambda rows, fields: _delay(_with_encoded(loader, encoder, settings, rows, fields))


def _with_encoded(
    loader: ImageLoader, encoder: Encoder, settings: Settings, rows: Rows, fields: _Fields
) -> Iterator[Rows]:
    """Pieces of rows, whose kept images are decoded once more and are being encoded."""
    assert settings.encoding is not None
    kept = np.flatnonzero(rows.columns["status"] == "kept")
    chosen = Subset(loader.source, rows.columns["index"][kept])
    begin = 0
    # a sample that cannot be read now must not count as a bad image for good
    with closing(loader.over([(0, len(kept))] if len(kept) else [], chosen, refuse_unread=True)) as steps:
        for decoded, batch in steps:
            at = kept[decoded.encoded.indices] - begin  # (n,) rows of this piece
            piece = fields.cut(rows, begin, begin + int(at[-1]) + 1)
            for row, reason in decoded.errors.items():
                piece.decide([at[row]], "failed", DECODE, [reason], [kind_of_failure(reason)])
            if batch is not None:
                pixels, good = batch.views[settings.encoding.view], decoded.rows
                piece.keep(at[good], batch.encoded)
                encode_rows(encoder, piece, at[good], decoded, good, pixels)
                fields.fill(piece, at[good], batch.data)
            begin += len(piece)
            yield piece
    if begin < len(rows):
        yield fields.cut(rows, begin, len(rows))


def _delay(pieces: Iterator[Rows]) -> Iterator[Rows]:
    """Yield each piece once the next one is under way, so that images are decoded while others are written."""
    before = None
    for piece in pieces:
        if before is not None:
            yield before
        before = piece
    if before is not None:
        yield before


def _with_bytes(source: Source | None, tars: bool, rows: Rows, fields: _Fields) -> Iterator[Rows]:
    """Pieces of rows, with their fields and the bytes of what is kept; several are read at once of a far source."""

    def read(piece: Rows) -> Rows:
        kept = np.flatnonzero(piece.columns["status"] == "kept")
        if tars and len(kept):
            assert source is not None
            found = source.read(piece.columns["index"][kept].astype(np.int64), members=True)
            if found.errors:  # whatever is wrong now, the sample was decoded before
                raise found.explain_unread(min(found.errors))
            piece.keep(kept, found.members)
            fields.fill(piece, kept, found.objects)
        return piece

    workers = 1 if source is None else max(1, source.read_ahead)
    starts = range(0, len(rows), _CHUNK_SAMPLES)
    pieces = (fields.cut(rows, start, min(start + _CHUNK_SAMPLES, len(rows))) for start in starts)
    with ThreadPoolExecutor(workers, thread_name_prefix="curator-dali-read") as pool:
        yield from run_ahead(pool, read, pieces, workers - 1)

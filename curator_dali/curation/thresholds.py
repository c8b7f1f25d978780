"""`rethreshold`: other filters and other deduplication on an output that is there; nothing is decoded or embedded."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Limits, checked
from curator_dali.batch import ImageBatch, ImageObject
from curator_dali.curation.config import Settings, check_out, make_stage
from curator_dali.curation.decide import (
    FAILED,
    KEPT,
    Candidates,
    Decisions,
    Workroom,
    apply,
    decide_with,
    read_rows,
    workroom,
    write_kept,
)
from curator_dali.curation.rows import Output
from curator_dali.curation.run import executor_of, label_facts
from curator_dali.curation.worker import Executor
from curator_dali.errors import OutputError, StageError
from curator_dali.index import embedder_lineage
from curator_dali.outputs import EMBEDDING, Manifest, RowFiles, RowSchema, labels_of
from curator_dali.report import Report, count_parts, leave_report, reopen_source
from curator_dali.stages import LOADED, STAGES, Deduplicate, GlobalSelector, Plan, Selector, Stage, check_type
from curator_dali.threads import ignore

__all__ = ["rethreshold", "stages_of"]

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 8192  # that a selector judges at once
_FIXED_COLUMNS = (*LOADED, "status", "stage", "reason", "tar", "key", EMBEDDING)
_DECIDED_COLUMNS = tuple(Deduplicate().decides)  # what an earlier decision left: of no use to the next


@checked
def rethreshold(
    out: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    stages: Annotated[Sequence[Stage], Limits("a list of stages, as [Filter('width', min=256)]")],
    executor: Literal["local", "ray"] | Executor = "local",
    source: Any = None,
    tars: bool = True,
    shard_samples: Count | None = None,
    shard_bytes: Count | None = None,
    embeddings: bool | Literal["float32", "float16"] | None = None,
    html: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Decide anew, by other stages, who stays of an output, from the scores, hashes and embeddings that it stores.

    `stages` are all that decide: those of `out` no longer count (`stages_of(out)` gives them, to change one). A stage
    that made scores may be among them as it was in that run: its columns are there. Images that could not be decoded
    stay failed. Images that the first run dropped before they were scored have no scores to pass by: they stay dropped.

    `new` becomes an output like any other, with the original bytes of who stays. The same call goes on where it was
    interrupted or killed.

    Args:
        out: A finished output.
        new: The folder to write to: another one, neither in `out` or the data set's folder nor around these.
        stages: In their order: `Filter`s, `Deduplicate`, selectors of your own.
        executor: Who computes what is alike: "local": this process; "ray", or a `curator_dali.ray.RayExecutor`: a
            cluster. Reading, and writing the new output, is for this process.
        source: The data set, where `out` does not say how to open it, or it has moved. It must be the same.
        tars: Whether to write tars.
        shard_samples: Samples in a tar; None for one tar a part.
        shard_bytes: Bytes in a tar.
        embeddings: Whether to store the embeddings again, where there are any; None as `out` has them.
        html: Whether to leave `report.html`, with pictures where the data set can be opened.
        progress: Called with the number of samples done since the last call.

    Raises:
        ValueError: An argument is out of its range.
        StageError: A stage needs pixels, or a column that is not stored; it is named. Before anything is written.
        OutputError: `out` is not finished, or of another version; `new` holds another output, or cannot be written to.
        SourceError: The data set cannot be opened again, or is another one.
    """
    began = time.perf_counter()
    sharing = executor_of(executor)
    limits = Settings(shard_samples=shard_samples, shard_bytes=shard_bytes, embeddings=embeddings or False).limits
    out, new = os.fspath(out), os.fspath(new)
    old = Manifest.load(out)
    if os.path.abspath(out) == os.path.abspath(new):
        raise ValueError(f"{out} is to be read and cannot be written to at once: give another folder")
    if lacking := old.missing():
        raise OutputError(
            f"{out} is not finished, it lacks samples {lacking[0][0]} to {lacking[0][1] - 1}: run that curation again"
        )
    files = RowFiles(out) if old.samples else None
    plan = _plan(stages, files, old.run)
    kept_dim, dtype = _embeddings(files, embeddings)
    opened = reopen_source(old, source) if tars else None
    try:
        check_out(new, opened, origin=old.run.get("origin"), folders=[out])
        settings = {
            "stages": [stage.settings for stage in plan.stages],
            "scored": old.run["settings"].get("scored") or old.run["settings"].get("stages", []),
            "decided": old.run["settings"].get("stages", []),
            "tars": tars,
            **limits,
            "embeddings": dtype if kept_dim else None,
        }
        own = {label: s.lineage for label, s in zip(plan.labels, plan.stages, strict=True) if s.lineage}
        lineage = {**old.run["lineage"], **own}
        with Manifest.open(
            new,
            source=old.run["source"],
            samples=old.samples,
            settings=settings,
            lineage=lineage,
            origin=opened.origin if opened is not None else old.run.get("origin"),
            facts={name: old.run[name] for name in ("class_names", "class_lists") if name in old.run}
            or (label_facts(opened) if opened is not None else None),
        ) as manifest:
            there = set(manifest.ranges())
            earlier = sum(stop - start for start, stop in there)
            parts = [part for part in old.ranges() if part not in there]
            columns = {name: kind for name, kind in plan.columns.items() if name not in LOADED}
            schema = RowSchema(columns, embedding_dim=kept_dim, embedding_dtype=dtype)
            output = Output(manifest, schema, tars, **limits)
            if parts and files is not None:
                with workroom(sharing, manifest.folder) as shared:
                    decisions = _judge_all(files, plan, shared)
                for part in parts:
                    rows = _undecided(read_rows(old.folder, part, plan))
                    apply(rows, decisions, part, plan)
                    if not kept_dim:
                        rows.embeddings = rows.embedded = None
                    write_kept(opened, rows, output, part, progress or ignore, decisions.take_seconds())
            about = {"source": opened.name if opened is not None else out, "out": new, "device": "cpu"}
            took = time.perf_counter() - began
            report = count_parts(manifest, plan.labels, earlier=earlier, seconds=took, **about)
            return leave_report(manifest, report, opened if opened is not None else source, html)
    finally:
        if opened is not None and opened is not source:
            opened.close()


def _plan(stages: Sequence[Stage], files: RowFiles | None, run: Mapping[str, Any]) -> Plan:
    """The stages that decide, with the columns that come out.

    Raises:
        StageError: A stage cannot work from what is stored.
    """
    if not isinstance(stages, (list, tuple)) or not stages:
        raise StageError(f"stages is {stages!r}; give the stages that are to decide, as [Filter('width', min=256)]")
    stored = {} if files is None else {f.name: _kind(f.type) for f in files.schema if f.name not in _FIXED_COLUMNS}
    columns = {**LOADED, **{name: kind for name, kind in stored.items() if name not in _DECIDED_COLUMNS}}
    settings = run["settings"]
    scored = settings.get("scored") or settings.get("stages", [])
    deciding: list[Stage] = []
    for stage in stages:
        if not isinstance(stage, Stage):
            raise StageError(f"{stage!r} is no stage; give stages, as Filter('width', min=256)")
        if not isinstance(stage, (Selector, GlobalSelector)):
            if stage.settings not in scored:
                then = [known for known in scored if known["type"] == stage.settings["type"]]
                had = f"it with other settings ({then[0]})" if then else "no such stage"
                raise StageError(
                    f"{stage.name} would have to look at the images again: that run had {had}; leave it out, or curate "
                    "again"
                )
            continue
        if files is not None:
            _check_reads(stage, columns, files, run)
        stage.setup("cpu")
        if isinstance(stage, GlobalSelector):
            columns |= dict(stage.decides)
        deciding.append(stage)
    if not deciding:
        raise StageError("none of the stages decides anything: give a Filter or a Deduplicate")
    return Plan(tuple(deciding), tuple(labels_of(stage.name for stage in deciding)), columns, (), False)


def _check_reads(stage: Stage, columns: Mapping[str, str], files: RowFiles, run: Mapping[str, Any]) -> None:
    needs = stage.needs if isinstance(stage, Deduplicate) else tuple(stage.reads)
    missing = [name for name in needs if name not in columns and name != "embeddings"]
    if "embeddings" in needs and not files.embedding_dim:
        missing.append("embeddings")
    if missing or "encoded" in needs or (stage.views and not isinstance(stage, Deduplicate)):
        raise StageError(
            f"{stage.name} needs {', '.join(missing) or 'the images'}, which the output does not store; it has "
            f"{', '.join(columns)}{', embeddings' if files.embedding_dim else ''}: leave the stage out, or curate again"
        )
    for name in stage.reads:
        check_type(stage, name, columns.get(name))
    if isinstance(stage, Deduplicate) and "embeddings" in needs:
        stage.check_embeddings(files.embedding_dim, embedder_lineage(run))


def _embeddings(files: RowFiles | None, wanted: bool | str | None) -> tuple[int, str]:
    """Return the length and the type of the embeddings to store."""
    dim = 0 if files is None else files.embedding_dim
    if wanted and not dim:
        raise StageError("embeddings are to be stored, and the output has none: leave embeddings= out")
    stored = "float16" if dim and files is not None and "half" in str(files.schema.field(EMBEDDING).type) else "float32"
    return (0 if wanted is False else dim), (wanted if isinstance(wanted, str) else stored)


def _kind(arrow: Any) -> str:
    text = str(arrow)
    return {"float": "float32", "double": "float64"}.get(text, "list<string>" if text.startswith("list") else text)


def _judge_all(files: RowFiles, plan: Plan, workroom: Workroom | None = None) -> Decisions:
    """What becomes of every row of an output under other stages.

    Args:
        files: The output's rows.
        plan: Stages that look at nothing but stored columns.
        workroom: Who shares the work; None: nobody.
    """
    status = files.columns(["status"])["status"]
    stage = np.full(len(status), KEPT, np.int16)
    stage[status == "failed"] = FAILED
    decisions = Decisions(stage)
    for number, selector in enumerate(plan.stages):
        rows = np.flatnonzero(stage == KEPT)
        if isinstance(selector, GlobalSelector):
            decisions.drop(number, rows, _unscored(files, selector, rows))
            candidates = Candidates(files, np.flatnonzero(stage == KEPT), plan.columns, workroom)
            decide_with(selector, number, candidates, plan, decisions)
        elif isinstance(selector, Selector):
            began = time.perf_counter()
            decisions.drop(number, rows, _judge(files, selector, rows))
            decisions.seconds[plan.labels[number]] = time.perf_counter() - began
    return decisions


def _judge(files: RowFiles, selector: Selector, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """Reasons of a selector, which is given batches without pixels."""
    names = sorted({*selector.reads, "image_id", "image_path", "index"} - {"embeddings"})
    columns = {name: values[rows] for name, values in files.columns(names).items()}
    reasons = np.full(len(rows), None, object)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = {name: values[start : start + _BLOCK_ROWS] for name, values in columns.items()}
        pairs = zip(block["image_path"].tolist(), block["image_id"].tolist(), strict=True)
        batch = ImageBatch(data=[ImageObject(path, key) for path, key in pairs], columns=block)
        reasons[start : start + _BLOCK_ROWS] = selector.judge(batch)
    return reasons


def _unscored(files: RowFiles, selector: GlobalSelector, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """Reasons of those that the first run dropped before what the stage looks at was known of them."""
    needs = getattr(selector, "needs", tuple(selector.reads))
    reasons = np.full(len(rows), None, object)
    for name in needs:
        if name == getattr(selector, "score", None):
            continue  # a missing score is the worst, as in a first run
        known = _known(files, EMBEDDING if name == "embeddings" else name)[rows]
        if f"{name}_blank" in files.schema.names:  # a blank image was looked at and has no hash
            known |= _known(files, f"{name}_blank")[rows]
        reasons[~known & (reasons == None)] = f"{name} is missing"  # noqa: E711 - element by element
    if count := sum(reason is not None for reason in reasons):
        logger.warning(
            "%d images have nothing to be compared by: the first run dropped them before; they stay dropped. To judge "
            "them too, curate again", count,
        )  # fmt: skip
    return reasons


def _known(files: RowFiles, name: str) -> NDArray[np.bool_]:
    """(N,) whether a column has a value."""
    masks = [batch.column(0).is_valid().to_numpy(zero_copy_only=False) for batch in files.batches([name])]
    return np.concatenate([np.empty(0, bool), *masks])


def _undecided(rows: Any) -> Any:
    """Rows as if nothing but failures was known of them."""
    judged = rows.columns["status"] != "failed"
    rows.columns["status"][judged] = "kept"
    for name in ("stage", "reason"):
        rows.columns[name] = rows.columns[name].astype(object)
        rows.columns[name][judged] = None
    return rows


@checked
def stages_of(out: str | os.PathLike[str]) -> list[Stage]:
    """The stages of an output that decided who stays, as new objects.

    Raises:
        OutputError: There is no output.
        StageError: One cannot be made again from what was recorded: it has a function, or is a kind of your own.
    """
    found: list[Stage] = []
    scorers = [name for name, kind in STAGES.items() if not issubclass(kind, (Selector, GlobalSelector))]
    for settings in Manifest.load(os.fspath(out)).run["settings"].get("stages", []):
        if settings["type"] not in ("Filter", "Deduplicate"):
            if settings["type"] in scorers:
                continue
            raise StageError(f"{settings['type']}, which decided in {out}, cannot be made again: name all stages anew")
        if settings.get("where") is not None:
            raise StageError(
                f"Filter({settings['field']!r}, where=...) of {out} cannot be made again from its name "
                f"({settings['where']}): name all stages anew"
            )
        found.append(make_stage(settings, f"{out}: a stage"))
    return found

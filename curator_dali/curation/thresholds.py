"""`rethreshold`: other filters and other deduplication on an output that is there; nothing is scored or embedded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from curator_dali.arguments import Count, Limits, checked
from curator_dali.arrays import resolve_device
from curator_dali.curation.config import Settings, check_out, make_stage
from curator_dali.curation.decide import WORK_FOLDER, check_decoding, decide, find_undecoded, write_decided
from curator_dali.curation.encoding import WRITTEN
from curator_dali.curation.rows import open_output
from curator_dali.curation.run import SCREENING, check_columns, choose_fields, executor_of, label_facts
from curator_dali.curation.worker import Executor
from curator_dali.curation.write import Write
from curator_dali.decoding import MAX_PIXELS
from curator_dali.errors import OutputError, StageError
from curator_dali.index import embedder_lineage
from curator_dali.io import join
from curator_dali.outputs import (
    EMBEDDING,
    FIXED_COLUMNS,
    LOADED,
    FieldColumns,
    Manifest,
    RowFiles,
    RowSchema,
    labels_of,
    spell_former,
)
from curator_dali.report import Report, count_parts, leave_report
from curator_dali.sources import Source, kind_of_type, open_recorded, read_shards, record_shards
from curator_dali.stages import STAGES, Deduplicate, GlobalSelector, Plan, Selector, Stage, check_type
from curator_dali.threads import ignore

if TYPE_CHECKING:
    import torch

_ARROW_DTYPES = {"float": "float32", "double": "float64"}  # types whose names differ from those of `DTYPES`
_ANEW_COLUMNS = (*Deduplicate().decides, *WRITTEN)  # what an earlier decision left: of no use to the next


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
    write: Write | None = None,
    device: str | torch.device = "auto",
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Decide anew, by other stages, what is kept of an output, from the scores, hashes and embeddings that it stores.

    `stages` are all that decide: those of `out` no longer count (`stages_of(out)` gives them, to change one). A stage
    that made scores may be among them as it was in that run: its columns are there. Images that could not be decoded
    stay failed. Images that were dropped before they were scored have no scores and therefore remain dropped. An image
    that was dropped by its header, and is kept now, is decoded first: it fails if it is damaged.

    `new` becomes an output like any other, with the original bytes of what is kept. The same call goes on where it was
    interrupted or killed.

    Args:
        out: A finished output.
        new: The folder to write to: another one, neither in `out` or the data set's folder nor around these.
        stages: In their order: `Filter`s, `Deduplicate`, selectors of your own.
        executor: Who computes what is alike: "local": this process; "ray", or a `curator_dali.ray.RayExecutor`: a
            cluster. Reading, and writing the new output, is for this process.
        source: The data set, where `out` does not say how to open it, or it has moved. It must be the same.
        tars: Whether to write tars.
        shard_samples: Samples in a tar, or in a file of Hugging Face's layout; None for one a part.
        shard_bytes: Bytes in one.
        embeddings: Whether to store the embeddings again, where there are any; None as `out` has them.
        html: Whether to leave `report.html`, with pictures where the data set can be opened.
        write: How to write the images that are kept, as in `curate`; those to be encoded are decoded for it.
        device: Where these are decoded: "auto" (the current GPU, else the CPU), "cpu", "cuda" or "cuda:N".
        progress: Called with the number of samples done since the last call.

    Raises:
        ValueError: An argument is out of its range.
        StageError: A stage needs pixels, or a column that is not stored; it is named. Before anything is written.
        OutputError: `out` is not finished, or of another version; `new` holds another output, or cannot be written to.
        SourceError: The data set cannot be opened again, or is another one.
    """
    began = time.perf_counter()
    sharing = executor_of(executor)
    out, new = os.fspath(out), os.fspath(new)
    shards: dict[str, Any] = {"shard_samples": shard_samples, "shard_bytes": shard_bytes}
    settings = Settings(tars=tars, embeddings=embeddings or False, html=html, write=write, **shards)
    decoding_device = resolve_device(device)
    device = "cpu" if settings.encoding is None else decoding_device
    old = _load_finished(out, new)
    settings = replace(settings, max_pixels=old.run["settings"].get("max_pixels", MAX_PIXELS))
    files = RowFiles(out) if old.samples else None
    plan = _plan(stages, files, old.run)
    dim, dtype = _embeddings(files, embeddings)
    data = open_recorded(old, source, argument="source=") if tars else None
    try:
        check_out(new, data, origin=old.run.get("origin"), folders=[out])
        columns, fields = _make_columns(plan, files, data, settings)
        schema = RowSchema(columns, embedding_dim=dim, embedding_dtype=dtype, fields=fields)
        with _open_new(new, old, plan, settings, schema, data) as manifest:
            record_shards(manifest, read_shards(out) if data is None else data.shard_records)
            output, present = open_output(manifest, schema, settings), set(manifest.ranges())
            parts = [part for part in old.ranges() if part not in present]
            if parts and files is not None:
                with sharing.workers(join(manifest.folder, WORK_FOLDER)) as workers:
                    decisions = decide(files, plan, workers, anew=True)
                undecoded = find_undecoded(files, old.run.get(SCREENING, ()), decisions)
                if len(undecoded):
                    data = data or open_recorded(old, source, argument="source=")
                    check_decoding(data, undecoded, decisions, settings, decoding_device)
                bytes_of = data if tars else None
                write_decided(bytes_of, old, plan, decisions, output, parts, progress=progress or ignore, device=device)
            about: dict[str, Any] = {"source": out if data is None else data.name, "out": new, "device": device}
            about |= {"earlier": sum(b - a for a, b in present), "seconds": time.perf_counter() - began}
            report = count_parts(manifest, plan.labels, **about)
            return leave_report(manifest, report, source if data is None else data, html)
    finally:
        if data is not None and data is not source:
            data.close()


def _make_columns(
    plan: Plan, files: RowFiles | None, data: Source | None, settings: Settings
) -> tuple[dict[str, str], FieldColumns]:
    """Make the columns of the new output: those of the stages and of `write=`, and those of fields of the metadata."""
    fields = FieldColumns() if files is None else files.fields
    if settings.is_for_hugging_face and not fields and data is not None:  # then of the samples that are read again
        fields = choose_fields(data, plan, settings)
    check_columns([*plan.made, *fields.types], settings)
    columns = settings.add_written(plan.made)
    return {name: kind for name, kind in columns.items() if name not in fields.types}, fields


def _load_finished(out: str, new: str) -> Manifest:
    """Load the manifest of a finished output that is to be read while `new` is written."""
    old = Manifest.load(out)
    if os.path.abspath(out) == os.path.abspath(new):
        raise ValueError(f"{out} is to be read and cannot be written to at once: give another folder")
    if lacking := old.missing():
        raise OutputError(
            f"{out} is not finished, it lacks samples {lacking[0][0]} to {lacking[0][1] - 1}: run that curation again"
        )
    return old


def _open_new(
    new: str, old: Manifest, plan: Plan, settings: Settings, schema: RowSchema, data: Source | None
) -> Manifest:
    """Begin the new output, or go on with it."""
    known = settings.recorded(plan.stages)
    facts = {name: old.run[name] for name in ("class_names", "class_lists") if name in old.run}
    # a sample that is dropped again has not been decoded yet, whichever stage drops it now
    undecoded = {SCREENING: list(plan.labels)} if old.run.get(SCREENING) else {}
    own = {label: s.lineage for label, s in zip(plan.labels, plan.stages, strict=True) if s.lineage}
    return Manifest.open(
        new,
        source=old.run["source"],
        samples=old.samples,
        settings={
            "stages": known["stages"],
            "scored": _find_scored(old.run),
            "decided": old.run["settings"].get("stages", []),
            **{name: known[name] for name in ("tars", "max_samples", "max_bytes", "write") if name in known},
            "embeddings": schema.embedding_dtype if schema.embedding_dim else None,
        },
        lineage={**old.run["lineage"], **own},
        origin=old.run.get("origin") if data is None else data.origin,
        facts={**(facts or ({} if data is None else label_facts(data))), **undecoded},
    )


def _find_scored(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of the stages that scored an output."""
    settings = run["settings"]
    scored: list[dict[str, Any]] = settings.get("scored") or settings.get("stages", [])
    return scored


def _plan(stages: Sequence[Stage], files: RowFiles | None, run: Mapping[str, Any]) -> Plan:
    """The stages that decide, with the columns that come out.

    Raises:
        StageError: A stage cannot work from what is stored.
    """
    if not isinstance(stages, (list, tuple)) or not stages:
        raise StageError(f"stages is {stages!r}; give the stages that are to decide, as [Filter('width', min=256)]")
    stored = {
        field.name: _ARROW_DTYPES.get(str(field.type), str(field.type))
        for field in (files.schema if files is not None else ())
        if field.name not in FIXED_COLUMNS and files is not None and field.name not in files.fields.names
    }
    kept = {} if files is None else {name: kind_of_type(kind) for name, kind in files.fields.types.items()}
    columns = {**LOADED, **{name: kind for name, kind in stored.items() if name not in _ANEW_COLUMNS}}
    scored = _find_scored(run)
    deciding: list[Stage] = []
    for stage in stages:
        if not isinstance(stage, Stage):
            raise StageError(f"{stage!r} is no stage; give stages, as Filter('width', min=256)")
        if not isinstance(stage, (Selector, GlobalSelector)):
            if stage.settings not in scored and spell_former(stage.settings) not in scored:
                then = [known for known in scored if known["type"] == stage.settings["type"]]
                had = f"it with other settings ({then[0]})" if then else "no such stage"
                raise StageError(
                    f"{stage.name} would have to look at the images again: that run had {had}; leave it out, or curate "
                    "again"
                )
            continue
        if files is not None:
            _check_reads(stage, {**columns, **kept}, files, run)
        stage.setup("cpu")
        if isinstance(stage, GlobalSelector):
            columns |= dict(stage.decides)
        deciding.append(stage)
    if not deciding:
        raise StageError("none of the stages decides anything: give a Filter or a Deduplicate")
    return Plan(tuple(deciding), tuple(labels_of(stage.name for stage in deciding)), columns, (), False)


def _check_reads(stage: Selector | GlobalSelector, columns: Mapping[str, str], files: RowFiles, run: Any) -> None:
    """Refuse a stage that needs what the output does not store."""
    needs = stage.needs
    stored = {*columns, *(["embeddings"] if files.embedding_dim else [])}
    if lacking := [name for name in needs if name not in stored]:
        named = ", ".join(name for name in lacking if name != "views") or "the images"
        raise StageError(
            f"{stage.name} needs {named}, which the output does not store; it has "
            f"{', '.join(columns)}{', embeddings' if files.embedding_dim else ''}: leave the stage out, or curate again"
        )
    for name in stage.reads:
        check_type(stage, name, columns.get(name))
    if isinstance(stage, GlobalSelector) and "embeddings" in needs:
        stage.check_embeddings(files.embedding_dim, embedder_lineage(run))


def _embeddings(files: RowFiles | None, wanted: bool | str | None) -> tuple[int, str]:
    """Return the length and the type of the embeddings to store."""
    dim = 0 if files is None else files.embedding_dim
    if wanted and not dim:
        raise StageError("embeddings are to be stored, and the output has none: leave embeddings= out")
    stored = "float16" if dim and files is not None and "half" in str(files.schema.field(EMBEDDING).type) else "float32"
    return (0 if wanted is False else dim), (wanted if isinstance(wanted, str) else stored)


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
        if settings["type"] not in ("Filter", "Deduplicate", "Exclude", "Include"):
            if settings["type"] in scorers:
                continue
            raise StageError(f"{settings['type']}, which decided in {out}, cannot be made again: name all stages anew")
        if settings.get("where") is not None:
            raise StageError(
                f"Filter({settings['field']!r}, where=...) of {out} cannot be made again from its name "
                f"({settings['where']}): name all stages anew"
            )
        if isinstance(settings.get("entries"), Mapping):
            raise StageError(f"the list of {settings['type']} in {out} was in memory: name all stages anew")
        found.append(make_stage(settings, f"{out}: a stage"))
    return found

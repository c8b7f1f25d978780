"""`Curation`: a run that is planned and checked before it starts; `curate` does one in a single call."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from curator_dali.arguments import Count, Limits, Share, checked
from curator_dali.arrays import resolve_device
from curator_dali.curation.config import SCORED, Fields, Settings, check_out
from curator_dali.curation.decide import WORK_FOLDER, decide, write_decided
from curator_dali.curation.encoding import WRITTEN
from curator_dali.curation.fields import LOOKED_AT, field_types, look_at_fields, plan_fields
from curator_dali.curation.rows import Output, open_output
from curator_dali.curation.worker import Executor, LocalExecutor, Parts, Progress, Worker
from curator_dali.curation.write import Write
from curator_dali.decoding import MAX_PIXELS
from curator_dali.errors import OutputError, StageError
from curator_dali.io import Cache, join, store
from curator_dali.outputs import LAYOUT_COLUMNS, FieldColumns, Manifest, Part, RowFiles, RowSchema, is_loadable
from curator_dali.report import Report, count_parts, leave_report
from curator_dali.sampling import StreamedRanges
from curator_dali.sources import Source, open_source, record_shards
from curator_dali.stages import HEADER_FIELDS, STAGES, Plan, Stage, make_plan
from curator_dali.threads import ignore

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

logger = logging.getLogger(__name__)

SCREENING = "screening"
"""Entry of `run.json`: the stages that drop images before these are decoded."""


class Curation:
    """A curation that is ready to run: the source is open, the weights are loaded, everything is checked.

    Nothing is written before `run`. Arguments are those of `curate`: `settings` are the fields of `Settings`, from
    `batch_size` to `html`.

    Attributes:
        source: The data set.
        plan: The stages in their order, with their labels and the columns that come out.
        device: "cpu" or "cuda:N".
    """

    _fields = FieldColumns()  # of one that an earlier version pickled

    @checked
    def __init__(
        self,
        source: Any,
        out: str | os.PathLike[str],
        *,
        stages: Annotated[Sequence[Stage], Limits("a list of stages, as [Quality()]")],
        device: str | torch.device = "auto",
        executor: Literal["local", "ray"] | Executor = "local",
        cache: Cache | None = None,
        **settings: Any,
    ) -> None:
        self._executor = executor_of(executor)
        self._settings = Settings(**settings)
        self.out = os.fspath(out)
        self.device = resolve_device(device)
        self.source: Source = open_source(source, cache=cache)
        self._owns_source = self.source is not source
        try:
            check_out(self.out, self.source)
            self.plan, self._types, self._fields = _plan(stages, self.source, self._settings)
            check_columns(self.plan.columns, self._settings)
            self.plan.setup(self.device)
            self._dim = next((stage.dim for stage in reversed(stages) if "embeddings" in stage.writes), 0)
            if self._settings.embeddings and not self._dim:
                raise StageError("embeddings are to be stored, and no stage makes any: put Embed among the stages")
        except BaseException:
            self.close()
            raise

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide what is written, as plain JSON. A run goes on only with equal ones."""
        return self._settings.recorded(self.plan.stages)

    @property
    def fields(self) -> dict[str, str]:
        """Columns for fields of the metadata that no stage reads, with their types in Arrow's words."""
        return {column.name: str(column.type) for column in self._fields.to_arrow()}

    @property
    def lineage(self) -> dict[str, Any]:
        """Stage -> which weights it works with."""
        pairs = zip(self.plan.labels, self.plan.stages, strict=True)
        return {label: stage.lineage for label, stage in pairs if stage.lineage}

    @property
    def work(self) -> tuple[int, int | None]:
        """(samples that earlier runs have done, samples in all); a stage that sees them all doubles both numbers.

        The second is None while tars of the source are not indexed.
        """
        folders = [self.out, join(self.out, SCORED)] if self.plan.is_global else [self.out]
        ranges = [_ranges(folder) for folder in folders]
        done = [sum(stop - start for start, stop in found) for found in ranges]
        if not self._is_counted:
            return sum(done), None
        if self.plan.is_global and done[0] == len(self.source):  # then what was scored is gone
            done[1] = done[0]
        return sum(done), len(self.source) * len(folders)

    def run(self, progress: Callable[[int], object] | None = None) -> Report:
        """Do what is not done yet.

        Args:
            progress: Called with the number of samples done since the last call; `work` says of how many.

        Returns:
            The report, which is also in the folder as `report.json`.

        Raises:
            OutputError: The folder holds the output of other settings, another run works on it, or it cannot be
                written to.
            SourceError: The source, or a sample of it, cannot be read now: a file that is gone or changed, a store that
                does not answer. The part under way is dropped, finished parts stay.
            TooManyErrors: More samples fail than `max_error_rate` allows.
            KeyboardInterrupt: Ctrl-C: the part under way is dropped, finished parts stay.
        """
        began = time.perf_counter()
        with self._manifest(self.out) as manifest:
            was_counted = self._is_counted
            if was_counted:
                record_shards(manifest, self.source.shard_records)
            earlier = sum(stop - start for start, stop in manifest.ranges())
            try:
                if self.plan.is_global:
                    self._run_twice(manifest, progress or ignore)
                else:
                    self._score(self._output(manifest), progress or ignore)
            except KeyboardInterrupt:
                done, total = self.work
                logger.warning(
                    "interrupted: %s samples are done and stay in %s; the same call goes on from there",
                    f"{done:,}" if total is None else f"{done:,} of {total:,}", self.out,
                )  # fmt: skip
                raise
            if not was_counted:
                record_shards(manifest, self.source.shard_records)
            about: dict[str, Any] = {"source": self.source.name, "out": self.out, "device": self.device}
            about |= {"earlier": earlier, "seconds": time.perf_counter() - began}
            report = count_parts(manifest, self.plan.labels, **about)
            return leave_report(manifest, report, self.source, self._settings.html)

    def worker(self, manifest: Manifest) -> Worker:
        """What does parts of this run, here or (it pickles) in another process.

        Args:
            manifest: Of the folder that the parts are written to.
        """
        return self._worker(self._output(manifest))

    def close(self) -> None:
        """Close the source, if it was opened here. May be called again."""
        if self._owns_source:
            self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _facts(self) -> dict[str, Any]:
        screening = list(self.plan.labels[: self.plan.screening])
        return label_facts(self.source) | ({SCREENING: screening} if screening else {})

    @property
    def _is_counted(self) -> bool:
        """Whether the number of samples is known; not that of tars without an index."""
        return self.source.streamed is None or self.source.streamed.is_complete

    def _manifest(self, folder: str) -> Manifest:
        """Begin an output of this run in a folder, or go on with one."""
        counts = self.source.streamed
        listing = None if counts is None else counts.fingerprint
        # an output that was begun with indexed tars does not say how these were listed: wait for the indexes
        is_counted = self._is_counted or _is_begun_without_listing(folder)
        return Manifest.open(
            folder,
            source=self.source.fingerprint if is_counted else None,
            samples=len(self.source) if is_counted else None,
            settings=self.settings,
            lineage=self.lineage,
            origin=self.source.origin,
            facts=self._facts,
            listing=listing,
        )

    def _output(self, manifest: Manifest, scored: bool = False) -> Output:
        """What is written into a folder: what was asked for, or, of what is scored only, what decides."""
        dim = self._dim if self._settings.stored or scored else 0
        settings = replace(self._settings, tars=False, write=None) if scored else self._settings
        columns, dtype = settings.add_written(self.plan.made), self._settings.stored or "float32"
        schema = RowSchema(columns, embedding_dim=dim, embedding_dtype=dtype, fields=self._fields)
        return open_output(manifest, schema, settings)

    def _worker(self, output: Output) -> Worker:
        return Worker(self.source, self.plan, self._types, output, self.device)

    def _score(self, output: Output, progress: Progress) -> None:
        """Take what an output lacks through the stages."""
        counts, size, manifest = self.source.streamed, self._settings.part_size, output.manifest
        parts: Parts
        if counts is None or counts.is_complete:
            parts = manifest.missing(size)
        else:
            parts = StreamedRanges(counts, size, manifest.ranges())
        if isinstance(parts, StreamedRanges) or parts:
            self._executor.run(self._worker(output), parts, _finished, progress)
        manifest.complete(self.source.fingerprint, len(self.source))

    def _run_twice(self, manifest: Manifest, progress: Progress) -> None:
        """Score all samples, let the stages decide that see them all, and write what is kept from the source."""
        folder = join(manifest.folder, SCORED)
        if manifest.is_counted and not manifest.missing():
            store.remove_folder(folder)  # of a run that was killed when all was written
            return
        with self._manifest(folder) as scored:
            self._score(self._output(scored, scored=True), progress)
            manifest.complete(self.source.fingerprint, len(self.source))
            if not manifest.missing():  # no samples at all
                store.remove_folder(folder)
                return
            present = set(manifest.ranges())
            parts = [part for part in scored.ranges() if part not in present]
            with self._executor.workers(join(manifest.folder, WORK_FOLDER)) as workers:
                decisions = decide(RowFiles(scored.folder), self.plan, workers, anew=False)
            output = self._output(manifest)
            write_decided(self.source, scored, self.plan, decisions, output, parts, _finished, progress, self.device)
        store.remove_folder(folder)


@checked
def curate(
    source: Any,
    out: str | os.PathLike[str],
    *,
    stages: Annotated[Sequence[Stage], Limits("a list of stages, as [Quality()]")],
    device: str | torch.device = "auto",
    executor: Literal["local", "ray"] | Executor = "local",
    batch_size: Count = 64,
    part_size: Count = 8192,
    tars: bool = True,
    shard_samples: Count | None = None,
    shard_bytes: Count | None = None,
    embeddings: bool | Literal["float32", "float16"] = False,
    num_threads: Count | None = None,
    prefetch: Count = 2,
    max_pixels: Count = MAX_PIXELS,
    max_error_rate: Share | None = None,
    metadata: Fields | None = None,
    html: bool = True,
    write: Write | None = None,
    cache: Cache | None = None,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Take a data set through stages, and write what is kept, and what is known of every sample.

    In the folder there will be tars with the original bytes of every member of the samples that stay, each with a
    `KEY.curation.json` of its scores; Parquet files with a row for every sample (id, path, size, kept, dropped or
    failed, by which stage and why, every score, embeddings if asked for); `report.json`; `report.html`,
    which shows all this with pictures; `README.md`, by which Hugging Face's `load_dataset` reads the folder, unless one
    is there; and `_manifest/`, which knows what is finished. A call with the same source,
    stages and outputs goes on where an earlier one was interrupted or killed; how it is done (device, batches, parts,
    threads) may change.

    Args:
        source: What `open_source` takes.
        out: The folder, or its URL; neither in the data set's folder nor around it.
        stages: In their order; each finds what those before it write.
        device: "auto" (the current GPU, else the CPU), "cpu", "cuda" or "cuda:N".
        executor: "local": in this process; "ray", or a `curator_dali.ray.RayExecutor`: on a cluster.
        batch_size: Samples a batch. Its decoded images, whole ones, are in memory at once.
        part_size: Samples that are done as a whole or again, and have a Parquet file of their own.
        tars: Whether to write tars.
        shard_samples: Samples in a tar, or in a file of Hugging Face's layout; None for one a part.
        shard_bytes: Bytes in one.
        embeddings: Whether to store them in the Parquet files; True is "float32".
        num_threads: Decoding threads; None for all CPUs.
        prefetch: Batches under way or waiting at once, besides the one in the stages.
        max_pixels: Larger images fail.
        max_error_rate: The share of failed samples, 0 to 1, above which the run ends.
        metadata: Fields of the metadata that are columns of the output, also of samples that are dropped or fail: a
            list of names; True for all; or names with their types: "bool", "int64", "float64" or "string". Others
            have the type that a Parquet schema or at most 256 samples tell. What a column cannot hold exactly is JSON
            in the column `metadata`. In the column of a field that a stage reads, numbers of samples are "float64",
            and a value of another type counts as missing; a warning at the end says how many there are.
        html: Whether to leave `report.html`, with pictures.
        write: How to write the images that are kept: scaled, encoded, for Hugging Face. None writes their original
            bytes into tars.
        cache: Where each node keeps what is read of remote files.
        progress: Called with the number of samples done since the last call.

    Raises:
        StageError: The stages do not fit together; the missing field is named. Before anything is written.
        ValueError: An argument is out of its range.
        CuratorDaliError: See `Curation.run`.
    """
    arguments = locals()
    settings = {field.name: arguments[field.name] for field in fields(Settings)}
    with Curation(source, out, stages=stages, device=device, executor=executor, cache=cache, **settings) as curation:
        return curation.run(progress)


def _plan(stages: Sequence[Stage], source: Source, settings: Settings) -> tuple[Plan, Mapping[str, str], FieldColumns]:
    """The plan; the types of the metadata's fields if a stage reads any; and columns for fields that are kept."""
    given = settings.field_types
    known, types = list(STAGES.values()), given
    looked = None
    try:
        plan = make_plan(stages, given, known)
    except StageError:  # what is missing may be a field of the metadata
        if not all(isinstance(stage, Stage) for stage in stages):
            raise
        looked = look_at_fields(source)
        untyped = [stage for stage in stages if not stage.expects.keys() & given]
        types = {**field_types(source, untyped, looked), **given}
        hint = (
            f". Of the metadata {min(LOOKED_AT, len(source))} samples were looked at, and none has that field. If it "
            "is rare, say its type, as metadata={'score': 'float64'}"
        )
        plan = make_plan(stages, types, known, hint, HEADER_FIELDS)
    return plan, types, choose_fields(source, plan, settings, looked)


def check_columns(columns: Collection[str], settings: Settings) -> None:
    """Refuse columns of the names that `write=` makes.

    Raises:
        StageError: There is one.
    """
    made = {*WRITTEN} if settings.encoding is not None else set()
    made |= {*LAYOUT_COLUMNS} if settings.is_for_hugging_face else set()
    if taken := made.intersection(columns):
        raise StageError(
            f"write= makes the column {min(taken)!r}, which a stage makes too, or which is a field of the metadata: "
            "leave one of them out"
        )


def choose_fields(
    source: Source, plan: Plan, settings: Settings, looked: Sequence[Mapping[str, Any]] | None = None
) -> FieldColumns:
    """Choose the columns for fields of the metadata that the settings ask for; see `plan_fields`."""
    if not settings.metadata:
        return FieldColumns()
    if looked is None and source.arrow_fields is None and not settings.field_types:
        looked = look_at_fields(source)
    reserved = {*settings.add_written({}), *(LAYOUT_COLUMNS if settings.is_for_hugging_face else ())}
    usable = is_loadable if settings.is_for_hugging_face else None
    return plan_fields(source, plan, settings.metadata, looked or [], reserved, usable)


def label_facts(source: Source) -> dict[str, Any]:
    """Make the entries of `run.json` on labels: `class_names`, or `class_lists` where parts number other classes."""
    if names := source.class_names:
        return {"class_names": names}
    lists = {part: list(names) for part, names in source.class_lists.items() if names}
    if len(set(map(tuple, lists.values()))) < 2:
        return {}
    logger.warning(
        "the parts of %s number different classes, so that one label means several: %s. Train on label_name",
        source.name,
        lists,
    )
    return {"class_lists": lists}


def _ranges(folder: str) -> list[tuple[int, int]]:
    try:
        return Manifest.load(folder).ranges()
    except OutputError:
        return []


def _is_begun_without_listing(folder: str) -> bool:
    """Whether a folder holds the output of a run that began with an indexed data set."""
    try:
        return "listing" not in Manifest.load(folder).run
    except OutputError:
        return False


def _finished(part: Part) -> None:
    logger.debug("finished samples %d to %d: %s", part.start, part.stop - 1, dict(part.counts))


def executor_of(executor: str | Executor) -> Executor:
    """An executor from its name.

    Args:
        executor: "local", "ray" (with `curator_dali.ray.RayExecutor`'s defaults), or an `Executor`.

    Raises:
        ValueError: No such name.
        ImportError: Ray is not installed.
    """
    if executor == "local":
        return LocalExecutor()
    if executor == "ray":
        from curator_dali.curation.ray_executor import RayExecutor

        return RayExecutor()
    if isinstance(executor, (str, type)) or not all(
        callable(getattr(executor, name, None)) for name in ("run", "workers")
    ):
        raise ValueError(f'executor is {executor!r}; allowed: "local", "ray", or a curator_dali.ray.RayExecutor(...)')
    return executor

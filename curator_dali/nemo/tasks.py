"""Tasks of NeMo Curator: split, loaded, converted to our `ImageBatch` and back."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import FileGroupTask
from nemo_curator.tasks import ImageBatch as NemoImageBatch
from nemo_curator.tasks import ImageObject as NemoImageObject
from numpy.typing import NDArray

from curator_dali.arrays import with_gaps
from curator_dali.batch import ImageBatch, ImageObject
from curator_dali.decoding import Decoded
from curator_dali.errors import ImageError, SourceError
from curator_dali.loader import ImageLoader
from curator_dali.sources import Source, open_source

logger = logging.getLogger(__name__)

T = TypeVar("T")

Errors = list[dict[str, Any]]
"""The images that were left out, each with what is known of it."""

ERRORS = "image_errors"
"""Of a task's `_metadata`: the images that could not be used, each with the fields of an `ImageError`."""

DROPPED = "dropped_images"
"""Of a task's `_metadata`: the images that a stage dropped, each {image_id, image_path, stage, reason}."""

SCORES = ("aesthetic_score", "nsfw_score")
"""Attributes of both `ImageObject`s, which NeMo Curator's stages overwrite."""

_KEY = "curator_dali"
"""Of an image's metadata: its values of `columns`, which NeMo Curator's `ImageObject` has no place for."""

_RANGE = "samples"
"""Of a `FileGroupTask`'s `reader_config`: [start, stop) of the files' samples that it is about."""

_MOST_THREADS = 8  # NeMo Curator's reader takes that many; several readers share a machine


def to_nemo(batch: ImageBatch) -> NemoImageBatch:
    """A batch for NeMo Curator's stages: pixels and embeddings on the host, one `ImageObject` an image.

    From a GPU there is one transfer a batch; on the CPU pixels are views of the batch's. The values of `columns` go
    into each image's metadata under "curator_dali". `views` and `encoded` stay behind.

    Args:
        batch: Its `to_host()` is called.

    Returns:
        NeMo Curator's batch. Its `task_id` is the batch's until a pipeline gives it another.

    Raises:
        ValueError: The metadata of an image uses the name "curator_dali" already.
    """
    batch.to_host()
    columns = {name: values for name, values in batch.columns.items() if name not in SCORES}
    rows = _rows(columns, len(batch))
    task = NemoImageBatch(
        dataset_name=batch.dataset_name,
        data=[_convert(NemoImageObject, item, _add_row(item, row)) for item, row in zip(batch.data, rows, strict=True)],
        _stage_perf=list(batch._stage_perf),
        _metadata=dict(batch._metadata),
    )
    for name in SCORES:
        for item, value in zip(task.data, batch.columns.get(name, ()), strict=name in batch.columns):
            if getattr(item, name) is None and value is not None and not np.isnan(value):
                setattr(item, name, float(value))
    if batch.columns:
        task._metadata[_KEY] = {name: values.dtype.str for name, values in batch.columns.items()}
    task.task_id = batch.task_id
    return task


def from_nemo(task: NemoImageBatch, device: str | None = None) -> ImageBatch:
    """A batch of ours from NeMo Curator's.

    Args:
        task: Any batch of theirs, whoever made it.
        device: Where `images` and `embeddings` go, "cpu", "cuda" or "cuda:N". None leaves both None, and pixels and
            embeddings with each image on the host.

    Raises:
        ValueError: A device is given, and only some of the images have pixels (or an embedding).
    """
    metadata = dict(task._metadata)
    types: dict[str, str] = metadata.pop(_KEY, {})
    data = [
        _convert(ImageObject, item, {name: value for name, value in item.metadata.items() if name != _KEY})
        for item in task.data
    ]
    rows = [item.metadata.get(_KEY, {}) for item in task.data]
    names = dict.fromkeys([*(name for name in types if name not in SCORES), *(name for row in rows for name in row)])
    # objects where the type is not known
    columns = {name: with_gaps([row.get(name) for row in rows], types.get(name, object)) for name in names}
    for name in SCORES:
        if name in types:
            columns[name] = with_gaps([getattr(item, name) for item in data], types[name])
    batch = ImageBatch(task.task_id, task.dataset_name, data, list(task._stage_perf), metadata, columns=columns)
    return batch if device is None else batch.to_device(device)


def _add_row(item: ImageObject, row: Mapping[str, Any]) -> dict[str, Any]:
    """An image's metadata, with its values of the batch's columns."""
    if row and _KEY in item.metadata:
        raise ValueError(
            f"image {item.image_id!r} has {_KEY!r} in its metadata, where its columns go: rename that field"
        )
    return {**item.metadata, **({_KEY: dict(row)} if row else {})}


def _convert(kind: Callable[..., T], item: Any, metadata: dict[str, Any]) -> T:
    """An image of ours as one of theirs, or the other way round."""
    return kind(
        image_path=item.image_path,
        image_id=item.image_id,
        metadata=metadata,
        image_data=item.image_data,
        embedding=item.embedding,
        aesthetic_score=item.aesthetic_score,
        nsfw_score=item.nsfw_score,
    )


def _rows(columns: Mapping[str, NDArray[Any]], count: int) -> list[dict[str, Any]]:
    """The columns as one dict of plain Python values an image."""
    if not columns:
        return [{}] * count
    lists = [values.tolist() for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


@dataclass
class SampleRangeTask(FileGroupTask):  # type: ignore[misc]
    """A `FileGroupTask` that is about some samples of its files: [start, stop) in `reader_config["samples"]`."""

    def get_deterministic_id(self) -> str:
        """Of the files and the range; that of the files alone would be the same for all tasks of a file."""
        start, stop = self.reader_config[_RANGE]
        return f"{super().get_deterministic_id()}-{start}-{stop}"


@dataclass
class SplitFilesStage(ProcessingStage[FileGroupTask, FileGroupTask]):  # type: ignore[misc]
    """Cut groups of files into tasks of at most so many samples each, for the reader or the fused stage behind it.

    A NeMo Curator stage gives back all that it makes of a task at once, so a reader that gets whole files holds all
    of their pixels. With this stage before it, it holds `samples_per_task` images at most, executors can start the
    next stage on the first of them, and one large shard is work for several readers.

    Args:
        samples_per_task: The most samples of a task.
    """

    samples_per_task: int = 1000
    name: str = "split_files"

    def __post_init__(self) -> None:
        if self.samples_per_task < 1:
            raise ValueError(f"samples_per_task is {self.samples_per_task}; give a number of at least 1")
        self.resources = Resources(cpus=1.0)

    def inputs(self) -> tuple[list[str], list[str]]:
        """What a task must have."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """What the tasks have."""
        return ["data"], []

    def process(self, task: FileGroupTask) -> list[FileGroupTask]:
        """The ranges of each file, in order. A file that cannot be opened stays as it is: the reader reports it."""
        if _RANGE in task.reader_config:
            return [task]
        found: list[FileGroupTask] = []
        for file in task.data:
            shared = {"dataset_name": task.dataset_name, "data": [file]}
            try:
                source = open_source(file)
            except SourceError:
                found.append(FileGroupTask(**shared, _metadata=dict(task._metadata)))
                continue
            count = len(source)
            source.close()
            for start in range(0, count, self.samples_per_task):
                config = {**task.reader_config, _RANGE: [start, min(start + self.samples_per_task, count)]}
                found.append(SampleRangeTask(**shared, _metadata=dict(task._metadata), reader_config=config))
        return found


class TaskLoader:
    """Loads the samples of NeMo Curator's file tasks.

    Args:
        image_ids: "key", or "shard/key" to put the name of the shard before each sample's key.
        on_error: "skip" reports a file that cannot be opened; "raise" raises.
        num_threads: Decoding threads; None for one a CPU, at most 8.
        options: Of `ImageLoader`.
    """

    def __init__(
        self, *, image_ids: str, on_error: Literal["skip", "raise"], num_threads: int | None, **options: Any
    ) -> None:
        self._image_ids, self._on_error = image_ids, on_error
        threads = num_threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._options = {**options, "on_error": on_error, "num_threads": threads}
        self._loader: ImageLoader | None = None

    def load(self, task: FileGroupTask) -> Iterator[tuple[ImageBatch | None, Errors]]:
        """The batches of a task, each with what went wrong since the one before; None where nothing came out.

        Raises:
            ValueError: The task has no files, or a range that they do not have.
            SourceError, ImageError: With `on_error="raise"`.
        """
        if not task.data:
            raise ValueError(f"task {task.task_id!r} has no files to read")
        for found in self._open(list(task.data)):
            if isinstance(found, ImageError):
                logger.warning("left out: %s", found.reason)
                yield None, [asdict(found)]
                continue
            with closing(found) as source:
                try:
                    for decoded, batch in self._over(source, task):
                        if batch is not None:
                            self._name(decoded, batch)
                        yield batch, [asdict(decoded.error(row)) for row in sorted(decoded.errors)]
                except SourceError as error:  # a file went away, or is another one now
                    if self._on_error == "raise":
                        raise
                    logger.warning("left out: %s", error)
                    yield None, [asdict(_refused(task.data, error))]

    def close(self) -> None:
        """Drop the decoder. May be called again."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def _open(self, files: list[str]) -> Iterator[Source | ImageError]:
        """The files as one source; one by one where some cannot be opened, so that the others are read."""
        try:
            yield open_source(files)
            return
        except SourceError as error:
            if self._on_error == "raise":
                raise
            if len(files) == 1:
                yield _refused(files, error)
                return
        for file in files:
            yield from self._open([file])

    def _over(self, source: Source, task: FileGroupTask) -> Iterator[tuple[Decoded, ImageBatch | None]]:
        if self._loader is None:
            self._loader = ImageLoader(source, **self._options)
            self._loader.max_errors = 0  # the steps have them
        start, stop = task.reader_config.get(_RANGE, (0, len(source)))
        if not 0 <= start <= stop <= len(source):
            raise ValueError(
                f'reader_config["samples"] is [{start}, {stop}], and {task.data} hold {len(source)} samples'
            )
        if start < stop:
            yield from self._loader.over([(int(start), int(stop))], source)

    def _name(self, decoded: Decoded, batch: ImageBatch) -> None:
        del batch.columns["index"]  # of the source, which is of this task only
        if self._image_ids == "shard/key":
            for row, item in zip(decoded.rows.tolist(), batch.data, strict=True):
                item.image_id = f"{PurePosixPath(decoded.encoded.shards[row]).stem}/{item.image_id}"


def _refused(files: Sequence[str], error: SourceError) -> ImageError:
    return ImageError("", "", ", ".join(map(str, files)), str(error))


def wants_gpu(device: str) -> bool:
    """Whether workers need a GPU: told by the name; "auto" asks the machine that builds the pipeline, as theirs do."""
    if device == "auto":
        import torch

        return bool(torch.cuda.is_available())
    return device.startswith("cuda")


def emit(task: FileGroupTask, found: Iterable[tuple[ImageBatch | None, Errors, Errors]]) -> Iterator[NemoImageBatch]:
    """NeMo Curator's batches, each with what was left out since the one before it in its `_metadata`.

    They inherit the task's data set and `_metadata`. Where nothing came out after the last report, an empty batch
    carries it, so that every sample is accounted for. `found` are batches (None, or empty, where nothing is left of
    one), the images that failed, and those that were dropped.
    """
    failed: Errors = []
    dropped: Errors = []
    for batch, errors, drops in found:
        failed += errors
        dropped += drops
        if batch is not None and len(batch):
            yield _finish(to_nemo(batch), task, failed, dropped)
            failed, dropped = [], []
    if failed or dropped:
        yield _finish(NemoImageBatch(dataset_name=task.dataset_name), task, failed, dropped)


def _finish(made: NemoImageBatch, task: FileGroupTask, failed: Errors, dropped: Errors) -> NemoImageBatch:
    report: dict[str, Any] = {name: rows for name, rows in ((ERRORS, failed), (DROPPED, dropped)) if rows}
    made.dataset_name = task.dataset_name or made.dataset_name
    made._metadata = {**task._metadata, **made._metadata, **report}
    made.task_id = ""  # the pipeline's to give
    return made

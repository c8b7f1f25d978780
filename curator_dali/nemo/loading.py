"""`TaskLoader`: the files of task after task through one decoder, faults told instead of raised."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, Literal

from nemo_curator.tasks import FileGroupTask

from curator_dali.batch.batch import ImageBatch
from curator_dali.curation.worker import PartLoader
from curator_dali.decoding.decoder import Decoded
from curator_dali.errors import ImageError, SourceError
from curator_dali.nemo.split import range_of
from curator_dali.sources.base import Source
from curator_dali.sources.open import open_source

__all__ = ["Errors", "TaskLoader", "wants_gpu"]

logger = logging.getLogger(__name__)

Errors = list[dict[str, Any]]

_MOST_THREADS = 8  # NeMo Curator's reader takes that many; several readers share a machine


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
        self._loader: PartLoader | None = None

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
            self._loader = PartLoader(source, **self._options)
        self._loader.source = source  # the decoder stays: to build one for each task costs as much as a small shard
        part = range_of(task, len(source))
        if part[0] < part[1]:
            yield from self._loader.over([part])

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

"""From batches of ours to the tasks of a NeMo Curator stage, with what was left out told on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nemo_curator.tasks import FileGroupTask
from nemo_curator.tasks import ImageBatch as NemoImageBatch

from curator_dali.batch.batch import ImageBatch
from curator_dali.nemo.loading import Errors
from curator_dali.nemo.tasks import DROPPED, ERRORS, to_nemo

__all__ = ["emit"]


def emit(task: FileGroupTask, found: Iterable[tuple[ImageBatch | None, Errors, Errors]]) -> Iterator[NemoImageBatch]:
    """NeMo Curator's batches, each with what was left out since the one before it in its `_metadata`.

    Where nothing came out after the last report, an empty batch carries it, so that every sample is accounted for.

    Args:
        task: What the batches are made of; they inherit its data set and `_metadata`.
        found: Batches (None, or empty, where nothing is left of one), the images that failed, those that were dropped.
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

"""`DaliImageReaderStage`: in the place of NeMo Curator's `ImageReaderStage`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import FileGroupTask
from nemo_curator.tasks import ImageBatch as NemoImageBatch

from curator_dali.arguments import Count, checked
from curator_dali.arrays import resolve_device
from curator_dali.decoding.headers import MAX_PIXELS
from curator_dali.nemo.emit import emit
from curator_dali.nemo.loading import TaskLoader, wants_gpu
from curator_dali.nemo.tasks import DROPPED, ERRORS

__all__ = ["DaliImageReaderStage", "check", "report"]

logger = logging.getLogger(__name__)


@dataclass
class DaliImageReaderStage(ProcessingStage[FileGroupTask, NemoImageBatch]):  # type: ignore[misc]
    """Read and decode the images of WebDataset tars (also of Parquet files, folders and URLs of these).

    A drop-in for NeMo Curator's `ImageReaderStage`. What differs: images keep their own keys, paths, captions and
    metadata; every image format is read, upright; a bad image or file costs only itself, and is told in
    `task._metadata["image_errors"]` of the batch that follows it. `stream` gives batch after batch, for loops of
    your own; a pipeline takes them as a list (see `SplitFilesStage` for bounding it).

    Args:
        dali_batch_size: Images a batch.
        verbose: Log every image that is left out, instead of their number.
        num_threads: Decoding threads of a worker; None for one a CPU, at most 8.
        num_gpus_per_worker: Share of a GPU that a worker asks for, where it uses one.
        device: "auto" (a GPU if the machine that builds the pipeline has one), "cpu" or "cuda".
        image_ids: "key", a sample's own key; or "shard/key", where keys repeat in other shards and stages tell images
            apart by `image_id`, as the removal of duplicates does.
        on_error: "skip", or "raise" to end the pipeline at the first bad image or file.
        max_pixels: Larger images are left out.

    Raises:
        ValueError: An argument is out of its range.
    """

    dali_batch_size: int = 100
    verbose: bool = False
    num_threads: int | None = None
    num_gpus_per_worker: float = 0.25
    device: str = "auto"
    image_ids: Literal["key", "shard/key"] = "key"
    on_error: Literal["skip", "raise"] = "skip"
    max_pixels: int = MAX_PIXELS
    name: str = "dali_image_reader"

    def __post_init__(self) -> None:
        check(self.dali_batch_size, self.num_threads, self.image_ids, self.on_error)
        self.resources = Resources(gpus=self.num_gpus_per_worker) if wants_gpu(self.device) else Resources()
        self._loader: TaskLoader | None = None

    def inputs(self) -> tuple[list[str], list[str]]:
        """What a task must have: as its reader."""
        return [], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """What the batches have."""
        return ["data"], ["image_data", "image_path", "image_id", "metadata"]

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Prepare a worker. The decoder is built with the first task, and stays."""
        if self._loader is None:
            self._loader = TaskLoader(
                image_ids=self.image_ids,
                on_error=self.on_error,
                num_threads=self.num_threads,
                batch_size=self.dali_batch_size,
                device=resolve_device(self.device),
                max_pixels=self.max_pixels,
            )

    def teardown(self) -> None:
        """Drop the decoder."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def stream(self, task: FileGroupTask) -> Iterator[NemoImageBatch]:
        """The batches of a task, one after the other, each decoded while its predecessor is used.

        Raises:
            ValueError: The task has no files.
            SourceError, ImageError: With `on_error="raise"`.
        """
        self.setup()
        assert self._loader is not None
        return emit(task, ((batch, errors, []) for batch, errors in self._loader.load(task)))

    def process(self, task: FileGroupTask) -> list[NemoImageBatch]:
        """All batches of a task."""
        batches = list(self.stream(task))
        report(self, batches, self.verbose)
        return batches

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loader": None}  # threads and pipelines stay behind


@checked
def check(
    dali_batch_size: Count,
    num_threads: Count | None,
    image_ids: Literal["key", "shard/key"],
    on_error: Literal["skip", "raise"],
) -> None:
    """Refuse what the stages cannot take, when they are made and not in a worker.

    Raises:
        ValueError: The argument is named, with the values that are allowed.
    """


def report(stage: ProcessingStage, batches: list[NemoImageBatch], verbose: bool) -> None:
    """Log what a task left out, and give the counts to NeMo Curator's measurements of the stage."""
    failed = [row for batch in batches for row in batch._metadata.get(ERRORS, [])]
    dropped = sum(len(batch._metadata.get(DROPPED, [])) for batch in batches)
    kept = sum(len(batch.data) for batch in batches)
    stage._log_metrics({"images": kept, "failed": len(failed), "dropped": dropped})
    for row in failed if verbose else ():
        logger.warning("left out: image %r (%s): %s", row["image_id"], row["image_path"], row["reason"])
    if failed and not verbose:
        first = failed[0]
        logger.warning(
            "%d of %d images left out; the first: %s: %s",
            len(failed), kept + dropped + len(failed), first["image_path"] or first["shard"], first["reason"],
        )  # fmt: skip

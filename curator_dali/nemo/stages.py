"""Stages of NeMo Curator: `DaliImageReaderStage`, and `DaliCurationStage`, which does all in one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import FileGroupTask
from nemo_curator.tasks import ImageBatch as NemoImageBatch
from numpy.typing import NDArray

from curator_dali.arguments import Count, checked
from curator_dali.arrays import resolve_device
from curator_dali.batch import ImageBatch
from curator_dali.curation import DECODE_CHECK_VIEW, add_columns
from curator_dali.decoding import MAX_PIXELS
from curator_dali.errors import StageError
from curator_dali.nemo.tasks import DROPPED, ERRORS, SCORES, Errors, TaskLoader, emit, wants_gpu
from curator_dali.stages import STAGES, GlobalSelector, Plan, Stage, make_plan

logger = logging.getLogger(__name__)

_Step = tuple[ImageBatch | None, Errors, Errors]
"""A batch, the images that failed since the one before it, and those that were dropped; see `emit`."""


class _LoadingStage(ProcessingStage[FileGroupTask, NemoImageBatch]):  # type: ignore[misc]
    """A stage whose worker keeps a loader."""

    _is_abstract_root = True  # so that NeMo Curator registers no such stage, but those derived from it
    _loader: TaskLoader | None

    def __post_init__(self) -> None:
        _check(self.dali_batch_size, self.num_threads, self.image_ids, self.on_error)
        self.resources = Resources(gpus=self.num_gpus_per_worker) if wants_gpu(self.device) else Resources()
        self._loader = None

    def inputs(self) -> tuple[list[str], list[str]]:
        """What a task must have: as NeMo Curator's reader."""
        return [], []

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
        return emit(task, self._load(task))

    def process(self, task: FileGroupTask) -> list[NemoImageBatch]:
        """All batches of a task."""
        batches = list(self.stream(task))
        self._report(batches)
        return batches

    def _report(self, batches: list[NemoImageBatch]) -> None:
        """Log what a task left out, and give the counts to NeMo Curator's measurements of the stage."""
        failed = [row for batch in batches for row in batch._metadata.get(ERRORS, [])]
        dropped = sum(len(batch._metadata.get(DROPPED, [])) for batch in batches)
        kept = sum(len(batch.data) for batch in batches)
        self._log_metrics({"images": kept, "failed": len(failed), "dropped": dropped})
        for row in failed if self.verbose else ():
            logger.warning("left out: image %r (%s): %s", row["image_id"], row["image_path"], row["reason"])
        if failed and not self.verbose:
            first = failed[0]
            logger.warning(
                "%d of %d images left out; the first: %s: %s",
                len(failed), kept + dropped + len(failed), first["image_path"] or first["shard"], first["reason"],
            )  # fmt: skip

    def _load(self, task: FileGroupTask) -> Iterator[_Step]:
        raise NotImplementedError

    def _make_loader(self, device: str, **options: Any) -> TaskLoader:
        """Make the loader of a worker, with further arguments of `ImageLoader`."""
        return TaskLoader(
            image_ids=self.image_ids,
            on_error=self.on_error,
            num_threads=self.num_threads,
            batch_size=self.dali_batch_size,
            device=device,
            max_pixels=self.max_pixels,
            **options,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loader": None}  # threads, pipelines and weights stay behind


@dataclass
class DaliImageReaderStage(_LoadingStage):
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

    def outputs(self) -> tuple[list[str], list[str]]:
        """What the batches have."""
        return ["data"], ["image_data", "image_path", "image_id", "metadata"]

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Prepare a worker. The decoder is built with the first task, and stays."""
        if self._loader is None:
            self._loader = self._make_loader(resolve_device(self.device))

    def _load(self, task: FileGroupTask) -> Iterator[_Step]:
        assert self._loader is not None
        return ((batch, errors, []) for batch, errors in self._loader.load(task))


@dataclass
class DaliCurationStage(_LoadingStage):
    """NeMo Curator's reader, embedding and filter stages in one, and whatever else `curator_dali.stages` has.

    Images are decoded straight to what the models look at, and scored where they lie. To the host come, a batch:
    embeddings, scores and who the images are; pixels only with `keep_images`. Images that a `Filter` drops are told
    in `task._metadata["dropped_images"]`, bad ones in `["image_errors"]`.

    Args:
        stages: In their order, as for `curate()`: `Embed`, `Aesthetic`, `NSFW`, `Filter`, ... None that has to see all
            samples first: remove duplicates with NeMo Curator's own stages, or with `curate()`.
        keep_images: Whether batches carry the decoded images in their own size, as `ImageWriterStage` wants them.
        metadata: Fields of the samples' metadata that stages read, with the type of each: "bool", "int64", "float64"
            or "string".

    The other arguments are those of `DaliImageReaderStage`; but a worker asks for a whole GPU, where it uses one.

    Raises:
        StageError: The stages do not fit together; the missing field is named.
        ValueError: An argument is out of its range.
    """

    stages: Sequence[Stage]
    keep_images: bool = False
    metadata: Mapping[str, str] = field(default_factory=lambda: {"caption": "string"})
    dali_batch_size: int = 100
    verbose: bool = False
    num_threads: int | None = None
    num_gpus_per_worker: float = 1.0
    device: str = "auto"
    image_ids: Literal["key", "shard/key"] = "key"
    on_error: Literal["skip", "raise"] = "skip"
    max_pixels: int = MAX_PIXELS
    name: str = "dali_curation"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._plan: Plan = make_plan(self.stages, self.metadata, list(STAGES.values()))
        for stage in self.stages:
            if isinstance(stage, GlobalSelector):
                raise StageError(
                    f"{stage.name} decides when it has seen all samples, and a NeMo Curator stage sees one task: "
                    "use NeMo Curator's own deduplication behind this stage, or curate()"
                )

    def outputs(self) -> tuple[list[str], list[str]]:
        """What the batches have."""
        scores = [name for name in SCORES if name in self._plan.columns]
        made = ["embedding"] * self._plan.embeds + ["image_data"] * self.keep_images
        return ["data"], ["image_path", "image_id", "metadata", *made, *scores]

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the weights. The decoder is built with the first task; both stay.

        Raises:
            CuratorDaliError: Weights are missing; the message says where they were looked for.
            StageError: A model does not fit those before it.
        """
        if self._loader is not None:
            return
        device = resolve_device(self.device)
        if device != "cpu":
            import torch

            torch.cuda.set_device(device)  # a worker is a process of its own
        self._plan.setup(device)
        self._loader = self._make_loader(
            device,
            transforms=() if self.keep_images else None,
            views=self._plan.views or (() if self.keep_images else (DECODE_CHECK_VIEW,)),
            keep_encoded=self._plan.reads_bytes,
        )

    def _load(self, task: FileGroupTask) -> Iterator[_Step]:
        assert self._loader is not None
        for batch, errors in self._loader.load(task):
            dropped: Errors = []
            if batch is not None:
                add_columns(batch, self._plan.metadata, self.metadata)
                batch = self._plan.run(batch, partial(self._drop, dropped))
                for field in self._plan.metadata:
                    del batch.columns[field]  # the metadata has them, as they came
            yield batch, errors, dropped

    def _drop(
        self, records: Errors, number: int, batch: ImageBatch, dropped: NDArray[np.bool_], reasons: NDArray[np.object_]
    ) -> None:
        for row in np.flatnonzero(dropped).tolist():
            item, label = batch[row], self._plan.labels[number]
            records.append(
                {"image_id": item.image_id, "image_path": item.image_path, "stage": label, "reason": str(reasons[row])}
            )


@checked
def _check(
    dali_batch_size: Count,
    num_threads: Count | None,
    image_ids: Literal["key", "shard/key"],
    on_error: Literal["skip", "raise"],
) -> None:
    """Refuse what the stages cannot take, when they are made and not in a worker.

    Raises:
        ValueError: The argument is named, with the values that are allowed.
    """

"""`Worker`: the loader and stages of one process; and the executors that have workers do parts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageBatch
from curator_dali.curation.config import Settings
from curator_dali.curation.rows import DECODE, Output, Rows, Writing, add_columns
from curator_dali.decoding import Decoded
from curator_dali.loader import ImageLoader
from curator_dali.outputs import Part
from curator_dali.sampling import Range
from curator_dali.sources import Source
from curator_dali.stages import Plan, Selector
from curator_dali.transforms import Resize

__all__ = ["GLANCE", "Executor", "LocalExecutor", "Mapper", "Worker"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

GLANCE = (Resize((32, 32), "linear"),)
"""The view where no stage wants one: a sample is kept only if it decodes."""


@dataclass
class Worker:
    """Takes parts of a source through the stages, and writes what comes out.

    One process has one worker, which loads its weights and builds its decoder once, however many parts it does. It
    pickles, without these: another process loads its own when it first runs.

    Attributes:
        source: The data set.
        plan: Its stages.
        types: Type of each metadata field that becomes a column.
        output: Where to.
        device: "cpu" or "cuda:N".
        dim: Width of the embeddings to write; 0 for none.
        loading: How to load; what they say of writing is `output`'s.
    """

    source: Source
    plan: Plan
    types: Mapping[str, str]
    output: Output
    device: str
    dim: int
    loading: Settings
    _loader: ImageLoader | None = field(default=None, init=False, repr=False)

    def run(
        self, parts: Sequence[Range], finished: Callable[[Part], object], progress: Callable[[int], object]
    ) -> None:
        """Do parts, in order.

        Args:
            parts: Ranges of the source.
            finished: Called in another thread with each part that is written and recorded.
            progress: Called with the number of samples decided since the last call.

        Raises:
            OutputError: Something could not be written; parts that are finished stay.
            SourceError: A sample cannot be read now.
            TooManyErrors: See `curate`.
            StageError: The stages, which are set up here where they are not yet, do not fit together.
        """
        self.plan.setup(self.device)
        waiting = iter(parts)
        part = next(waiting, (0, 0))
        with _current(self.device), Writing(self.output, finished) as writing:
            # a sample that cannot be read now must not count as a bad image for good
            steps = self._load().over(parts, refuse_unread=True)
            try:
                while True:
                    began = time.perf_counter()
                    step = next(steps, None)
                    if step is None:
                        break
                    decoded, batch = step
                    if not part[0] <= decoded.encoded.indices[0] < part[1]:
                        part = next(waiting)
                    rows = Rows.of(decoded, self.plan.columns)
                    rows.seconds[DECODE] += time.perf_counter() - began
                    if batch is not None:
                        try:
                            self._take_through(batch, decoded, rows)
                        except Exception:
                            first, last = decoded.encoded.indices[[0, -1]].tolist()
                            logger.error("samples %d to %d of %s could not be curated", first, last, self.source.name)
                            raise
                    writing.put(part, rows)
                    progress(len(rows))
                    del decoded, batch, step, rows  # or they live on while the next one is waited for
            finally:
                steps.close()

    def close(self) -> None:
        """Drop the decoder. May be called again."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loader": None}

    def _load(self) -> ImageLoader:
        if self._loader is None:
            how = self.loading
            self._loader = ImageLoader(
                self.source,
                batch_size=how.batch_size,
                device=self.device,
                transforms=None,
                views=self.plan.views or (GLANCE,),
                prefetch=how.prefetch,
                num_threads=how.num_threads,
                max_error_rate=how.max_error_rate,
                # with all members, a sidecar that cannot be read now shows before a stage asks for its fields
                keep_encoded=self.output.tars or self.plan.reads_bytes or bool(self.plan.metadata),
                max_pixels=how.max_pixels,
            )
            self._loader.max_errors = 0  # the rows have them
        return self._loader

    def _take_through(self, batch: ImageBatch, decoded: Decoded, rows: Rows) -> None:
        """One batch through all stages; `rows` get to know what becomes of it."""
        at = decoded.rows
        embedded = max((n for n, stage in enumerate(self.plan.stages) if "embeddings" in stage.writes), default=-1)

        def drop(number: int, batch: ImageBatch, goes: NDArray[np.bool_], reasons: NDArray[np.object_]) -> None:
            nonlocal at
            stage, why = self.plan.stages[number], reasons[goes].tolist()
            assert isinstance(stage, Selector)
            # embeddings count from the last stage that makes them: those of an earlier model are of another space
            rows.record(at, batch, self.dim if number > embedded else 0, goes)
            rows.decide(at[goes], "dropped", self.plan.labels[number], why, [stage.kind(reason) for reason in why])
            at = at[~goes]

        rows.misfits = add_columns(batch, self.plan.metadata, self.types)
        batch = self.plan.run(batch, drop, rows.spend)
        if len(batch):
            rows.record(at, batch, self.dim)
            rows.keep(at, batch.encoded if self.output.tars else None)


@contextmanager
def _current(device: str) -> Iterator[None]:
    """Make a GPU the current one of torch."""
    if device == "cpu":
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


class Mapper(Protocol):
    """Other processes, on machines that all see the output's folder.

    Attributes:
        device: What a function finds there to compute on: "cpu", or "cuda:0".
    """

    device: str

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of a function for each item, in their order.

        Args:
            function: Of the item alone; it may be run more than once for one, where a process died. It pickles, and so
                do the items and what it gives.
            items: Taken as they are needed: few are under way at a time.
        """


class Executor(Protocol):
    """Has parts done by workers, in any order, each exactly once."""

    def run(
        self,
        worker: Worker,
        parts: Sequence[Range],
        finished: Callable[[Part], object],
        progress: Callable[[int], object],
    ) -> None:
        """Do parts.

        Args:
            worker: What does a part; it pickles.
            parts: Ranges of its source.
            finished: Called with each part that is written and recorded.
            progress: Called with the number of samples decided since the last call.
        """

    def mapper(self) -> AbstractContextManager[Mapper | None]:
        """Processes for what is decided of all samples; None: this one alone. What is under way ends with the block."""


class LocalExecutor:
    """This process, part after part."""

    def run(
        self,
        worker: Worker,
        parts: Sequence[Range],
        finished: Callable[[Part], object],
        progress: Callable[[int], object],
    ) -> None:
        """Do parts; see `Executor.run`."""
        try:
            worker.run(parts, finished, progress)
        finally:
            worker.close()

    def mapper(self) -> AbstractContextManager[Mapper | None]:
        """None."""
        return nullcontext()

"""`Worker`: the loader and stages of one process; and the executors that have workers do parts."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays, dali
from curator_dali.batch import ImageBatch
from curator_dali.curation.config import Settings
from curator_dali.curation.fields import add_columns, add_misfits, make_fields
from curator_dali.curation.rows import Output, Rows, Writing
from curator_dali.curation.screen import PlanScreen, Screened, add_header_columns
from curator_dali.curation.write import STAGE, Encoder
from curator_dali.decoding import Decoded
from curator_dali.errors import OutputError
from curator_dali.io import store
from curator_dali.loader import ImageLoader
from curator_dali.outputs import DECODE, Part
from curator_dali.sampling import Range, StreamedRanges
from curator_dali.sources import Source
from curator_dali.stages import Plan, Selector, View, Workers
from curator_dali.transforms import Resize

logger = logging.getLogger(__name__)

Parts = Sequence[Range] | StreamedRanges
"""Ranges of a source. `StreamedRanges`, where tars are not indexed yet, can only be iterated over."""

Finished = Callable[[Part], object]
"""Called with each part that is written and recorded."""

Progress = Callable[[int], object]
"""Called with the number of samples decided, or written, since the last call."""

DECODE_CHECK_VIEW = (Resize((32, 32), "linear"),)
"""The view where no stage wants one: a sample is kept only if it decodes."""

_REMOVAL_DELAYS = (0.0, 0.5, 2.0)  # a process that is being ended may still write


@dataclass
class Worker:
    """Takes parts of a source through the stages, and writes what comes out.

    One process has one worker, which loads its weights and builds its decoder once, however many parts it does. It
    pickles, without these: another process loads its own when it first runs.

    Attributes:
        source: The data set.
        plan: Its stages.
        types: Type of each metadata field that becomes a column.
        output: Where to, and with which settings.
        device: "cpu" or "cuda:N".
    """

    source: Source
    plan: Plan
    types: Mapping[str, str]
    output: Output
    device: str
    _loader: ImageLoader | None = field(default=None, init=False, repr=False)
    _encoder: Encoder | None = field(default=None, init=False, repr=False)

    def run(self, parts: Parts, finished: Finished, progress: Progress) -> None:
        """Do parts, which are ranges of the source, in order. `finished` is called in another thread.

        Raises:
            OutputError: Something could not be written; parts that are finished stay.
            SourceError: A sample cannot be read now.
            TooManyErrors: See `curate`.
            StageError: The stages, which are set up here where they are not yet, do not fit together.
        """
        self.plan.setup(self.device)
        waiting = parts.begun if isinstance(parts, StreamedRanges) else deque(parts)
        part = (0, 0)
        with _current(self.device), Writing(self.output, finished) as writing:
            # a sample that cannot be read now must not count as a bad image for good
            steps = self._load().over(parts, refuse_unread=True, screen=self._screen())
            try:
                while True:
                    began = time.perf_counter()
                    step = next(steps, None)
                    if step is None:
                        break
                    decoded, batch = step
                    while not part[0] <= decoded.encoded.indices[0] < part[1]:
                        part = waiting.popleft()
                    rows = Rows.from_step(decoded, self.output.settings.add_written(self.plan.columns))
                    rows.seconds[DECODE] += time.perf_counter() - began
                    if decoded.screened is not None:
                        self._record_screened(decoded.screened, rows)
                    if batch is not None:
                        try:
                            self._take_through(batch, decoded, rows)
                        except Exception:
                            first, last = decoded.encoded.indices[[0, -1]].tolist()
                            logger.error("samples %d to %d of %s could not be curated", first, last, self.source.name)
                            raise
                    if self.output.schema.fields:
                        metadata = [item.metadata for item in decoded.encoded.objects]
                        wanted = self.output.settings.field_names
                        rows.fields = make_fields(metadata, rows.columns, self.output.schema.fields, wanted)
                        del metadata
                    writing.put(part, rows)
                    progress(len(rows))
                    del decoded, batch, step, rows  # or they live on while the next one is waited for
            finally:
                steps.close()

    def close(self) -> None:
        """Drop the decoder and the threads that encode. May be called again."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loader": None, "_encoder": None}

    def _load(self) -> ImageLoader:
        if self._loader is None:
            settings = self.output.settings
            self._loader = ImageLoader(
                self.source,
                batch_size=settings.batch_size,
                device=self.device,
                transforms=None,
                views=self._views or (DECODE_CHECK_VIEW,),
                prefetch=settings.prefetch,
                num_threads=settings.num_threads,
                max_error_rate=settings.max_error_rate,
                # with all members, a sidecar that cannot be read now shows before a stage asks for its fields
                keep_encoded=settings.tars or self.plan.reads_bytes or self._reads_metadata,
                max_pixels=settings.max_pixels,
            )
            self._loader.max_errors = 0  # the rows have them
        return self._loader

    def _screen(self) -> PlanScreen | None:
        """Make the screen that leaves images out before decoding; None where no stage can."""
        settings = self.output.settings
        if not self.plan.screening:
            return None
        return PlanScreen(self.plan, self.types, self.source.name, settings.max_pixels)

    @property
    def _reads_metadata(self) -> bool:
        return bool(self.plan.metadata or self.output.schema.fields)

    @property
    def _views(self) -> tuple[View, ...]:
        """The views of the stages, and the one that is encoded."""
        encoding = self.output.settings.encoding
        return self.plan.views if encoding is None else tuple(dict.fromkeys((*self.plan.views, encoding.view)))

    def _record_screened(self, screened: Screened, rows: Rows) -> None:
        """Let the rows know of the images that were left out before they were decoded."""
        begin = 0
        for number, at, reasons in screened.dropped:
            batch = screened.batch[begin : begin + len(at)]
            begin += len(at)
            add_misfits(rows.misfits, add_columns(batch, self.plan.metadata, self.types))
            rows.record(at, batch, 0)
            stage = self.plan.stages[number]
            assert isinstance(stage, Selector)
            rows.decide(at, "dropped", self.plan.labels[number], reasons, [stage.kind(reason) for reason in reasons])
        for label, seconds in screened.seconds.items():
            rows.add_time(label, seconds)

    def _take_through(self, batch: ImageBatch, decoded: Decoded, rows: Rows) -> None:
        """Take one batch through all stages; `rows` get to know what becomes of it."""
        at, dim = decoded.rows, self.output.schema.embedding_dim
        embedded = max((n for n, stage in enumerate(self.plan.stages) if "embeddings" in stage.writes), default=-1)

        def drop(number: int, batch: ImageBatch, dropped: NDArray[np.bool_], reasons: NDArray[np.object_]) -> None:
            nonlocal at
            stage, given = self.plan.stages[number], reasons[dropped].tolist()
            assert isinstance(stage, Selector)
            # embeddings count from the last stage that makes them: those of an earlier model are of another space
            rows.record(at, batch, dim if number > embedded else 0, dropped)
            kinds = [stage.kind(reason) for reason in given]
            rows.decide(at[dropped], "dropped", self.plan.labels[number], given, kinds)
            at = at[~dropped]

        add_misfits(rows.misfits, add_columns(batch, self.plan.metadata, self.types))
        add_header_columns(batch, self.plan.derived, decoded.encoded.headers[decoded.rows])
        screened = decoded.screened
        first = self.plan.screening if screened is not None and screened.complete else 0
        settings = self.output.settings
        pixels = None if settings.encoding is None else batch.views[settings.encoding.view]
        batch = self.plan.run(batch, drop, rows.add_time, first)
        if len(batch):
            rows.record(at, batch, dim)
            rows.keep(at, batch.encoded if settings.tars else None)
            if settings.encoding is not None:
                self._encoder = self._encoder or make_encoder(settings, self.device)
                began = time.perf_counter()
                encode_rows(self._encoder, rows, at, decoded, at, pixels)
                rows.add_time(STAGE, time.perf_counter() - began)


def make_encoder(settings: Settings, device: str) -> Encoder:
    """Start the threads that encode the images of a run, as many as those that decode."""
    assert settings.encoding is not None
    return Encoder(settings.encoding, settings.num_threads or dali.default_threads(device))


def encode_rows(
    encoder: Encoder,
    rows: Rows,
    at: NDArray[np.int64],
    decoded: Decoded,
    samples: NDArray[np.int64],
    pixels: Any,
) -> None:
    """Begin to encode the images of kept rows.

    Args:
        encoder: The threads.
        rows: Rows that are kept, and others; they have the members of those that are kept.
        at: (M,) the rows that are kept.
        decoded: A step with all their images.
        samples: (M,) the rows of the step that they have.
        pixels: `Write.view` of the images that decoded, on the device.
    """
    places = np.searchsorted(decoded.rows, samples)  # (M,) among the images that decoded
    kept, encoded = samples.tolist(), decoded.encoded
    assert encoded.members is not None
    futures = encoder.submit(
        arrays.to_host([pixels[place] for place in places.tolist()]),
        [encoded.objects[row].image_path for row in kept],
        [encoded.members[row] for row in kept],
        encoded.headers[samples],
        decoded.sizes[places],
    )
    rows.encoding = list(zip(at.tolist(), futures, strict=True))


def _current(device: str) -> AbstractContextManager[object]:
    """Make a GPU the current one of torch."""
    if device == "cpu":
        return nullcontext()
    import torch

    return torch.cuda.device(device)


class Executor(Protocol):
    """Has parts done by workers, in any order, each exactly once."""

    def run(self, worker: Worker, parts: Parts, finished: Finished, progress: Progress) -> None:
        """Do parts.

        Args:
            worker: What does a part; it pickles.
            parts: Ranges of its source.
            finished: See `Finished`.
            progress: See `Progress`.
        """

    def workers(self, folder: str) -> AbstractContextManager[Workers | None]:
        """Processes for what is decided of all samples; None: this one alone. What is under way ends with the block.

        Args:
            folder: For their files; it need not be there, and is gone before and afterwards.
        """


class LocalExecutor:
    """This process, part after part."""

    def run(self, worker: Worker, parts: Parts, finished: Finished, progress: Progress) -> None:
        """Do parts; see `Executor.run`."""
        try:
            worker.run(parts, finished, progress)
        finally:
            worker.close()

    @contextmanager
    def workers(self, folder: str) -> Iterator[None]:
        """None; see `Executor.workers`."""
        with scratch_folder(folder):
            yield


@contextmanager
def scratch_folder(folder: str) -> Iterator[str]:
    """Have a folder for passing files, without what a killed run left in it; it goes away with the block."""
    _remove_folder(folder)
    try:
        yield folder
    finally:
        _remove_folder(folder)


def _remove_folder(folder: str) -> None:
    for delay in _REMOVAL_DELAYS:
        time.sleep(delay)
        try:
            store.remove_folder(folder)
            return
        except OutputError as error:
            problem = error
    logger.warning("%s; the next run will", problem)

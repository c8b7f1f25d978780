"""`ImageLoader`: a source, an order and a decoder make an iterable of device-resident `ImageBatch`es."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays, dali
from curator_dali.arguments import Count, Natural, Share, checked
from curator_dali.batch import ImageBatch, concat
from curator_dali.decoding import MAX_PIXELS, Decoded, Decoder, Screen, gate, read_gated
from curator_dali.errors import PassEndedError, TooManyErrors
from curator_dali.io import Cache
from curator_dali.loader.prefetch import Pass, Steps, read_ahead
from curator_dali.loader.results import ErrorList, LoaderStats
from curator_dali.loader.state import check_state, is_counted, is_listed, make_state, order_of
from curator_dali.sampling import (
    Buckets,
    Position,
    Range,
    RangeSteps,
    Shard,
    Shuffle,
    StreamedOrder,
    StreamedRanges,
    StreamedSteps,
    range_steps,
)
from curator_dali.sources import EncodedBatch, Source, Streamed, open_source
from curator_dali.threads import uninterrupted
from curator_dali.transforms import Transform, bring_to, output_size
from curator_dali.view import loader_html

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_MIN_SEEN = 100  # samples before `max_error_rate` is judged, unless the pass ends before


class ImageLoader:
    """Load images from anywhere into `ImageBatch`es on a device, in a reproducible order, losing nothing.

    Args:
        source: A folder, glob, brace list (`shards/{00000..00099}.tar`), Parquet file, URL, a list of these, or a
            `Source`.
        batch_size: Samples a batch; fewer where images are bad and at the end.
        device: "auto" (the current GPU, else the CPU), "cpu", "cuda" or "cuda:N", as PyTorch names them.
        transforms: `curator_dali.transforms`, run on the device in DALI. With a fixed output size a batch's
            `images` is one contiguous array; otherwise a list of (H_i, W_i, 3), or an array where all are alike.
            None makes no `images`, only `views`.
        views: Further sequences of transforms, made by the same decode: `batch.views[sequence]`.
        shuffle: A seed or a `Shuffle`; None keeps the source's order.
        shard: `Shard(rank, world_size)`, or "torch" for torch.distributed's or torchrun's; alone, 0 of 1.
        on_error: "skip" leaves bad images out and records them in `errors`; "raise" raises the first.
        max_error_rate: With "skip", the share of bad images (0 to 1) above which `TooManyErrors` is raised, judged
            from the 100th sample on and at the end.
        prefetch: Batches under way or waiting at once, besides the consumer's.
        num_threads: Decoding threads; None takes the CPUs this process may use, for a GPU at most 16.
        keep_encoded: Whether batches keep their members' original bytes in `encoded`.
        max_pixels: Larger images are refused by their header.
        buckets: Bring images to the nearest of some sizes, and make batches of one size each: see `Buckets` and
            `BucketedOrder`. Reads every image of the source once, for its size, when the order is first needed.
        drop_last: Leave out the steps at the end of the epoch (of each bucket) that are not full on every rank.
        cache: Where this node keeps what is read of remote files, for all its ranks and later epochs.

    Attributes:
        errors: The first `max_errors` bad images of the pass, as `ImageError`s; `stats.failed` counts all.
        max_errors: 10,000; may be set. All those of a large data set would fill the memory.
        stats: What the pass did so far, and how long it took.
        follows_torch: Whether `shard` was "torch".

    Raises:
        ValueError: An argument is out of its range or of another type; before anything is read.
        TypeError: A keyword that there is not; `DataLoader`'s are answered with the word used here.
        SourceError: The source cannot be opened.

    `iter(loader)` starts a pass over the current epoch, from its beginning or, once after `load_state_dict`, from
    where the state was taken. Batches in which every image is bad are left out. A loader has one pass at a time: an
    iterator whose pass was ended by another `iter(loader)`, `set_epoch`, `load_state_dict` or `close` raises
    `PassEndedError` when it is asked for a batch.
    """

    max_errors = 10_000

    @checked
    def __init__(
        self,
        source: Any,
        *,
        batch_size: Count = 256,
        device: str | torch.device = "auto",
        transforms: Transform | Sequence[Transform] | None = (),
        views: Sequence[Sequence[Transform]] = (),
        shuffle: bool | int | Shuffle | None = None,
        shard: Shard | Literal["torch"] | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        max_error_rate: Share | None = None,
        prefetch: Count = 2,
        num_threads: Count | None = None,
        keep_encoded: bool = False,
        max_pixels: Count = MAX_PIXELS,
        buckets: Buckets | None = None,
        drop_last: bool = False,
        cache: Cache | None = None,
    ) -> None:
        if isinstance(transforms, Transform):
            transforms = (transforms,)
        if buckets is not None:
            transforms = bring_to(buckets, transforms)
        self.transforms = None if transforms is None else tuple(transforms)
        views = tuple(views)
        for sequence in views:
            if not isinstance(sequence, (list, tuple)):
                raise TypeError(f"views has {sequence!r}; give sequences of transforms, as [(Resize(224),)]")
        self.views = tuple(dict.fromkeys(map(tuple, views)))
        if not self._outputs:
            raise ValueError("transforms=None makes no images: name what to make in views=, or leave it out")
        for sequence in self._outputs:
            output_size(sequence)  # refuses a wrong sequence before any work
        self.batch_size, self.on_error, self.max_error_rate = batch_size, on_error, max_error_rate
        self.device = arrays.resolve_device(device)
        if isinstance(shuffle, bool):  # as PyTorch's DataLoader has it; as a number False would be a seed
            shuffle = Shuffle() if shuffle else None
        self.shuffle = Shuffle(shuffle) if isinstance(shuffle, int) else shuffle
        self.shard = Shard.from_torch() if shard == "torch" else shard or Shard()
        self.follows_torch = shard == "torch"
        self.buckets, self.drop_last = buckets, drop_last
        self.source: Source = open_source(source, cache=cache)
        self._owns_source = self.source is not source
        self._prefetch, self._keep_encoded, self._max_pixels = prefetch, keep_encoded, max_pixels
        self._num_threads = num_threads or dali.default_threads(self.device)
        run = batch_size * self.shard.world_size
        self._order = order_of(self.source, self.shuffle, buckets, run, max_pixels)
        self._epoch = 0
        self._position = 0  # consumed by all ranks together
        self._resume = 0  # position where the next pass starts
        self._decoder: Decoder | None = None
        self._pass: Pass | None = None
        self.errors = ErrorList()
        self.stats = LoaderStats()

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, over all ranks. Waits until all tars are indexed; see `is_counted`."""
        return self._order.num_samples

    @property
    def is_counted(self) -> bool:
        """Whether `num_samples` and `len()` are known; false for remote tars of which some are not indexed yet."""
        return is_counted(self._order)

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank. Waits until all tars are indexed; see `is_counted`."""
        return self._order.count(self._epoch, 0, self.batch_size, self.shard, self.drop_last)

    @property
    def position(self) -> Position:
        """Where the consumer stands, counted over all ranks."""
        return Position(self.shuffle.seed if self.shuffle else None, self._epoch, self._position)

    @checked
    def set_epoch(self, epoch: Natural) -> None:
        """Choose the epoch of the next pass, and so its order.

        The epoch that `load_state_dict` restored is resumed where it was left; any other starts at its beginning.
        """
        self._stop_pass()
        if epoch != self._epoch:
            self._epoch, self._resume = epoch, 0
        self._position = self._resume

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands, as plain JSON. The same on every rank after the same number of steps.

        Does not wait. While tars are not indexed yet, `num_samples` is None, and the fingerprint is that of the tars'
        names, sizes and content hashes; such a state is loaded as any other, also once all are indexed.
        """
        return make_state(self.source, self._order, self._epoch, self._position, not self.is_counted)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, also with another world size, batch size or device.

        Raises:
            ValueError: The state is of another data set, another seed, mixture or buckets, or another version.
        """
        listed = isinstance(self._order, StreamedOrder) and is_listed(state)
        check_state(state, make_state(self.source, self._order, self._epoch, self._position, listed))
        self._stop_pass()
        self._order = self._order.resume(state)
        self._epoch, self._position, self._resume = state["epoch"], state["position"], state["position"]

    def __iter__(self) -> Iterator[ImageBatch]:
        return (batch for _, batch in self.steps() if batch is not None)

    def steps(self) -> Iterator[tuple[Decoded, ImageBatch | None]]:
        """A pass as `iter(loader)`, but with every step: also those in which every image is bad, without a batch.

        For loops in which all ranks make the same number of steps. `Decoded.rows` says which of the step's samples
        the batch holds.
        """
        self._stop_pass()
        steps = self._begin_steps()  # here and not in a thread, so that Ctrl-C ends it
        self._position, self._resume = self._resume, 0
        return self._load(steps, self._read_from, moves=True)

    def over(
        self,
        ranges: Sequence[Range] | StreamedRanges,
        source: Source | None = None,
        *,
        refuse_unread: bool = False,
        screen: Screen | None = None,
    ) -> Generator[tuple[Decoded, ImageBatch | None], None, None]:
        """A pass over ranges of samples, in the source's order, with this loader's decoder; epoch and position stay.

        To build a decoder costs as much as to decode a small shard: one loader can do many ranges, of many sources.

        Args:
            ranges: [start, stop) of sample indices. A step lies within one range. Tars without an index are read ahead
                where the ranges are `StreamedRanges`.
            source: Another source than the loader's, which the caller closes.
            refuse_unread: Raise for a sample that cannot be read now, which otherwise counts as a bad image.
            screen: Leaves images out before they are decoded; experimental.

        Yields:
            Every step, as `steps` does; `columns["index"]` of a batch has the samples' indices.

        Raises:
            SourceError: A sample cannot be read now, with `refuse_unread`.
        """
        source = source or self.source
        if isinstance(ranges, StreamedRanges):
            ahead, waiting = read_ahead(source, ranges.shards), RangeSteps(ranges, self.batch_size)
            steps = Steps(waiting, ahead, waiting.find_missing, lambda indices, end: ranges.find_used(indices[-1] + 1))
        else:
            steps = Steps(range_steps(ranges, self.batch_size))
        for decoded, batch in self._load(steps, source, refuse_unread=refuse_unread, screen=screen):
            if batch is not None:
                batch.columns["index"] = decoded.indices
            yield decoded, batch

    def indices(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Return the sample indices of each step of the next pass, and the position behind it; nothing is read."""
        steps, places = self._make_steps(), self._places
        if places is None:
            return steps
        assert places.sizes is not None  # waits until all are known
        return ((places.indices_of(found), end) for found, end in steps)

    def walk(self) -> Iterator[NDArray[np.int64]]:
        """Begin a pass whose samples somebody else reads, for `decode`; yield the sample indices of each step."""
        self._stop_pass()
        steps = self.indices()
        self._position, self._resume = self._resume, 0
        self.errors, self.stats = ErrorList(), LoaderStats()
        for indices, end in steps:
            self._position = end
            yield indices

    def decode(self, encoded: EncodedBatch) -> tuple[Decoded, ImageBatch | None]:
        """Decode a step that was read outside of the loader; the batch is None where every image is bad."""
        if self._decoder is None:
            self._decoder = self._make_decoder()
        if (places := self._places) is not None:  # from these random transforms follow
            encoded = replace(encoded, indices=places.places_of(encoded.indices))
        decoded = self._decoder.decode(gate(encoded, self._max_pixels), self._key)
        self.stats.samples += len(decoded.rows)
        self.stats.failed += len(decoded.errors)
        self._record(decoded, self.errors, places)
        return decoded, self._batch(decoded, 0, self.source.name) if len(decoded.rows) else None

    @property
    def _outputs(self) -> list[tuple[Transform, ...]]:
        """What the decoder makes: the images, then the views."""
        return [*([] if self.transforms is None else [self.transforms]), *self.views]

    @property
    def _places(self) -> Streamed | None:
        """The tars that know the places of samples, where the order's steps are places; see `Streamed.by_place`."""
        is_placed = isinstance(self._order, StreamedOrder) and self._order.has_places
        return self.source.streamed if is_placed else None

    @property
    def _read_from(self) -> Source:
        """The source that reads what the order's steps are."""
        places = self._places
        return self.source if places is None else places.by_place()

    def _make_steps(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        self._order.prepare(self._epoch)
        return self._order.steps(self._epoch, self._resume, self.batch_size, self.shard, self.drop_last)

    def _begin_steps(self) -> Steps:
        """Make the steps of a pass; tars that are not indexed are read ahead from here on."""
        steps = self._make_steps()
        if not isinstance(steps, StreamedSteps):
            return Steps(steps)
        stream = read_ahead(self.source, steps.shards)
        return Steps(steps, stream, steps.find_missing, lambda indices, end: steps.find_used(end))

    @property
    def _key(self) -> tuple[int, int]:
        """Seed and epoch. Random transforms follow from these and the sample, or its place with a window over tars."""
        return (self.shuffle.seed if self.shuffle else 0, self._epoch)

    def _make_decoder(self) -> Decoder:
        dali.check_process()
        return Decoder(
            batch_size=self.batch_size,
            device=self.device,
            num_threads=self._num_threads,
            outputs=self._outputs,
            depth=self._prefetch,
            max_pixels=self._max_pixels,
        )

    def _load(
        self,
        steps: Steps,
        source: Source,
        *,
        moves: bool = False,
        refuse_unread: bool = False,
        screen: Screen | None = None,
    ) -> Iterator[tuple[Decoded, ImageBatch | None]]:
        """Start a pass over steps; `moves` says whether the loader's position goes along."""
        self._stop_pass()
        self.errors, self.stats = ErrorList(), LoaderStats()
        try:
            if self._decoder is None:
                self._decoder = self._make_decoder()
            with uninterrupted():  # a pass that nobody knows of could not be stopped
                running = self._pass = Pass(
                    steps, source, self._decoder, self._prefetch, self._keep_encoded, self._key, screen
                )
        except BaseException:  # an interrupt that came meanwhile: nobody will take this pass's batches
            steps.close()
            self._stop_pass()
            raise
        return self._batches(running, source.name, moves, refuse_unread)

    def _batches(
        self, running: Pass, dataset_name: str, moves: bool, refuse_unread: bool
    ) -> Iterator[tuple[Decoded, ImageBatch | None]]:
        began = time.perf_counter()
        stats, errors, seen = self.stats, self.errors, 0
        try:
            for step in itertools.count():
                asked = time.perf_counter()
                item = running.next_batch()
                stats.wait_seconds += time.perf_counter() - asked
                stats.seconds = time.perf_counter() - began
                if item is None:
                    if running.stopped:
                        raise PassEndedError
                    errors.resolve()
                    self._check_error_rate(stats, errors, seen, at_end=True)
                    return
                decoded = item.decoded
                if moves:
                    self._position = item.end
                stats.read_seconds += item.read_seconds
                stats.gate_seconds += item.gate_seconds
                stats.decode_seconds += item.decode_seconds
                stats.bytes += sum(image.nbytes for image in decoded.encoded.images)
                stats.samples += len(decoded.rows)
                stats.failed += len(decoded.errors)
                seen += len(decoded.encoded)
                stats.fallback += decoded.fallback
                if refuse_unread:
                    decoded.encoded.check_read()
                self._record(decoded, errors, self._places if moves else None)
                self._check_error_rate(stats, errors, seen, at_end=False)
                stats.batches += bool(len(decoded.rows))
                yield decoded, self._batch(decoded, step, dataset_name) if len(decoded.rows) else None
        finally:
            running.stop()

    def _record(self, decoded: Decoded, errors: ErrorList, places: Streamed | None) -> None:
        for row in sorted(decoded.errors):
            error = decoded.error(row)
            if places is not None:
                errors.place(error, places)
            if self.on_error == "raise":
                raise error
            logger.debug("left out: %s", error)
            errors.add(error, self.max_errors)

    def _check_error_rate(self, stats: LoaderStats, errors: ErrorList, seen: int, at_end: bool) -> None:
        if self.max_error_rate is None or not seen or (seen < _MIN_SEEN and not at_end):
            return
        if stats.failed > self.max_error_rate * seen:
            raise TooManyErrors(
                f"{stats.failed} of {seen} images are bad, more than max_error_rate={self.max_error_rate} allows; "
                f"the last: {errors.last}"
            )

    def _batch(self, decoded: Decoded, step: int, dataset_name: str) -> ImageBatch:
        encoded, rows = decoded.encoded, decoded.rows.tolist()
        return ImageBatch(
            task_id=f"{self._epoch}_{self.shard.rank}_{step}",
            dataset_name=dataset_name,
            data=[encoded.objects[row] for row in rows],
            images=None if self.transforms is None else decoded.outputs[0],
            encoded=encoded.members and [encoded.members[row] for row in rows],
            views=dict(zip(self.views, decoded.outputs[-len(self.views) :], strict=True)) if self.views else {},
            columns={"width": decoded.sizes[:, 1].astype(np.int32), "height": decoded.sizes[:, 0].astype(np.int32)},
        )

    @checked
    def peek(self, n: int = 16) -> ImageBatch:
        """The first `n` samples of the epoch's order, decoded; consumes nothing and records no errors."""
        positions = np.arange(self._order.reach(max(n, 0), self._epoch), dtype=np.int64)
        samples = self._order.indices(positions, self._epoch) if len(positions) else positions
        steps = (samples[first : first + self.batch_size] for first in range(0, len(samples), self.batch_size))
        with closing(self._make_decoder()) as decoder:
            parts = [self._read_and_decode(decoder, indices) for indices in steps]
        batches = [self._batch(part, step, self.source.name) for step, part in enumerate(parts) if len(part.rows)]
        return concat(batches or [ImageBatch("peek", self.source.name)])

    def stand_in(self, count: int) -> ImageBatch:
        """At most `count` good images for a step that has none: of the step's bucket, the epoch's first.

        A pure function of (data set, seed, epoch, position). Decodes on its own, and consumes nothing.

        Raises:
            TooManyErrors: There is no good image at all.
        """
        last = ""
        with closing(self._make_decoder()) as decoder:
            for indices in self._order.stand_ins(self._epoch, self._position, count):
                decoded = self._read_and_decode(decoder, indices)
                if len(decoded.rows):
                    return self._batch(decoded, 0, self.source.name)
                last = f"; the last: {decoded.error(max(decoded.errors))}"
        raise TooManyErrors(f"none of the {self.num_samples} images can be used{last}")

    def _read_and_decode(self, decoder: Decoder, indices: NDArray[np.int64]) -> Decoded:
        gated = read_gated(self._read_from, indices, self._keep_encoded, self._max_pixels)
        return decoder.decode(gated, self._key)

    def _stop_pass(self) -> None:
        if self._pass is not None:
            self._pass.stop()
            self._pass = None  # not before: if the waiting is interrupted, the next call waits on

    def close(self) -> None:
        """Stop every thread, drop the pipeline, write down what was learnt. May be called again."""
        self._stop_pass()
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        if self._owns_source:
            self.source.close()

    def __enter__(self) -> ImageLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # threads and pipelines stay behind; the copy stands where this loader stands
        return self.__dict__ | {"_decoder": None, "_pass": None, "_resume": self._position}

    def _repr_html_(self) -> str:
        return loader_html(self)

    def __repr__(self) -> str:
        number = f"{self.num_samples:,} " if self.is_counted else ""
        return (
            f"ImageLoader({self.source!r}, {number}in batches of {self.batch_size}, {self.device}, "
            f"epoch {self._epoch}, rank {self.shard.rank} of {self.shard.world_size})"
        )

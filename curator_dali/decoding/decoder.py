"""Encoded bytes to device arrays, in order, through one DALI pipeline; a bad image costs only itself.

The `gate` looks at every header first, so that DALI gets only what its parser takes and Pillow gets the rest.
`Decoder.submit` starts a batch and `Decoder.collect` returns the oldest one; both belong to one thread. A batch that
DALI refuses is decoded again in parts, until the bad images stand alone; these Pillow decodes, or says what is wrong.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curator_dali import dali
from curator_dali.decoding import pillow
from curator_dali.decoding.headers import MAX_PIXELS, Codec, Refusal, inspect, upright_sizes
from curator_dali.errors import ImageError
from curator_dali.sources import HEADER_DTYPE, EncodedBatch, Source
from curator_dali.transforms import Graph, Transform, pixel_graph

_Part = tuple[list[int], list[Any]]
"""Rows, and of each output the arrays."""

# DALI reports everything as RuntimeError: a bad image only where its decoder failed, and not the device. (A damaged
# header can make a decoder ask for absurd amounts of host memory: that bad_alloc is the image's fault.) Where device or
# pinned memory is short, DALI says "CUDA allocation failed" or "Can't allocate 123 bytes on device 0." (its
# cuda_error.h), nvJPEG NVJPEG_STATUS_ALLOCATOR_FAILURE.
_BAD_IMAGE = re.compile(r"operator `nvidia\.dali\.fn\.decoders\.\w+`")
_DEVICE_TROUBLE = re.compile(
    r"cuda (runtime |driver )?(api )?error|cudaerror|cuda_error|out of memory"
    r"|cuda allocation failed|can't allocate \d+ bytes on|allocator_failure",
    re.IGNORECASE,
)
_PARTS = 8  # of a failed batch: halves would decode an image near a bad one eight times, not three
_HW_DECODER_LOAD = 0.65  # the share of JPEGs for a GPU's hardware engine; DALI's default


class Screen(Protocol):
    """Leaves images out before they are decoded. Its methods are called in several threads."""

    def skip(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> NDArray[np.bool_]:
        """Choose images that need not be read.

        Args:
            indices: (N,) int64, the samples' indices in the source.
            headers: (N,) `HEADER_DTYPE`, the known headers; codec 0 where none is known.

        Returns:
            (N,) whether `judge` will leave a sample out.
        """

    def judge(self, gated: Gated, skipped: NDArray[np.bool_]) -> Any:
        """Choose the images to decode: take rows out of `gated.dali` and `gated.pillow`.

        Args:
            gated: A batch whose headers are known.
            skipped: (N,) the result of `skip`: these rows have to go.

        Returns:
            The screen's own record, for `Decoded.screened`.
        """


@dataclass
class Gated:
    """A batch after the gate: which rows DALI decodes, which Pillow, and which nobody.

    Attributes:
        encoded: The batch; its `headers` are filled in.
        dali: Rows for DALI.
        pillow: Rows for Pillow.
        errors: Row -> reason.
        learnt: Rows whose header was not known before.
        screened: The record of a `Screen`; None without one.
        read_seconds: What reading took.
        gate_seconds: What the gate took.
    """

    encoded: EncodedBatch
    dali: list[int]
    pillow: list[int]
    errors: dict[int, str]
    learnt: list[int]
    screened: Any = None
    read_seconds: float = 0.0
    gate_seconds: float = 0.0


@dataclass
class Decoded:
    """A decoded batch: each of `outputs` holds the rows `rows` of the encoded one, in order.

    Attributes:
        encoded: What went in.
        rows: (M,) int64, the rows that decoded.
        outputs: For each of the decoder's outputs one array (M, ...) or a list of M arrays, on the device; None where
            M is 0. Without transforms they are (H_i, W_i, 3) uint8.
        sizes: (M, 2) int64, heights and widths of the upright originals, in pixels.
        errors: Row -> reason.
        fallback: How many Pillow decoded.
        screened: The record of a `Screen`, which left out the rows that are in neither; None without one.
    """

    encoded: EncodedBatch
    rows: NDArray[np.int64]
    outputs: list[Any]
    sizes: NDArray[np.int64]
    errors: dict[int, str] = field(default_factory=dict)
    fallback: int = 0
    screened: Any = None

    @property
    def indices(self) -> NDArray[np.int64]:
        """(M,) int64, the samples' indices in the source."""
        return self.encoded.indices[self.rows]

    def error(self, row: int) -> ImageError:
        """What is wrong with a row of `errors`, and which image that is."""
        encoded = self.encoded
        item = encoded.objects[row]
        return ImageError(
            item.image_id,
            item.image_path,
            encoded.shards[row],
            self.errors[row],
            int(encoded.indices[row]),
            row in encoded.unread,
        )


def gate(encoded: EncodedBatch, max_pixels: int = MAX_PIXELS) -> Gated:
    """Decide from the headers who decodes each image. Runs on any thread.

    Rows in the batch's `errors` are left alone, known headers are not read again, larger images are refused.
    """
    gated = Gated(encoded, [], [], dict(encoded.errors), [])
    headers = encoded.headers
    known, sizes = headers["codec"].tolist(), (headers["height"].astype(np.int64) * headers["width"]).tolist()
    for row, image in enumerate(encoded.images):
        if row in gated.errors:
            continue
        codec = known[row]
        if not codec or sizes[row] > max_pixels:
            header = inspect(image, max_pixels)
            if isinstance(header, Refusal):
                gated.errors[row] = header.reason
                continue
            codec = int(header.codec)
            headers[row] = (header.height, header.width, codec, header.orientation)
            gated.learnt.append(row)
        (gated.dali if codec < Codec.OTHER else gated.pillow).append(row)
    return gated


def read_gated(
    source: Source, indices: NDArray[np.int64], members: bool, max_pixels: int, screen: Screen | None = None
) -> Gated:
    """Read samples, whole ones with `members`, and gate them; the source keeps the headers that were not known.

    Runs on any thread. A `screen` may leave out images before they are read, and before they are decoded.
    """
    began = time.perf_counter()
    known = source.headers(indices) if screen is not None else np.zeros(0, HEADER_DTYPE)
    skipped = np.zeros(len(indices), bool) if screen is None else screen.skip(indices, known)
    if skipped.any():
        encoded = source.read_without(indices, skipped, members=members)
        encoded.headers[skipped] = known[skipped]
    else:
        encoded = source.read(indices, members=members)
    loaded = time.perf_counter()
    gated = gate(encoded, max_pixels)
    if gated.learnt:
        rows = np.array(gated.learnt)
        source.learn(encoded.indices[rows], encoded.headers[rows])
    if screen is not None:
        gated.screened = screen.judge(gated, skipped)
    gated.read_seconds, gated.gate_seconds = loaded - began, time.perf_counter() - loaded
    return gated


class Decoder:
    """One DALI pipeline and its fallbacks.

    Args:
        batch_size: Largest batch.
        device: "cpu" or "cuda:N"; also an attribute.
        num_threads: DALI's threads.
        outputs: A sequence of transforms each, all lowered into the pipeline behind the one decoder; `()` is the
            image as it was decoded.
        depth: Batches under way in DALI at once.
        max_pixels: Larger images are refused.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        device: str,
        num_threads: int,
        outputs: Sequence[Sequence[Transform]] = ((),),
        depth: int = 2,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._batch_size, self._num_threads, self._depth = batch_size, num_threads, depth
        self.device, self._graph, self.max_pixels = device, Graph(outputs), max_pixels
        self._pipelines: dict[str, Any] = {}
        self._pillow = ThreadPoolExecutor(num_threads, thread_name_prefix="curator-dali-pillow")
        self._under_way: deque[_UnderWay] = deque()

    @property
    def under_way(self) -> int:
        """Batches submitted and not collected."""
        return len(self._under_way)

    def submit(self, gated: Gated, key: tuple[int, int] = (0, 0)) -> None:
        """Start a batch. Its buffers stay in use until it was collected.

        From `key`, (seed, epoch), and the samples' indices everything random follows.
        """
        encoded = gated.encoded
        self._sort_by_size(gated)
        futures = [self._pillow.submit(pillow.decode, encoded.images[row]) for row in gated.pillow]
        arguments = self._graph.arguments(key, encoded.indices, upright_sizes(encoded.headers))
        if gated.dali:
            self._feed("batch", encoded.images, arguments, gated.dali)
        self._under_way.append(_UnderWay(gated, key, arguments, futures))

    def _sort_by_size(self, gated: Gated) -> None:
        """Refuse images that transforms make too large; give those to Pillow that take a graph of their own."""
        if not self._graph.may_enlarge:
            return
        sizes = upright_sizes(gated.encoded.headers)
        largest, is_long = self._graph.measure(sizes)
        limit = max(self.max_pixels, MAX_PIXELS)
        for row in np.flatnonzero(largest.prod(1) > limit).tolist():
            if row in gated.errors:
                continue
            (height, width), (new_height, new_width) = sizes[row].tolist(), largest[row].tolist()
            gated.errors[row] = (
                f"too large: the transforms make {new_width}x{new_height} of {width}x{height}, "
                f"over the limit of {limit:,} pixels"
            )
            (gated.dali if row in gated.dali else gated.pillow).remove(row)
        for row in np.flatnonzero(is_long).tolist():
            if row in gated.dali:
                gated.dali.remove(row)
                gated.pillow.append(row)

    def collect(self) -> Decoded:
        """Wait for the oldest batch.

        Raises:
            RuntimeError: DALI failed for another reason than a bad image, such as a CUDA error or no memory.
        """
        batch = self._under_way.popleft()
        gated, encoded, errors = batch.gated, batch.gated.encoded, dict(batch.gated.errors)
        parts: list[_Part] = []
        by_pillow = dict(zip(gated.pillow, batch.pillow, strict=True))
        if gated.dali:
            try:
                parts.append((gated.dali, dali.collect(self._pipelines["batch"], self.device)))
            except RuntimeError as error:
                _raise_unless_bad_image(error)
                parts, bad = self._decode_in_parts(batch, gated.dali)
                by_pillow |= {row: self._pillow.submit(pillow.decode, encoded.images[row]) for row in bad}
        fallback, sizes = 0, upright_sizes(encoded.headers)
        for row, future in by_pillow.items():
            try:
                pixels = future.result()
            except MemoryError:
                raise
            except Exception as error:  # Pillow's plugins raise almost anything on damaged files
                errors[row] = pillow.describe(error)
            else:
                sizes[row] = pixels.shape[:2]
                parts.append(([row], self._transformed(pixels, batch, row)))
                fallback += 1
        rows = np.sort(np.array([row for part, _ in parts for row in part], np.int64))
        outputs: list[Any] = [None] * len(self._graph.outputs)
        if len(parts) == 1:
            outputs = parts[0][1]
        elif parts:
            at = {row: i for i, row in enumerate(rows.tolist())}
            places = [np.array([at[row] for row in part], np.int64) for part, _ in parts]
            for i in range(len(outputs)):
                these = [made[i] for _, made in parts]
                outputs[i] = dali.merge_ready(list(zip(places, these, strict=True)), len(rows), self.device)
        return Decoded(encoded, rows, outputs, sizes[rows], errors, fallback, gated.screened)

    def decode(self, gated: Gated, key: tuple[int, int] = (0, 0)) -> Decoded:
        """Decode one batch, with no other under way; see `submit` and `collect`."""
        self.submit(gated, key)
        return self.collect()

    def close(self) -> None:
        """Drop the pipelines; what they decoded stays valid."""
        self._pillow.shutdown(wait=True, cancel_futures=True)
        self._under_way.clear()
        dali.close(self._pipelines)

    def _decode_in_parts(self, batch: _UnderWay, rows: list[int]) -> tuple[list[_Part], list[int]]:
        """Rows that DALI refused together: (rows, outputs) of what it takes in parts, and the rows that it does not."""
        if len(rows) == 1:
            return [], rows
        parts: list[_Part] = []
        bad: list[int] = []
        step = -(-len(rows) // _PARTS)
        for part in (rows[start : start + step] for start in range(0, len(rows), step)):
            self._feed("again", batch.gated.encoded.images, batch.arguments, part)
            try:
                parts.append((part, dali.collect(self._pipelines["again"], self.device)))
            except RuntimeError as error:
                _raise_unless_bad_image(error)
                good, alone = self._decode_in_parts(batch, part)
                parts += good
                bad += alone
        return parts, bad

    def _transformed(self, pixels: NDArray[np.uint8], batch: _UnderWay, row: int) -> list[Any]:
        """One host image through the transforms and onto the device: a batch of one."""
        if self.device == "cpu" and not any(self._graph.outputs):
            return [pixels[None]] * len(self._graph.outputs)
        # the header of what DALI may not have need not tell the upright size; the pixels do
        size = np.array([pixels.shape[:2]], np.int64)
        arguments = self._graph.arguments(batch.key, batch.gated.encoded.indices[row : row + 1], size)
        kind = "long" if self._graph.measure(size)[1][0] else "pixels"
        self._feed(kind, [pixels], arguments, [0])
        return dali.collect(self._pipelines[kind], self.device)

    def _feed(
        self, kind: str, images: list[NDArray[np.uint8]], arguments: dict[str, NDArray[Any]], rows: list[int]
    ) -> None:
        pipeline = self._pipelines.get(kind)
        if pipeline is None:
            pipeline = self._pipelines[kind] = self._build(kind)
        chosen = np.array(rows)
        dali.feed(pipeline, [images[row] for row in rows], {name: values[chosen] for name, values in arguments.items()})

    def _build(self, kind: str) -> Any:
        """Build a pipeline: for a "batch", parts of a failed one ("again"), or Pillow's "pixels" and "long" images."""
        by_pillow = kind in ("pixels", "long")
        sizes = (1, 1) if by_pillow else (self._batch_size, self._num_threads)
        pipeline = dali.new_pipeline(self.device, *sizes, depth=self._depth if kind == "batch" else 1)
        with pipeline:
            if by_pillow:
                pipeline.set_outputs(*pixel_graph(self._graph, "cpu", self.device, long=kind == "long"))
            else:
                pipeline.set_outputs(*self._encoded_graph())
        pipeline.build()
        return pipeline

    def _encoded_graph(self) -> list[Any]:
        """From encoded bytes to the outputs, inside `with pipeline`."""
        from nvidia.dali import fn, types

        encoded = fn.external_source(name="images", no_copy=True, dtype=types.UINT8, ndim=1)
        inputs = dali.declare(self._graph.inputs)
        # chroma as libjpeg-turbo and so Pillow interpolate it
        how: dict[str, Any] = {"output_type": types.RGB, "jpeg_fancy_upsampling": True}
        # on a GPU never the window alone: nvImageCodec 0.9 fails at that there (its issue 55)
        if self.device == "cpu" and self._graph.window:
            start, shape = (inputs[name] for name in self._graph.window)
            images = fn.decoders.image_slice(encoded, start=start, shape=shape, axes=(0, 1), **how)
            return self._graph.lower(images, inputs, cut=True)
        if self.device != "cpu":
            how |= {"device": "mixed", "hw_decoder_load": _HW_DECODER_LOAD}
        return self._graph.lower(fn.decoders.image(encoded, **how), inputs)


@dataclass
class _UnderWay:
    """A batch that was submitted: its key, its arguments for the pipeline (a row a sample), and what Pillow does."""

    gated: Gated
    key: tuple[int, int]
    arguments: dict[str, NDArray[Any]]
    pillow: list[Future[NDArray[np.uint8]]]


def _raise_unless_bad_image(error: RuntimeError) -> None:
    if not _BAD_IMAGE.search(str(error)) or _DEVICE_TROUBLE.search(str(error)):
        raise error

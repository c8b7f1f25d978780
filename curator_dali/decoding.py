"""Encoded bytes to device arrays, in order, through one DALI pipeline; a bad image costs only itself.

The `gate` looks at every header first, so that DALI gets only what its parser takes and Pillow gets the rest.
`Decoder.submit` starts a batch and `Decoder.collect` returns the oldest one; both belong to one thread. A batch that
DALI refuses is decoded again image by image; what DALI refuses alone, Pillow decodes or says what is wrong with it.
"""

from __future__ import annotations

import io
import os
import re
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.headers import MAX_PIXELS, Codec, Refusal, inspect
from curator_dali.sources.base import EncodedBatch
from curator_dali.transforms import Transform

__all__ = ["Decoded", "Decoder", "Gated", "decode_with_pillow", "gate"]

# DALI reports everything as RuntimeError: a bad image only where its decoder failed, and not the device. (A damaged
# header can make a decoder ask for absurd amounts of host memory: that bad_alloc is the image's fault.)
_BAD_IMAGE = re.compile(r"operator `nvidia\.dali\.fn\.decoders\.\w+`")
_DEVICE_TROUBLE = re.compile(r"cuda (runtime |driver )?error|cudaerror|cuda_error|out of memory", re.IGNORECASE)

_started_in: int | None = None
"""The process that built the first pipeline. DALI's threads do not survive a fork: a child would wait for ever."""
_inherited: list[dict[str, Any]] = []
"""A parent's pipelines in a forked child: never destroyed, because that would wait for their threads."""


@dataclass
class Gated:
    """A batch after the gate: which rows DALI decodes, which Pillow, and which nobody.

    Attributes:
        encoded: The batch; its `headers` are filled in.
        dali: Rows for DALI.
        pillow: Rows for Pillow.
        errors: Row -> reason.
        learnt: Rows whose header was not known before.
    """

    encoded: EncodedBatch
    dali: list[int]
    pillow: list[int]
    errors: dict[int, str]
    learnt: list[int]


@dataclass
class Decoded:
    """A decoded batch: `images` holds the rows `rows` of the encoded one, in order.

    Attributes:
        encoded: What went in.
        rows: (M,) int64, the rows that decoded.
        images: (M, H, W, 3) array or M arrays (H_i, W_i, 3) uint8 on the device; None where M is 0.
        errors: Row -> reason.
        fallback: How many Pillow decoded.
    """

    encoded: EncodedBatch
    rows: NDArray[np.int64]
    images: Any
    errors: dict[int, str] = field(default_factory=dict)
    fallback: int = 0


def gate(encoded: EncodedBatch, max_pixels: int = MAX_PIXELS) -> Gated:
    """Decide from the headers who decodes each image. Runs on any thread.

    Args:
        encoded: The batch; rows in its `errors` are left alone, known headers are not read again.
        max_pixels: Larger images are refused.
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


def decode_with_pillow(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode what DALI may not have: upright RGB, (H, W, 3) uint8 on the host."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image.data)) as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I;16"):  # convert("RGB") would clip 16 bits to white
            wide = np.asarray(upright).astype(np.uint16)
            return np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(upright.convert("RGB"))


class Decoder:
    """One DALI pipeline and its fallbacks.

    Args:
        batch_size: Largest batch.
        device: "cpu" or "cuda:N".
        num_threads: DALI's threads.
        transforms: Lowered into the pipeline after the decoder.
        depth: Batches under way in DALI at once.
        max_pixels: Larger images are refused.
        hw_decoder_load: On a GPU, the share of JPEGs for its hardware engine, 0 to 1.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        device: str,
        num_threads: int,
        transforms: Sequence[Transform] = (),
        depth: int = 2,
        max_pixels: int = MAX_PIXELS,
        hw_decoder_load: float = 0.65,
    ) -> None:
        self._batch_size, self._num_threads, self._depth = batch_size, num_threads, depth
        self._device, self._transforms, self.max_pixels = device, tuple(transforms), max_pixels
        self._hw_decoder_load = hw_decoder_load
        self._pipelines: dict[str, Any] = {}
        self._pillow = ThreadPoolExecutor(num_threads, thread_name_prefix="curator-dali-pillow")
        self._under_way: deque[tuple[Gated, list[Future[NDArray[np.uint8]]]]] = deque()

    @property
    def under_way(self) -> int:
        """Batches submitted and not collected."""
        return len(self._under_way)

    def submit(self, gated: Gated) -> None:
        """Start a batch. Its buffers stay in use until it was collected."""
        images = gated.encoded.images
        futures = [self._pillow.submit(decode_with_pillow, images[row]) for row in gated.pillow]
        if gated.dali:
            self._feed("batch", [images[row] for row in gated.dali])
        self._under_way.append((gated, futures))

    def collect(self) -> Decoded:
        """Wait for the oldest batch.

        Raises:
            RuntimeError: DALI failed for another reason than a bad image, such as a CUDA error or no memory.
        """
        gated, futures = self._under_way.popleft()
        images, errors = gated.encoded.images, dict(gated.errors)
        parts: list[tuple[list[int], Any]] = []
        by_pillow = dict(zip(gated.pillow, futures, strict=True))
        if gated.dali:
            try:
                parts.append((gated.dali, self._output("batch")))
            except RuntimeError as error:
                _raise_unless_bad_image(error)
                for row in gated.dali:
                    single = self._decode_alone(images[row])
                    if single is None:
                        by_pillow[row] = self._pillow.submit(decode_with_pillow, images[row])
                    else:
                        parts.append(([row], single))
        fallback = 0
        for row, future in by_pillow.items():
            try:
                pixels = future.result()
            except MemoryError:
                raise
            except Exception as error:  # Pillow's plugins raise almost anything on damaged files
                errors[row] = f"cannot be decoded: {error}"[:200]
            else:
                parts.append(([row], self._transformed(pixels)))
                fallback += 1
        rows = np.sort(np.array([row for part, _ in parts for row in part], np.int64))
        if len(parts) == 1:
            return Decoded(gated.encoded, rows, parts[0][1], errors, fallback)
        at = {row: i for i, row in enumerate(rows.tolist())}
        merged = arrays.merge(
            [(np.array([at[row] for row in part], np.int64), images) for part, images in parts], len(rows)
        )
        return Decoded(gated.encoded, rows, merged if len(rows) else None, errors, fallback)

    def close(self) -> None:
        """Drop the pipelines; what they decoded stays valid."""
        self._pillow.shutdown(wait=True, cancel_futures=True)
        self._under_way.clear()
        if _started_in not in (None, os.getpid()):
            _inherited.append(self._pipelines)
        self._pipelines = {}

    def _decode_alone(self, image: NDArray[np.uint8]) -> Any:
        """One image of a failed batch through DALI: a batch of one, or None if it is the bad one."""
        self._feed("single", [image])
        try:
            return self._output("single")
        except RuntimeError as error:
            _raise_unless_bad_image(error)
            return None

    def _transformed(self, pixels: NDArray[np.uint8]) -> Any:
        """One host image through the transforms and onto the device: a batch of one."""
        if self._device == "cpu" and not self._transforms:
            return pixels[None]
        self._feed("pixels", [pixels])
        return self._output("pixels")

    def _feed(self, kind: str, data: list[NDArray[np.uint8]]) -> None:
        pipeline = self._pipelines.get(kind)
        if pipeline is None:
            pipeline = self._pipelines[kind] = self._build(kind)
        pipeline.feed_input("input", data)
        pipeline.schedule_run()

    def _output(self, kind: str) -> Any:
        pipeline = self._pipelines[kind]
        with arrays.output_stream(self._device) as stream:
            (output,) = pipeline.share_outputs(cuda_stream=stream)
            pipeline.release_outputs()
            return arrays.from_dali(output)

    def _build(self, kind: str) -> Any:
        """The pipeline for whole batches, for single images of a failed batch, or for pixels that Pillow decoded."""
        global _started_in
        if _started_in not in (None, os.getpid()):
            raise RuntimeError(
                f"DALI was started in process {_started_in}, and this is a fork of it: start workers with "
                'multiprocessing.get_context("spawn"), or make the first loader after the fork'
            )
        _started_in = os.getpid()
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self._device != "cpu"
        pipeline = Pipeline(
            batch_size=self._batch_size if kind == "batch" else 1,
            num_threads=self._num_threads if kind == "batch" else 1,
            device_id=int(self._device.removeprefix("cuda:")) if on_gpu else None,
            exec_dynamic=True,
            # each schedule_run starts one batch, the first one too, instead of filling the queue with `depth` of them
            exec_pipelined=False,
            prefetch_queue_depth=self._depth,
        )
        with pipeline:
            node = fn.external_source(
                name="input",
                no_copy=True,
                dtype=types.UINT8,
                ndim=3 if kind == "pixels" else 1,
                layout="HWC" if kind == "pixels" else None,
            )
            if kind == "pixels":
                node = node.gpu() if on_gpu else node
            else:
                node = fn.decoders.image(
                    node,
                    device="mixed" if on_gpu else "cpu",
                    output_type=types.RGB,
                    jpeg_fancy_upsampling=True,  # chroma as libjpeg-turbo and so Pillow interpolate it
                    hw_decoder_load=self._hw_decoder_load,
                )
            for transform in self._transforms:
                node = transform.lower(node)
            pipeline.set_outputs(node)
        pipeline.build()
        return pipeline


def _raise_unless_bad_image(error: RuntimeError) -> None:
    if not _BAD_IMAGE.search(str(error)) or _DEVICE_TROUBLE.search(str(error)):
        raise error

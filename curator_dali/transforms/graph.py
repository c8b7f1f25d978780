"""Several sequences of transforms as one DALI graph, and the numbers that each batch feeds into it.

What two sequences begin with in common is done once. The numbers are computed on the host for a whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays, dali
from curator_dali.sampling import uniforms
from curator_dali.transforms.base import Crop, RandomTransform, Transform, output_size
from curator_dali.transforms.colour import Normalize
from curator_dali.transforms.geometry import CenterCrop, HorizontalFlip, Pad, Resize, exceed_crop

_Prefix = tuple[Transform, ...]
"""A transform behind all those before it in a sequence."""

_LANES = 1 << 16  # uniform numbers that one transform may draw; the lanes of the next place begin behind them
_PLACES = 1 << 16  # of a sequence; those of the next stream begin behind them

_IMAGES_AT_ONCE = 256


class Graph:
    """The graph of some outputs, each a sequence of transforms; `()` is the image as it was decoded.

    Args:
        outputs: The sequences.

    Attributes:
        outputs: The sequences, as tuples.
        inputs: Name -> (dtype, dimensions) of one sample's value of each further input of the graph.
        crop: The `Crop` that every output begins with, if so: then the decoder needs to decode only its window.
            (`start`, `shape`) are its inputs' names in `window`.
        may_enlarge: Whether an image may become larger on its way: then `measure` tells how large.

    Raises:
        TypeError: Something in a sequence is no transform.
        ValueError: A transform of pixels comes behind `Normalize`; no output at all.
    """

    def __init__(self, outputs: Iterable[Sequence[Transform]]) -> None:
        self.outputs = tuple(tuple(sequence) for sequence in outputs)
        if not self.outputs:
            raise ValueError(
                "no outputs are asked for: give at least one sequence of transforms; () is the plain image"
            )
        for sequence in self.outputs:
            output_size(sequence)
        prefixes = dict.fromkeys(s[: i + 1] for s in self.outputs for i in range(len(s)))
        # how the names of each transform's inputs begin
        self._steps = {prefix: f"{number}." for number, prefix in enumerate(prefixes)}
        self._cropped = {prefix: crops for prefix in prefixes if (crops := self._find_crops(prefix))}
        self.may_enlarge = any(isinstance(prefix[-1], (Resize, Pad)) for prefix in prefixes)
        firsts = {sequence[:1] for sequence in self.outputs}
        first = next(iter(firsts))
        self.crop: Crop | None = first[0] if len(firsts) == 1 and first and isinstance(first[0], Crop) else None
        self.window = ("0.start", "0.shape") if self.crop else None
        probe = self.arguments((0, 0), np.zeros(1, np.int64), np.full((1, 2), 8, np.int64))
        self.inputs = {name: (values.dtype, values.ndim - 1) for name, values in probe.items()}

    def arguments(
        self, key: tuple[int, int], indices: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """The inputs' values, name -> (N, ...) array, for (N,) indices of samples in their source.

        `key` is (seed, epoch); `sizes` are (N, 2) heights and widths of the upright images, of which rows of 0 give
        meaningless values.
        """
        if not any(isinstance(prefix[-1], RandomTransform) for prefix in self._steps):
            return {}
        found = {}
        for prefix, before, _ in self._walk(sizes):
            transform = prefix[-1]
            if isinstance(transform, RandomTransform):
                lane = (transform.stream * _PLACES + len(prefix) - 1) * _LANES
                drawn = uniforms(key, indices, lane + np.arange(transform.draws, dtype=np.int64))
                for name, values in transform.parameters(drawn, before).items():
                    found[self._steps[prefix] + name] = values
        return found

    def _walk(self, sizes: NDArray[np.int64]) -> Iterator[tuple[_Prefix, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the images' sizes before and after each step; `sizes` are those of the upright images."""
        at: dict[_Prefix, NDArray[np.int64]] = {(): np.maximum(sizes, 1)}
        for prefix in self._steps:
            before = at[prefix[:-1]]
            at[prefix] = prefix[-1].output_sizes(before)
            yield prefix, before, at[prefix]

    def measure(self, sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Find how large images become on their way to the outputs.

        Args:
            sizes: (N, 2) int64, heights and widths of the upright images.

        Returns:
            (N, 2) int64, height and width of the largest image that is made of each sample; (N,) bool, which samples
            take a graph of `lower(..., long=True)`, see `Resize.lower_cropped`.
        """
        made, any_long = [np.maximum(sizes, 1)], np.zeros(len(sizes), bool)
        for prefix, before, after in self._walk(sizes):
            # between the two passes of a resize, of which the horizontal one goes first
            between = [np.stack([before[:, 0], after[:, 1]], axis=1)] if isinstance(prefix[-1], Resize) else []
            is_long = np.zeros(len(sizes), bool)
            for crop in self._cropped.get(prefix, ()):
                is_long |= exceed_crop(after, crop)
            any_long |= is_long
            made += [np.where(is_long[:, None], 0, part) for part in (after, *between)]  # not made whole where long
        stacked = np.stack(made)
        largest: NDArray[np.int64] = stacked[stacked.prod(2).argmax(0), np.arange(len(sizes))]
        return largest, any_long

    def _find_crops(self, prefix: _Prefix) -> list[CenterCrop]:
        """The centre crops that follow a `Resize` to a shorter side, where nothing else needs what it makes."""
        last = prefix[-1]
        followers = [other[-1] for other in self._steps if other[:-1] == prefix]
        crops = [transform for transform in followers if isinstance(transform, CenterCrop)]
        is_resize = isinstance(last, Resize) and isinstance(last.size, int)
        return crops if is_resize and len(crops) == len(followers) and prefix not in self.outputs else []

    def lower(self, images: Any, inputs: Mapping[str, Any], *, cut: bool = False, long: bool = False) -> list[Any]:
        """The graph from a node of HWC uint8 images, and a node for each of `self.inputs`, to a node an output.

        With `cut`, `images` are only the windows of `self.crop`. With `long` some are those that `measure` finds long;
        such a graph costs more for every batch.
        """
        done: dict[_Prefix, Any] = {(): images}

        def node(prefix: _Prefix) -> Any:
            if prefix not in done:
                done[prefix] = lowered(prefix)
            return done[prefix]

        def own(prefix: _Prefix) -> dict[str, Any]:
            start = self._steps[prefix]
            return {name.removeprefix(start): inputs[name] for name in self.inputs if name.startswith(start)}

        def lowered(prefix: _Prefix) -> Any:
            transform = prefix[-1]
            if isinstance(transform, Normalize) and isinstance(prefix[-2:][0], HorizontalFlip):
                return transform.lower_mirrored(node(prefix[:-2]), own(prefix[:-1])["mirror"])
            if long and isinstance(transform, CenterCrop) and prefix[:-1] in self._cropped:
                resize: Any = prefix[-2]
                return resize.lower_cropped(node(prefix[:-2]), transform)
            before = node(prefix[:-1])
            if cut and len(prefix) == 1 and isinstance(transform, Crop):
                return transform.lower_cut(before)
            if isinstance(transform, RandomTransform):
                return transform.lower_random(before, own(prefix))
            return transform.lower(before)

        return [node(sequence) for sequence in self.outputs]


def apply(
    images: Any,
    sequence: Transform | Sequence[Transform],
    device: str | None = None,
    *,
    key: tuple[int, int] = (0, 0),
    indices: NDArray[np.int64] | None = None,
    num_threads: int = 1,
) -> Any:
    """Run transforms on decoded images, as a loader runs them on the images it decodes.

    Args:
        images: (N, H, W, 3) uint8, or a list of N (H_i, W_i, 3): numpy, or CuPy on a GPU.
        sequence: The transforms.
        device: Where to run: "cpu" or "cuda:N"; None is where the images are.
        key: (seed, epoch) for random transforms.
        indices: (N,) the samples' indices, for random transforms; None is 0..N-1.
        num_threads: DALI's threads.

    Returns:
        One array if all results have one shape, else a list; on `device`. An empty list for no images.

    Raises:
        ValueError: An image is not (H, W, 3) uint8, or there are not as many indices as images.
    """
    rows = list(images)
    for i, image in enumerate(rows):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"images[{i}] is {image.dtype} of shape {tuple(image.shape)}; give (H, W, 3) uint8, not empty"
            )
    numbers = np.arange(len(rows)) if indices is None else np.asarray(indices, np.int64)
    if numbers.shape != (len(rows),):
        raise ValueError(f"there are {len(rows)} images and indices of shape {numbers.shape}; give one index an image")
    graph = Graph([(sequence,) if isinstance(sequence, Transform) else sequence])
    if not rows:
        return []
    at = arrays.device_of(rows)
    device = arrays.resolve_device(at if device is None else device)
    if at not in ("cpu", device):
        rows, at = arrays.to_host(rows), "cpu"
    pipeline = dali.new_pipeline(device, min(len(rows), _IMAGES_AT_ONCE), num_threads)
    _, is_long = graph.measure(np.array([image.shape[:2] for image in rows], np.int64))
    with pipeline:
        pipeline.set_outputs(*pixel_graph(graph, at, device, long=bool(is_long.any())))
    pipeline.build()
    parts = []
    for first in range(0, len(rows), _IMAGES_AT_ONCE):
        # DALI takes no strides: views such as crops are copied
        part = [image if image.flags.c_contiguous else image.copy() for image in rows[first : first + _IMAGES_AT_ONCE]]
        sizes = np.array([image.shape[:2] for image in part], np.int64)
        dali.feed(pipeline, part, graph.arguments(key, numbers[first : first + _IMAGES_AT_ONCE], sizes))
        (result,) = dali.collect(pipeline, device)
        parts.append((range(first, first + len(part)), result))
    return arrays.merge(parts, len(rows))


def pixel_graph(graph: Graph, source: str, device: str, *, long: bool = False) -> list[Any]:
    """The nodes of a graph over decoded images, inside `with pipeline`; the images' input is named "images".

    It runs on `device`; the images that are fed lie on `source`, "cpu" or the device. See `Graph.lower` for `long`.
    """
    from nvidia.dali import fn, types

    node = fn.external_source(
        name="images", device="cpu" if source == "cpu" else "gpu", no_copy=True, dtype=types.UINT8, ndim=3, layout="HWC"
    )
    if device != source:
        node = node.gpu()
    return graph.lower(node, dali.declare(graph.inputs), long=long)

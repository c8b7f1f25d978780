"""Changes of an image's size and place: resize, crops, flip, padding, buckets.

In a cubic resize Pillow's kernel loses the weights that reach beyond the border; DALI repeats the border. Where an
image shrinks, only the outermost two rows of what comes out differ: they alone are made anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Level, Limits, Probability, Size, checked
from curator_dali.sampling import Buckets
from curator_dali.transforms.base import (
    ATTEMPTS,
    Crop,
    RandomTransform,
    Transform,
    check_range,
    draw_sides,
    either,
    lower_window,
    only_where,
    pair,
)

Interpolation = Literal["nearest", "linear", "cubic", "lanczos"]
_LONG_TIMES = 8  # a side that is more times as long as the centre crop behind it is never scaled whole
_LANCZOS_SUPPORT = 3  # pixels on each side that the widest kernel, Lanczos, sees

_CUBIC_SUPPORT = 2.0  # of the cubic kernel, on each side
_BORDER_ROWS = 2
_LEAST_ROWS = 8  # rows: below that a kernel may reach beyond both borders, and the image is left as it is


@checked
@dataclass(frozen=True)
class Resize(Transform):
    """Scale to a size, antialiased when reducing.

    Cubic runs as a horizontal and then a vertical pass, each rounded to uint8, as Pillow does: within 2/255 of
    Pillow's bicubic (DALI's one-pass cubic is up to 11/255 away), but for a few values near the border where it
    enlarges, or runs on a GPU. Differs from torchvision's `Resize` on tensors by the rounding between the passes.

    Args:
        size: A number makes the shorter side so long and keeps the aspect ratio; the longer side is rounded down,
            as torchvision and transformers do. (height, width) sets both.
        interpolation: "cubic" (default), "linear", "nearest" or "lanczos".
    """

    size: Size
    interpolation: Interpolation = "cubic"

    def lower(self, images: Any) -> Any:  # noqa: D102
        return _lower_resize(images, *self._lower_size(images), self.interpolation)

    def lower_cropped(self, images: Any, crop: CenterCrop) -> Any:
        """The DALI graph of this transform to a shorter side and a centre crop behind it, of HWC uint8 of any shape.

        Of a long image (`exceed_crop`) only the middle is scaled, because its whole may be huge: 1 x 30,000 pixels
        with a shorter side of 224 are 4.5 GB, of which the crop keeps 150 kB.
        """
        from nvidia.dali import fn

        scale = _filter_arguments(self.interpolation)
        height, width = self._lower_size(images)
        kept_height, kept_width = pair(crop.size)

        def whole(images: Any, own: Mapping[str, Any]) -> Any:
            return self.lower(images)

        def wide(images: Any, own: Mapping[str, Any]) -> Any:
            new_height, new_width = self._lower_size(images)
            left = crop.lower_corner(new_width, kept_width)
            middle, start, end = _lower_middle(images, new_width, left, kept_width, 1)
            rows = _rows(middle)
            roi = {"roi_start": fn.stack(_constant(rows, 0), start), "roi_end": fn.stack(rows, end)}
            narrow = fn.resize(middle, resize_x=float(kept_width), resize_y=rows, **roi, **scale)
            return _lowered(narrow, _to_float(new_height), self.interpolation)

        def tall(images: Any, own: Mapping[str, Any]) -> Any:
            new_height, new_width = self._lower_size(images)
            top = crop.lower_corner(new_height, kept_height)
            middle, start, end = _lower_middle(images, new_height, top, kept_height, 0)
            narrow = _narrowed(middle, _to_float(new_width), self.interpolation)
            columns = _columns(narrow)
            roi = {"roi_start": fn.stack(start, _constant(columns, 0)), "roi_end": fn.stack(end, columns)}
            return fn.resize(narrow, resize_x=columns, resize_y=float(kept_height), **roi, **scale)

        def not_wide(images: Any, own: Mapping[str, Any]) -> Any:
            return either(images, own["height"] > _LONG_TIMES * kept_height, tall, whole, {})

        is_wide = (width > _LONG_TIMES * kept_width) & (width >= height)  # the longer side is the one that may be huge
        return crop.lower(either(images, is_wide, wide, not_wide, {"height": height}))

    def _lower_size(self, images: Any) -> tuple[Any, Any]:
        """Height and width after this transform: numbers, or int64 nodes."""
        from nvidia.dali import math, types

        if not isinstance(self.size, int):
            return self.size
        shape = images.shape(dtype=types.INT64)
        height, width = shape[0], shape[1]
        shorter = math.min(height, width)
        return self.size * height // shorter, self.size * width // shorter

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        if isinstance(self.size, int):
            return size and (self.size * size[0] // min(size), self.size * size[1] // min(size))
        return self.size

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: D102
        if isinstance(self.size, int):
            shorter: NDArray[np.int64] = sizes.min(axis=1, keepdims=True)
            return self.size * sizes // shorter
        return super().output_sizes(sizes)


@checked
@dataclass(frozen=True)
class ResizeSide(Resize):
    """Scale so that the shortest or the longest side has a length, as `Resize` does; small images may stay as they are.

        transforms.ResizeSide(512, side="longest")  # 1024 x 768 becomes 512 x 384, and 300 x 200 stays

    Args:
        size: Pixels of the side. The other one is rounded down, to at least 1.
        interpolation: "cubic" (default), "linear", "nearest" or "lanczos".
        side: "shortest" or "longest".
        enlarge: Whether smaller images are enlarged. False leaves these as they are, bit for bit.
        passes: 2 rounds to uint8 between a horizontal and a vertical pass, as `Resize` and Pillow do. 1 rounds once, in
            a third of the time: pixels at sharp edges differ by up to 11/255 from Pillow's.
    """

    size: Annotated[int, Limits("one positive number of pixels (int)", 1)]
    side: Literal["shortest", "longest"] = "shortest"
    enlarge: bool = False
    passes: Literal[1, 2] = 2

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn

        if self.passes == 2:
            return super().lower(images)
        height, width = map(_to_float, self._lower_size(images))
        return fn.resize(images, resize_x=width, resize_y=height, **_filter_arguments(self.interpolation))

    def _lower_size(self, images: Any) -> tuple[Any, Any]:
        from nvidia.dali import math, types

        shape = images.shape(dtype=types.INT64)
        height, width = shape[0], shape[1]
        before = (math.min if self.side == "shortest" else math.max)(height, width)
        after = self.size if self.enlarge else math.min(before, self.size)
        return math.max(after * height // before, 1), math.max(after * width // before, 1)

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        if size is None:
            return None
        ((height, width),) = self.output_sizes(np.array([size], np.int64)).tolist()
        return height, width

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: D102
        # before, after: (N, 1), the length of the side that is set
        before: NDArray[np.int64] = (sizes.min if self.side == "shortest" else sizes.max)(axis=1, keepdims=True)
        after = self.size if self.enlarge else np.minimum(before, self.size)
        scaled: NDArray[np.int64] = np.maximum(after * sizes // before, 1)
        return scaled


def exceed_crop(sizes: NDArray[np.int64], crop: CenterCrop) -> NDArray[np.bool_]:
    """(N,) which images, by their (N, 2) sizes, are so long that a centre crop keeps little of their longer side."""
    height, width = pair(crop.size)
    return (sizes[:, 0] > _LONG_TIMES * height) | (sizes[:, 1] > _LONG_TIMES * width)


def _lower_resize(images: Any, height: Any, width: Any, interpolation: Interpolation) -> Any:
    """The DALI graph of a resize in two passes, each rounded to uint8; height and width are numbers or nodes."""
    return _lowered(_narrowed(images, _to_float(width), interpolation), _to_float(height), interpolation)


def _lowered(images: Any, height: Any, interpolation: Interpolation) -> Any:
    """The vertical pass."""
    from nvidia.dali import fn

    low = fn.resize(images, resize_x=_columns(images), resize_y=height, **_filter_arguments(interpolation))
    return _lower_borders(images, low) if interpolation == "cubic" and images.device == "cpu" else low


def _narrowed(images: Any, width: Any, interpolation: Interpolation) -> Any:
    """The horizontal pass, on a CPU as a vertical one of the transposed image where it shrinks: that is faster."""
    from nvidia.dali import fn

    scale = _filter_arguments(interpolation)

    def across(images: Any, own: Mapping[str, Any]) -> Any:
        return fn.resize(images, resize_x=own.get("width", width), resize_y=_rows(images), **scale)

    def down(images: Any, own: Mapping[str, Any]) -> Any:
        turned = fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
        narrow = _lowered(turned, own.get("width", width), interpolation)
        return fn.transpose(narrow, perm=[1, 0, 2], transpose_layout=False)

    own = {} if isinstance(width, float) else {"width": width}
    if images.device == "gpu" or not scale["antialias"]:
        return across(images, own)
    return either(images, _columns(images) > width, down, across, own)


def _lower_middle(images: Any, length: Any, first: Any, count: int, axis: int) -> tuple[Any, Any, Any]:
    """Cut out what some rows or columns of a scaled image are made of.

    Args:
        images: The node before it is scaled.
        length: Rows (columns) of the whole scaled image, an int64 node.
        first: The first row (column) that is wanted, an int64 node.
        count: How many are wanted.
        axis: 0 for rows, 1 for columns.

    Returns:
        The window, with all pixels that the kernels see; where in it the wanted part begins and ends, float nodes.
    """
    from nvidia.dali import fn, math, types

    before = images.shape(dtype=types.INT64)[axis]
    # begin, end: the wanted part in pixels of the image, whole numbers below and above
    begin, end = first * before // length, ((first + count) * before + length - 1) // length
    reach = _LANCZOS_SUPPORT * (before // length + 1) + 1
    start, stop = math.max(begin - reach, 0), math.min(end + reach, before)
    edges = [fn.stack(fn.cast(edge, dtype=types.INT32)) for edge in (start, stop)]
    window = fn.slice(images, start=edges[0], end=edges[1], axes=(axis,))

    def place(position: Any) -> Any:
        """A place in the scaled image as one in the window; the difference of large numbers is taken in integers."""
        scaled = position * before - start * length  # in pixels of the window, times `length`
        whole = scaled // length
        return _to_float(whole) + _to_float(scaled - whole * length) / _to_float(length)

    return window, place(first), place(first + count)


def _lower_borders(images: Any, resized: Any) -> Any:
    """The DALI graph that gives the first and last two rows of `resized` Pillow's border, where it shrinks."""
    from nvidia.dali import types

    before, behind = images.shape(dtype=types.INT32)[0], resized.shape(dtype=types.INT32)[0]

    def branch(resized: Any, own: Mapping[str, Any]) -> Any:
        return _replace_borders(own["images"], resized)

    return only_where(resized, (before > behind) & (behind >= _LEAST_ROWS), branch, {"images": images})


def _replace_borders(images: Any, resized: Any) -> Any:
    """The same for an image that is known to shrink.

    A kernel reaches beyond the border. DALI repeats the border's row there; Pillow leaves those weights out and scales
    the others up. With `share` for the weights beyond, and v for the value that DALI computes:

        beyond | image                          v = share * first row + (sum of weights within * pixels)
        r r r r|a b c d ...                     Pillow's value = (v - share * first row) / (1 - share)
          <-kernel->
    """
    from nvidia.dali import fn, math, types

    old, new = images.shape(dtype=types.INT32), resized.shape(dtype=types.INT32)
    scale = _to_float(old[0]) / _to_float(new[0])
    reach = fn.cast(_CUBIC_SUPPORT * scale, dtype=types.INT32) + 2  # rows beyond the border that a kernel sees
    length = fn.cast((_CUBIC_SUPPORT + _BORDER_ROWS) * scale, dtype=types.INT32) + 2  # rows within that it sees
    length = math.min(length, old[0])
    columns = _to_float(old[1])

    def rows(node: Any, start: Any, count: Any) -> Any:
        return fn.slice(node, start=fn.stack(start), shape=fn.stack(count), axes=(0,))

    def mirrored(node: Any) -> Any:
        return fn.flip(node, horizontal=0, vertical=1)

    def strip(node: Any, start: Any, columns: Any) -> Any:
        """The first rows of the result, as floats, where the image begins at row `start`."""
        return fn.resize(
            node,
            size=fn.stack(_constant(columns, _BORDER_ROWS), columns),
            roi_start=fn.stack(start, _constant(columns, 0)),
            roi_end=fn.stack(start + float(_BORDER_ROWS) * scale, columns),
            interp_type=types.INTERP_CUBIC,
            antialias=True,
            dtype=types.FLOAT,
        )

    # one column that is 255 beyond the border and 0 within: resized, it is `share`, (rows, 1, 1)
    marked = fn.slice(
        fn.slice(images, start=[0, 0], shape=[1, 1], axes=(1, 2)) & 0,
        start=fn.stack(-reach),
        shape=fn.stack(length + reach),
        axes=(0,),
        out_of_bounds_policy="pad",
        fill_values=255,
    )
    beyond = strip(fn.cast(marked, dtype=types.UINT8), _to_float(reach), _constant(columns, 1))
    share = beyond / 255.0

    def edge(source: Any) -> Any:
        values, first = strip(source, _constant(scale, 0), columns), fn.slice(source, start=[0], shape=[1], axes=(0,))
        return fn.cast((values - share * first) / (1.0 - share), dtype=types.UINT8)

    begin = edge(rows(images, 0 * old[0], length))
    end = mirrored(edge(mirrored(rows(images, old[0] - length, length))))
    return fn.cat(begin, rows(resized, 0 * old[0] + _BORDER_ROWS, new[0] - 2 * _BORDER_ROWS), end, axis=0)


def _constant(node: Any, value: float) -> Any:
    """A float node of one value a sample, made of any float node: `fn.stack` takes no plain numbers."""
    return node * 0.0 + float(value)


def _filter_arguments(interpolation: Interpolation) -> dict[str, Any]:
    """DALI's arguments for an interpolation, antialiased when reducing."""
    from nvidia.dali import types

    kernel = {
        "nearest": types.INTERP_NN,
        "linear": types.INTERP_LINEAR,
        "cubic": types.INTERP_CUBIC,
        "lanczos": types.INTERP_LANCZOS3,
    }[interpolation]
    return {"interp_type": kernel, "antialias": interpolation != "nearest"}


def _to_float(value: Any) -> Any:
    from nvidia.dali import fn, types

    return float(value) if isinstance(value, int) else fn.cast(value, dtype=types.FLOAT)


def _rows(images: Any) -> Any:
    return _to_float(images.shape()[0])


def _columns(images: Any) -> Any:
    return _to_float(images.shape()[1])


@checked
@dataclass(frozen=True)
class CenterCrop(Transform):
    """Cut the middle out; what reaches beyond the image is black.

    Args:
        size: Side, or (height, width).
        rounding: Where the window's corner (side - crop) / 2 falls between two pixels: "down" as transformers does,
            "even" takes the even one of them, as torchvision (and so timm) does.
    """

    size: Size
    rounding: Literal["down", "even"] = "down"

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, types

        height, width = pair(self.size)
        shape = images.shape(dtype=types.INT32)
        start = fn.stack(self.lower_corner(shape[0], height), self.lower_corner(shape[1], width))
        return fn.slice(
            images, start=start, shape=[height, width], axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
        )

    def lower_corner(self, length: Any, kept: int) -> Any:
        """The DALI graph of the first row (column) that stays, of `length` (a node of integers)."""
        room = length - kept
        if self.rounding == "down":
            return (room + 2 * kept) // 2 - kept  # floor also for negative numbers, which DALI's // rounds towards zero
        # 1.5 is 2, but 0.5 is 0 and 2.5 is 2; what is missing of the image is padded first, less of it on this side
        return (room + ((room & 3) == 3) * (room > 0)) // 2

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        return pair(self.size)


@checked
@dataclass(frozen=True)
class RandomResizedCrop(Crop):
    """Cut out a window of random area and aspect ratio, and scale it to one size.

    The window is chosen as torchvision's `RandomResizedCrop` chooses it (Szegedy et al. 2015): ten attempts of
    area ~ U(scale), log(ratio) ~ U(log(ratio)), the first that fits at a uniform place; else the largest central
    window of an allowed ratio. Differs from torchvision's by the random numbers, and by DALI's one-pass antialiased
    resize (Pillow rounds to uint8 between two passes): 1/255 apart, more only along the border.

    On the CPU, in first place of every output of a loader, only the window is decoded: the same pixels, sooner.

    Args:
        size: Side, or (height, width), of what comes out.
        scale: Range of the window's area, as a share of the image's.
        ratio: Range of the window's width / height.
        interpolation: "linear" (default), "cubic", "nearest" or "lanczos".
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 2 * ATTEMPTS + 2

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "linear"

    def __post_init__(self) -> None:
        check_range(self.scale, "RandomResizedCrop.scale")
        check_range(self.ratio, "RandomResizedCrop.ratio")

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        heights, widths = np.ascontiguousarray(sizes.T)
        wide, tall = draw_sides(uniforms, heights * widths, self.scale, self.ratio)
        fits = (wide > 0) & (wide <= widths) & (tall > 0) & (tall <= heights)
        first, column = fits.argmax(axis=0), np.arange(len(sizes))
        found = fits[first, column]
        least, most = self.ratio
        whole = widths / heights
        width = np.where(whole > most, np.rint(heights * most).astype(np.int64), widths)
        height = np.where(whole < least, np.rint(widths / least).astype(np.int64), heights)
        height = np.where(found, tall[first, column], np.clip(height, 1, heights))
        width = np.where(found, wide[first, column], np.clip(width, 1, widths))
        top = (uniforms[-2] * (heights - height + 1)).astype(np.int64)
        left = (uniforms[-1] * (widths - width + 1)).astype(np.int64)
        top = np.where(found, top, (heights - height) // 2)
        left = np.where(found, left, (widths - width) // 2)
        return {
            "start": np.stack([top, left], axis=1).astype(np.int32),
            "shape": np.stack([height, width], axis=1).astype(np.int32),
        }

    def lower_cut(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn

        height, width = pair(self.size)
        return fn.resize(images, resize_x=float(width), resize_y=float(height), **_filter_arguments(self.interpolation))

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        return pair(self.size)


@checked
@dataclass(frozen=True)
class HorizontalFlip(RandomTransform):
    """Mirror left and right with probability `p`, as torchvision's `RandomHorizontalFlip`.

    Directly before `Normalize` it costs no pass over the pixels of its own.

    Args:
        p: Probability.
        stream: See `RandomTransform`.
    """

    draws: ClassVar[int] = 1

    p: Probability = 0.5

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        return {"mirror": (uniforms[0] < self.p).astype(np.int32)}

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        from nvidia.dali import fn

        return fn.flip(images, horizontal=parameters["mirror"])


@checked
@dataclass(frozen=True)
class Pad(Transform):
    """Grow to at least a size with one grey value on the right and below; larger images stay as they are.

    Args:
        size: Side, or (height, width).
        fill: Value of the new pixels, 0 to 255.
    """

    size: Size
    fill: Level = 0

    def lower(self, images: Any) -> Any:  # noqa: D102
        from nvidia.dali import fn, math, types

        height, width = pair(self.size)
        shape = images.shape(dtype=types.INT32)
        size = fn.stack(math.max(shape[0], height), math.max(shape[1], width))
        return fn.slice(
            images, start=[0, 0], shape=size, axes=(0, 1), out_of_bounds_policy="pad", fill_values=self.fill
        )

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        height, width = pair(self.size)
        return size and (max(size[0], height), max(size[1], width))

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: D102
        return np.maximum(sizes, pair(self.size))


@checked
@dataclass(frozen=True)
class ToBucket(RandomTransform):
    """Cut an image to the shape of the nearest bucket, around its centre, and scale it to the bucket's size.

    Nothing about it is random; like random transforms it does something else to each image. A loader with `buckets`
    puts it in front of its transforms by itself.

    Args:
        buckets: The sizes.
        interpolation: As in `Resize`.
    """

    buckets: Buckets
    interpolation: Interpolation = "cubic"

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        targets = self.output_sizes(sizes)
        scale = (targets / sizes).max(axis=1, keepdims=True)
        window = np.clip(np.rint(targets / scale).astype(np.int64), 1, sizes)
        return {
            "start": ((sizes - window) // 2).astype(np.int32),
            "shape": window.astype(np.int32),
            "size": targets.astype(np.int32),
        }

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        window, size = lower_window(images, parameters["start"], parameters["shape"]), parameters["size"]
        return _lower_resize(window, size[0], size[1], self.interpolation)

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        if len(self.buckets.sizes) == 1:
            return self.buckets.sizes[0]
        if size is None:
            return None
        height, width = self.output_sizes(np.array([size], np.int64))[0].tolist()
        return height, width

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: D102
        return np.array(self.buckets.sizes, np.int64)[self.buckets.assign(np.maximum(sizes, 1))]


def bring_to(buckets: Buckets, transforms: Sequence[Transform] | None) -> tuple[Transform, ...]:
    """A sequence of transforms that begins with bringing images to their buckets.

    Args:
        buckets: The sizes.
        transforms: May begin with a `ToBucket` of the same sizes, to say how it interpolates.

    Raises:
        ValueError: It has a `ToBucket` elsewhere, or of other sizes; or there is none (None).
    """
    if transforms is None:
        raise ValueError("buckets are for the images, and transforms=None makes none: give transforms=()")
    first = transforms[0] if transforms else None
    if isinstance(first, ToBucket) and first.buckets == buckets:
        return tuple(transforms)
    for transform in transforms:
        if isinstance(transform, ToBucket):
            raise ValueError(
                f"{transform!r} must come first and have the loader's sizes {buckets.sizes}, or be left out"
            )
    return (ToBucket(buckets), *transforms)

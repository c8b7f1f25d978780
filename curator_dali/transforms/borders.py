"""Pillow's border in a cubic resize: a kernel that reaches beyond it loses those weights; DALI repeats the border.

Where an image shrinks, only the outermost two rows of what comes out differ: they alone are made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dali.transforms.branching import only_where

__all__ = ["lower_borders"]

_SUPPORT = 2.0  # of the cubic kernel, on each side
_ROWS = 2
_LEAST = 8  # rows: below that a kernel may reach beyond both borders, and the image is left as it is


def lower_borders(images: Any, resized: Any) -> Any:
    """The DALI graph that gives the first and last two rows of `resized` Pillow's border, where it shrinks.

    Args:
        images: The node before the resize, HWC uint8.
        resized: The node behind it: cubic, antialiased, of fewer rows.
    """
    from nvidia.dali import types

    before, behind = images.shape(dtype=types.INT32)[0], resized.shape(dtype=types.INT32)[0]

    def branch(resized: Any, own: Mapping[str, Any]) -> Any:
        return _bordered(own["images"], resized)

    return only_where(resized, (before > behind) & (behind >= _LEAST), branch, {"images": images})


def _bordered(images: Any, resized: Any) -> Any:
    from nvidia.dali import fn, types

    old, new = images.shape(dtype=types.INT32), resized.shape(dtype=types.INT32)
    scale = fn.cast(old[0], dtype=types.FLOAT) / fn.cast(new[0], dtype=types.FLOAT)
    reach = fn.cast(_SUPPORT * scale, dtype=types.INT32) + 2
    length = fn.cast((_SUPPORT + _ROWS) * scale, dtype=types.INT32) + 2  # what those rows' kernels see
    length = length * (length < old[0]) + old[0] * (length >= old[0])
    columns = fn.cast(old[1], dtype=types.FLOAT)

    def rows(node: Any, start: Any, count: Any) -> Any:
        return fn.slice(node, start=fn.stack(start), shape=fn.stack(count), axes=(0,))

    def mirrored(node: Any) -> Any:
        return fn.flip(node, horizontal=0, vertical=1)

    def strip(node: Any, start: Any, columns: Any) -> Any:
        """The first rows of what comes out, as floats, where the image begins at row `start`."""
        return fn.resize(
            node,
            size=fn.stack(columns * 0.0 + float(_ROWS), columns),
            roi_start=fn.stack(start, columns * 0.0),
            roi_end=fn.stack(start + float(_ROWS) * scale, columns),
            interp_type=types.INTERP_CUBIC,
            antialias=True,
            dtype=types.FLOAT,
        )

    # the share of each kernel's weights beyond the border, (rows, 1, 1): what is resized is 255 there, else 0
    marked = fn.slice(
        fn.slice(images, start=[0, 0], shape=[1, 1], axes=(1, 2)) & 0,
        start=fn.stack(-reach),
        shape=fn.stack(length + reach),
        axes=(0,),
        out_of_bounds_policy="pad",
        fill_values=255,
    )
    share = strip(fn.cast(marked, dtype=types.UINT8), fn.cast(reach, dtype=types.FLOAT), columns * 0.0 + 1.0) / 255.0

    def edge(source: Any) -> Any:
        values, first = strip(source, scale * 0.0, columns), fn.slice(source, start=[0], shape=[1], axes=(0,))
        return fn.cast((values - share * first) / (1.0 - share), dtype=types.UINT8)

    begin = edge(rows(images, old[0] * 0, length))
    end = mirrored(edge(mirrored(rows(images, old[0] - length, length))))
    return fn.cat(begin, rows(resized, old[0] * 0 + _ROWS, new[0] - 2 * _ROWS), end, axis=0)

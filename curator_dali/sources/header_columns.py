"""Columns of an index that say what the header of each image does, for people and in numbers that are read fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.sources.base import HEADER_DTYPE

CHECK = 0x4344_4958
"""The exclusive or of all numbers of a row of the column `entry`."""

ROW_NUMBERS = 5
"""Numbers of the column `entry` of images that are no members of tars.

Bytes of the image plus one, 0 where that is not known; height, width, codec + 256 * orientation; and the check.
"""


class Codecs(NamedTuple):
    """Names of formats, and which of these each value of `HEADER_DTYPE`'s `codec` is."""

    names: tuple[str, ...]
    numbers: Mapping[int, int]


def header_fields() -> list[Any]:
    """The columns of `make_header_columns`, in their order."""
    import pyarrow as pa

    return [
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("codec", pa.dictionary(pa.int8(), pa.string())),
        pa.field("orientation", pa.uint8()),
        pa.field("problem", pa.string()),
        pa.field("entry", pa.list_(pa.uint32(), ROW_NUMBERS)),
    ]


def make_header_columns(
    sizes: NDArray[np.int64], headers: NDArray[np.void], problems: Mapping[int, str], codecs: Codecs
) -> dict[str, Any]:
    """Make the columns of S images.

    Args:
        sizes: (S,) bytes of the images, -1 where that is not known.
        headers: (S,) `HEADER_DTYPE`, codec 0 where nothing is known.
        problems: Row -> why its image is refused.
        codecs: Names of formats.
    """
    import pyarrow as pa

    unknown = headers["codec"] == 0
    entries = np.zeros((len(headers), ROW_NUMBERS), np.int64)
    entries[:, 0], entries[:, 1], entries[:, 2] = sizes + 1, headers["height"], headers["width"]
    entries[:, 3] = headers["codec"] + 256 * headers["orientation"].astype(np.int64)
    entries = entries.astype(np.uint32)
    entries[:, 4] = np.bitwise_xor.reduce(entries[:, :4], axis=1) ^ CHECK
    format_of = np.array([codecs.numbers.get(value, 0) for value in headers["codec"].tolist()], np.int8)
    return {
        "width": pa.array(headers["width"].astype(np.int32), mask=unknown),
        "height": pa.array(headers["height"].astype(np.int32), mask=unknown),
        "codec": pa.DictionaryArray.from_arrays(pa.array(format_of, mask=unknown), pa.array(codecs.names, pa.string())),
        "orientation": pa.array(headers["orientation"], mask=unknown),
        "problem": pa.array([problems.get(row) for row in range(len(headers))], pa.string()),
        "entry": pa.FixedSizeListArray.from_arrays(pa.array(entries.reshape(-1)), ROW_NUMBERS),
    }


def parse_entries(numbers: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Take (N, ROW_NUMBERS) numbers apart: (N,) headers, and (N,) bytes of images.

    A row that is damaged is one of which nothing is known: codec 0 and -1 bytes.
    """
    sound = np.bitwise_xor.reduce(numbers, axis=1) == CHECK
    numbers = np.where(sound[:, None], numbers, 0)
    headers = np.zeros(len(numbers), HEADER_DTYPE)
    headers["height"], headers["width"] = numbers[:, 1], numbers[:, 2]
    headers["codec"], headers["orientation"] = numbers[:, 3] & 0xFF, numbers[:, 3] >> 8
    return headers, numbers[:, 0] - 1

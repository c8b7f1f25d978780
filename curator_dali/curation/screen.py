"""`PlanScreen`: the first selectors of a plan, applied before images are decoded, by their headers and metadata."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import objects
from curator_dali.batch import ImageBatch, ImageObject
from curator_dali.curation.fields import add_columns
from curator_dali.decoding import Codec, Gated, upright_sizes
from curator_dali.errors import StageError
from curator_dali.stages import Plan, Selector

_NOBODY = ImageObject("", "")  # stands for a sample of which nothing is read


@dataclass
class Screened:
    """The record of a batch that went through a screen.

    Attributes:
        dropped: The number of a stage, the rows (m,) that it drops, and their m reasons.
        batch: The images of all these rows, one stage after the other, with their columns and without pixels.
        complete: Whether the stages have judged every image that is to be decoded.
        seconds: Label of a stage -> seconds that it took.
    """

    dropped: list[tuple[int, NDArray[np.int64], list[str]]]
    batch: ImageBatch
    complete: bool
    seconds: Mapping[str, float] = field(default_factory=dict)


class PlanScreen:
    """Applies the first selectors of a plan before anything is decoded; see `curator_dali.decoding.Screen`.

    An image whose upright size only decoding tells is left to the stages behind the decoder.

    Args:
        plan: The stages, which are set up.
        types: Type of each metadata field that becomes a column.
        name: The data set's name.
        max_pixels: Larger images fail, whatever a stage says of them.
    """

    def __init__(self, plan: Plan, types: Mapping[str, str], name: str, max_pixels: int) -> None:
        self._plan, self._types, self._name, self._max_pixels = plan, types, name, max_pixels
        self._count, self._by_header = plan.screening, plan.screening_headers
        self._lock = threading.Lock()  # stages may be anybody's, and need not be safe in threads

    def skip(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> NDArray[np.bool_]:
        """Choose images that need not be read; see `Screen.skip`."""
        skipped = np.zeros(len(indices), bool)
        if self._by_header:
            known = self._are_known(headers)
            if "format" in self._plan.derived:
                known &= headers["codec"] != Codec.CLAIMED
            at = np.flatnonzero(known)
            samples = self._describe(indices[at], headers[at], [_NOBODY] * len(at))
            for _, rows, _ in self._judge(samples, at, self._by_header, defaultdict(float)):
                skipped[rows] = True
        return skipped

    def judge(self, gated: Gated, skipped: NDArray[np.bool_]) -> Screened:
        """Choose the images to decode; see `Screen.judge`.

        Raises:
            StageError: A stage's verdict on an image is another one than it was before the image was read.
        """
        encoded = gated.encoded
        waiting = np.sort(np.array([*gated.dali, *gated.pillow], np.int64))
        at = waiting[self._are_known(encoded.headers[waiting])]
        samples = self._describe(
            encoded.indices[at], encoded.headers[at], [encoded.objects[row] for row in at.tolist()]
        )
        add_columns(samples, self._plan.metadata, self._types)
        seconds: dict[str, float] = defaultdict(float)
        dropped = self._judge(samples, at, self._count, seconds)
        rows = np.concatenate([np.zeros(0, np.int64), *(rows for _, rows, _ in dropped)])
        gone = {*rows.tolist()}
        if not gone.issuperset(np.flatnonzero(skipped).tolist()):
            number = self._plan.labels[self._by_header - 1]
            raise StageError(
                f"a stage up to {number} gives other verdicts on the same image: where= must be a pure function"
            )
        gated.dali = [row for row in gated.dali if row not in gone]
        gated.pillow = [row for row in gated.pillow if row not in gone]
        return Screened(dropped, samples[np.searchsorted(at, rows)], len(at) == len(waiting), seconds)

    def _are_known(self, headers: NDArray[np.void]) -> NDArray[np.bool_]:
        """(N,) whether headers tell the size of an image as it will be decoded."""
        pixels = headers["height"].astype(np.int64) * headers["width"]
        known: NDArray[np.bool_] = (headers["codec"] != 0) & (headers["orientation"] != 0)
        known &= pixels <= self._max_pixels
        return known

    def _describe(
        self, indices: NDArray[np.int64], headers: NDArray[np.void], samples: Sequence[ImageObject]
    ) -> ImageBatch:
        """Make a batch without pixels of n samples, from their indices (n,) and headers (n,)."""
        sizes = upright_sizes(headers).astype(np.int32)  # (n, 2) height, width
        batch = ImageBatch("screen", self._name, list(samples))
        batch.columns.update(index=indices, width=sizes[:, 1], height=sizes[:, 0])
        add_header_columns(batch, self._plan.derived, headers)
        return batch

    def _judge(
        self, batch: ImageBatch, at: NDArray[np.int64], count: int, seconds: dict[str, float]
    ) -> list[tuple[int, NDArray[np.int64], list[str]]]:
        """Take a batch through the first stages: the number of each that drops rows, these rows, and the reasons.

        `at` are (n,) the rows that the images of the batch have. `seconds` is added to.
        """
        dropped = []
        with self._lock:
            for number in range(count):
                if not len(batch):
                    break
                began, stage = time.perf_counter(), self._plan.stages[number]
                assert isinstance(stage, Selector)
                reasons = stage.judge(batch)
                out = np.array([reason is not None for reason in reasons], bool)
                if out.any():
                    dropped.append((number, at[out], reasons[out].tolist()))
                    batch, at = batch.where(~out), at[~out]
                seconds[self._plan.labels[number]] += time.perf_counter() - began
        return dropped


def add_header_columns(batch: ImageBatch, names: Sequence[str], headers: NDArray[np.void]) -> None:
    """Add columns of `stages.HEADER_FIELDS` to a batch that has `width` and `height`.

    Args:
        batch: N images.
        names: The columns.
        headers: (N,) `HEADER_DTYPE`.
    """
    width, height = (batch.columns[name].astype(np.int64) for name in ("width", "height"))
    for name in names:
        if name == "pixels":
            batch.columns[name] = width * height
        elif name == "aspect_ratio":
            batch.columns[name] = width / height
        elif name == "format":
            batch.columns[name] = objects([Codec(codec).format for codec in headers["codec"].tolist()])

"""Thumbnails of some samples of a source: decoded a few at a time, and reduced where they were decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import html
from curator_dali.display import thumbnails
from curator_dali.loader import ImageLoader
from curator_dali.sources import Source, Subset

__all__ = ["Picture", "encode", "take"]

_AT_ONCE = 8  # whole images in memory


@dataclass(frozen=True)
class Picture:
    """One image to be shown.

    Attributes:
        pixels: (h, w, 3) uint8, the thumbnail, on the host.
        caption: What came beside it.
    """

    pixels: NDArray[np.uint8]
    caption: str = ""


def take(source: Source, indices: Iterable[int], device: str = "auto", height: int = 168) -> dict[int, Picture]:
    """Thumbnails of samples by their index in the source; those that cannot be read or decoded are left out.

    Args:
        source: The data set.
        indices: Of the samples.
        device: Where to decode.
        height: Most rows of a thumbnail.
    """
    wanted = np.unique(np.fromiter(indices, np.int64))
    found: dict[int, Picture] = {}
    if not len(wanted):
        return found
    with ImageLoader(Subset(source, wanted), batch_size=_AT_ONCE, device=device, prefetch=1) as loader:
        for decoded, batch in loader.steps():
            if batch is None:
                continue
            small = thumbnails.reduce(batch.images, height)
            places = wanted[decoded.encoded.indices[decoded.rows]].tolist()
            for index, pixels, item in zip(places, small, batch.data, strict=True):
                found[index] = Picture(pixels, _caption(item.metadata))
    return found


def encode(pictures: Mapping[int, Picture], budget: int) -> dict[int, str]:
    """Data URIs of thumbnails, which have at most `budget` bytes in all before base64 makes a third more of them."""
    encoded = thumbnails.encode([picture.pixels for picture in pictures.values()], budget)
    return dict(zip(pictures, map(html.data_uri, encoded), strict=True))


def _caption(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("caption") or "")

"""The `Order` that a loader's arguments make of its source."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
from numpy.typing import NDArray

from curator_dali.decoding import pillow
from curator_dali.decoding.headers import Codec, read_headers, upright_sizes
from curator_dali.sampling.buckets import BucketedOrder, Buckets
from curator_dali.sampling.mixture import MixedOrder, quantise
from curator_dali.sampling.order import Order, Shuffle, ShuffledOrder
from curator_dali.sources.base import Source
from curator_dali.sources.mixture import Mixture

__all__ = ["order_of"]

logger = logging.getLogger(__name__)


def order_of(source: Source, shuffle: Shuffle | None, buckets: Buckets | None, run: int, max_pixels: int) -> Order:
    """The order of a source's samples.

    Args:
        source: A `Mixture` is drawn from by its weights.
        shuffle: None keeps the source's order.
        buckets: Group images by shape. The headers are read when the order is first needed.
        run: Samples of one step of all ranks.
        max_pixels: Larger images count as unreadable.
    """
    order: Order
    if isinstance(source, Mixture) and source.weights is not None:
        sizes = [part.shard_sizes for part in source.sources.values()]
        order = MixedOrder(
            shuffle, sizes, list(source.sources), list(quantise(source.weights).values()), source.samples
        )
    else:
        order = ShuffledOrder(shuffle, source.shard_sizes)
    if buckets is None:
        return order
    return BucketedOrder(order, buckets, partial(_groups, source, buckets, max_pixels), run)


def _groups(source: Source, buckets: Buckets, max_pixels: int) -> NDArray[np.uint8]:
    """The bucket of every sample, (N,) uint8."""
    logger.info("reading the headers of %d images of %s, to group them by shape", len(source), source.name)
    groups = np.empty(len(source), np.uint8)
    for indices, headers, _ in read_headers(source, max_pixels):
        sizes = upright_sizes(headers)
        sizes[headers["codec"] == Codec.UNKNOWN] = 0
        turned = np.flatnonzero((headers["codec"] != Codec.UNKNOWN) & (headers["orientation"] == 0))
        if len(turned):  # Pillow's formats: what it will make of them, it must say itself
            encoded = source.read(indices[turned])
            encoded.check_read()
            sizes[turned] = [_upright_size(image) for image in encoded.images]
        groups[indices] = buckets.assign(sizes)
    return groups


def _upright_size(image: NDArray[np.uint8]) -> tuple[int, int]:
    """(height, width) as Pillow will decode it; zeros where it cannot."""
    try:
        return pillow.upright_size(image.data)
    except Exception:  # Pillow's plugins raise almost anything on damaged files; the loader will say what is wrong
        logger.debug("no size of an image that only Pillow reads", exc_info=True)
        return 0, 0

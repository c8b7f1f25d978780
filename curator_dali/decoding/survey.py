"""Survey a source by the headers of its images: each image is read once, and none is decoded."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.decoding.headers import MAX_PIXELS, Codec, Header, inspect
from curator_dali.sources.base import Source

__all__ = ["Range", "Survey", "read_headers", "scan"]

_CHUNK = 256  # samples a read: large enough for numpy, small enough that a chunk of large images fits in memory


@dataclass(frozen=True)
class Range:
    """Smallest, median and largest of a quantity."""

    minimum: int
    median: int
    maximum: int


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        name: The source's name.
        samples: Number of samples.
        shards: Number of files (folders) that they lie in.
        image_bytes: Encoded bytes of the images whose size is known.
        images_sized: How many these are: all, unless the source kept the headers of an earlier scan but no sizes.
        unreadable: Samples without an image, or with one whose header is refused.
        formats: Images by format, most frequent first.
        by_pillow: Images in a format, or a variant of one, that Pillow decodes instead of DALI.
        pixels: Sum of height times width.
        width: Pixels as stored, before EXIF orientation; None where no image is readable.
        height: Likewise.
    """

    name: str
    samples: int
    shards: int
    image_bytes: int = 0
    images_sized: int = 0
    unreadable: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    by_pillow: int = 0
    pixels: int = 0
    width: Range | None = None
    height: Range | None = None

    def as_dict(self) -> dict[str, Any]:
        """The survey as plain values for JSON."""
        return asdict(self)


def read_headers(
    source: Source, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.void], NDArray[np.int64]]]:
    """Iterate over the headers of a source, in order; what is not known yet is read, and the source learns it.

    Args:
        source: Where the images are.
        max_pixels: Larger images are refused, whether their headers are known already or not.

    Yields:
        Chunks of indices (N,) int64, headers (N,) `HEADER_DTYPE` with codec 0 for what cannot be read, and the
        encoded size of each image in bytes (N,) int64, -1 where it is not known.

    Raises:
        SourceError: A sample cannot be read now.
    """

    def read(indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.void], NDArray[np.int64]]:
        headers = source.headers(indices).copy()
        sizes = source.image_sizes(indices)
        unknown = np.flatnonzero(headers["codec"] == Codec.UNKNOWN)
        if len(unknown):
            encoded = source.read(indices[unknown])
            encoded.check_read()
            for position, (row, image) in enumerate(zip(unknown, encoded.images, strict=True)):
                sizes[row] = len(image)
                header = None if position in encoded.errors else inspect(image, max_pixels)
                if isinstance(header, Header):
                    headers[row] = (header.height, header.width, header.codec, header.orientation)
            learnt = unknown[headers["codec"][unknown] != Codec.UNKNOWN]
            source.learn(indices[learnt], headers[learnt])
        # also of headers that were known: what was learnt before must not tell
        headers["codec"][headers["height"].astype(np.int64) * headers["width"] > max_pixels] = Codec.UNKNOWN
        return indices, headers, sizes

    # A bounded window of reads under way: a network's latency is hidden, and memory does not grow with the source.
    waiting: deque[Future[tuple[NDArray[np.int64], NDArray[np.void], NDArray[np.int64]]]] = deque()
    workers = max(2, source.read_ahead)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="curator-dali-headers")
    try:
        for start in range(0, len(source), _CHUNK):
            waiting.append(pool.submit(read, np.arange(start, min(start + _CHUNK, len(source)), dtype=np.int64)))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def scan(source: Source, progress: Callable[[int], object] | None = None) -> Survey:
    """Count what a source holds from the headers of its images.

    Args:
        source: Where the images are.
        progress: Called with the number of samples done since the last call.

    Raises:
        SourceError: The source, or a sample of it, cannot be read now.
    """
    codecs: Counter[int] = Counter()
    # Counters of distinct values: exact medians in memory that does not grow with the number of images
    widths: Counter[int] = Counter()
    heights: Counter[int] = Counter()
    pixels = image_bytes = images_sized = 0
    for indices, headers, sizes in read_headers(source):
        good = headers[headers["codec"] != Codec.UNKNOWN]
        codecs.update(headers["codec"].tolist())
        widths.update(good["width"].tolist())
        heights.update(good["height"].tolist())
        pixels += int((good["width"].astype(np.int64) * good["height"]).sum())
        image_bytes += int(sizes[sizes > 0].sum())
        images_sized += int((sizes >= 0).sum())
        if progress:
            progress(len(indices))
    unreadable = codecs.pop(Codec.UNKNOWN, 0)
    formats: Counter[str] = Counter()
    for codec, count in codecs.items():
        formats[Codec(codec).format] += count
    return Survey(
        name=source.name,
        samples=len(source),
        shards=len(source.shard_sizes),
        image_bytes=image_bytes,
        images_sized=images_sized,
        unreadable=unreadable,
        formats=dict(formats.most_common()),
        by_pillow=sum(count for codec, count in codecs.items() if not Codec(codec).for_dali),
        pixels=pixels,
        width=_range(widths),
        height=_range(heights),
    )


def _range(counts: Counter[int]) -> Range | None:
    if not counts:
        return None
    values, weights = np.array(sorted(counts.items()), dtype=np.int64).T
    middle = int(np.searchsorted(np.cumsum(weights), (weights.sum() + 1) // 2))
    return Range(int(values[0]), int(values[middle]), int(values[-1]))

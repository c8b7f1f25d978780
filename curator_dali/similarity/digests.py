"""Exact duplicates: 128-bit digests of encoded bytes, and of pixels on the device. Equality of all 128 bits decides.

The digest of pixels is a keyed universal hash in exact integer arithmetic, the same on every device:

1. The bytes of an image, zero-padded, are cut into chunks of 8192, each multiplied by four columns of fixed random
   32-bit numbers. In float64 these sums stay below 2^53, so they are exact in whatever order they are added. Two
   different chunks agree in one column for at most one of the 2^32 values of one of its numbers: probability 2^-32.
2. An image's shape and its chunks' sums, as 32-bit words, are multiplied by further random numbers, one for each place
   and column, and added modulo 2^64, of which the high 32 bits remain (multilinear hashing; Lemire and Kaser,
   "Strongly universal string hashing is fast", 2014): probability 2^-32.

A column so confuses two given different images with a probability below 2^-31, all four with one below 2^-124: a
billion images are 2^59 pairs, and some pair is confused with 2^-65. The numbers are fixed, so whoever wants to can
construct two images that collide; where that matters, compare the encoded bytes' digests, which are BLAKE2b's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import to_torch
from curator_dali.sampling.order import mix

if TYPE_CHECKING:
    import torch

__all__ = ["content_hash", "pixel_hash", "same_digests"]

_CHUNK, _COLUMNS = 8192, 4
_AT_ONCE = 256  # chunks; 2 MB of bytes, 16 MB as float64


def content_hash(data: bytes | memoryview) -> bytes:
    """16 bytes of BLAKE2b of an image's encoded bytes: nobody can construct two files that share it.

    Lets go of the GIL for more than 2 KB; about 1 GB/s a core.
    """
    return hashlib.blake2b(data, digest_size=16).digest()


def pixel_hash(images: Any) -> NDArray[np.uint64]:
    """(N, 2) uint64: a 128-bit digest of the pixels and their shape, whatever file they were decoded from.

    See the head of this module. `to_hex` makes text of it.

    Args:
        images: (N, ...) uint8, or a list of N uint8 arrays of any shapes; numpy, CuPy or torch. The shape of an image
            takes part: (2, 3, 3) and (3, 2, 3) differ, (2, 3) and (2, 3, 1) too.

    Raises:
        ValueError: Not uint8.
    """
    rows = to_torch(list(images) if isinstance(images, (list, tuple)) else images)
    parts = [row[None] for row in rows] if isinstance(rows, list) else [rows]
    return np.concatenate([np.empty((0, 2), np.uint64), *(_digests(part) for part in parts)])


def same_digests(digests: NDArray[np.uint64] | Iterable[bytes]) -> NDArray[np.int64]:
    """(N,) int64: for every digest the first one equal to it in all its bits, often itself.

    Args:
        digests: (N, 2) uint64 of `pixel_hash`, or N times 16 bytes of `content_hash`.

    Raises:
        ValueError: Neither.
    """
    if not isinstance(digests, np.ndarray):
        texts = list(digests)
        if any(len(text) != 16 for text in texts):
            raise ValueError("a digest is not 16 bytes long; those of content_hash are")
        digests = np.frombuffer(b"".join(texts), np.uint64).reshape(-1, 2)
    if digests.dtype != np.uint64 or digests.shape[1:] != (2,):
        raise ValueError(f"digests are {digests.dtype} of shape {digests.shape}; (N, 2) uint64 is needed")
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the first of equal ones stays the first
    ordered = digests[order]
    new = np.concatenate([np.ones(min(1, len(order)), bool), (ordered[1:] != ordered[:-1]).any(axis=1)])
    same = np.empty(len(order), np.int64)
    same[order] = order[new][np.cumsum(new) - 1]
    return same


def _digests(images: torch.Tensor) -> NDArray[np.uint64]:
    """Digests of images of one shape."""
    import torch

    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; uint8 is needed")
    shape = images.shape[1:]
    length = math.prod(shape)
    chunks = -(-length // _CHUNK)
    numbers = _numbers(str(images.device))
    sums = torch.empty((len(images), chunks, _COLUMNS), dtype=torch.int64, device=images.device)
    at_once = max(1, _AT_ONCE // max(1, chunks))
    for start in range(0, len(images), at_once):
        flat = images[start : start + at_once].flatten(1)
        for first in range(0, chunks, _AT_ONCE):
            part = flat[:, first * _CHUNK : (first + _AT_ONCE) * _CHUNK]
            part = torch.nn.functional.pad(part, (0, -part.shape[1] % _CHUNK))
            part = part.reshape(len(flat), -1, _CHUNK).to(torch.float64)
            sums[start : start + at_once, first : first + part.shape[1]] = (part @ numbers).to(torch.int64)
    words = torch.cat([sums & 0xFFFFFFFF, sums >> 32], dim=1)
    head = torch.tensor([len(shape), *shape], device=images.device)  # a size below 2^32
    head = head[None, :, None].expand(len(images), -1, _COLUMNS)
    words = torch.cat([head, words], dim=1)
    keys = torch.from_numpy(_random(1, words.shape[1] * _COLUMNS).view(np.int64)).to(images.device)
    columns = ((words * keys.view(-1, _COLUMNS)).sum(dim=1) >> 32) & 0xFFFFFFFF  # products and sums wrap, as wanted
    columns = (columns[:, 0::2] << 32) | columns[:, 1::2]
    return columns.cpu().numpy().view(np.uint64)


@cache
def _numbers(device: str) -> torch.Tensor:
    """(8192, 4) float64: the random 32-bit numbers of the chunks."""
    import torch

    numbers = _random(0, _CHUNK * _COLUMNS) >> np.uint64(32)
    return torch.from_numpy(numbers.reshape(_CHUNK, _COLUMNS).astype(np.float64)).to(device)


def _random(stream: int, count: int) -> NDArray[np.uint64]:
    """The first `count` numbers of SplitMix64 (Steele, Lea, Flood 2014): the same on every machine, for ever."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return mix(steps + (np.uint64(stream) << np.uint64(61)))

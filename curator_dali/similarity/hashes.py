"""Hashes of many images at once, on the device: perceptual ones as the imagehash package has them, and exact digests.

Bit i of a perceptual hash, counted from the highest, is the i-th of imagehash's 8 x 8 bits row by row, so hexadecimal
text is the same as `str(imagehash.phash(image))`.

An image without structure has a hash too, which says nothing: white, black and red images have the same one, and so has
a ramp that rises to the right. `hash_images` flags such images, so that they are compared with nothing.

Hashes are of grey images as Pillow's Lanczos reduces them, here by matrix products: the same integers, on every device.
DALI's Lanczos does not round between its passes: 1.8% of the dHashes of photographs would move by 5 bits and more (see
docs/deduplication.md). Pillow (13) makes an image narrower, rounds to uint8, then makes it lower; in the other order if
it loses more than twice as many rows as columns. Its weights are fixed-point numbers of 22 bits, so a pass is an
integer matrix product. On a CPU that multiplies int8 fast (VNNI, AMX), each weight is taken apart into three int8
digits; elsewhere the product runs in float64, where such sums are exact as well.

Exact duplicates share a digest of 128 bits: of their encoded bytes, or of their pixels. The digest of pixels is a keyed
universal hash in exact integer arithmetic, the same on every device:

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
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import to_torch
from curator_dali.sampling import mix
from curator_dali.similarity.pairs import blocks
from curator_dali.threads import import_whole

if TYPE_CHECKING:
    import torch

CONSTANT_HASHES = {
    "phash": np.array([0, 1 << 63], np.uint64),
    "dhash": np.array([0, 2**64 - 1], np.uint64),
}
"""Hashes that only blank images have: those of one colour, and ramps."""

_DCT_SIZE, _DCT_LOW = 32, 8  # imagehash's 8 x 8 of a 32 x 32 transform
_IMAGES_AT_ONCE = 1024  # 8 MB as float64
_UNSURE_COEFFICIENT = 1e-6  # coefficients go up to 10^6; float64 matrix products are off by less than 10^-8
# Images of one colour with noise of 2 levels reach 5 and 1; of 3,000 crops of photographs 4 lie below.
_FLAT_32_LEVELS, _FLAT_9_LEVELS = 4, 1
_FEWEST_BITS = 16  # of a pHash: the median leaves 32 set where most frequencies differ
_HEX_HASH = re.compile("[0-9a-fA-F]{16}")

_LANCZOS_LOBES = 3  # of the kernel, on each side
_WEIGHT_BITS = 22  # behind the point of Pillow's weights
_FLOATS_AT_ONCE = 2**22  # as float64: 32 MB

_CHUNK_BYTES, _COLUMNS = 8192, 4
_CHUNKS_AT_ONCE = 256  # 2 MB of bytes, 16 MB as float64


def hash_images(images: Any, kind: Literal["phash", "dhash"]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Perceptual hashes, and which of the images are blank: so little differs in them that the hash is noise.

    An image is blank where its greys, reduced to 32 x 32 (pHash) or 9 x 8 (dHash), lie within 4 or 1 levels of 256, as
    those of one colour do with noise. It is also blank where its bits tell little: fewer than 16 of a pHash are set (32
    are in photographs, a handful in what changes along one axis only, as ramps do), or all bits of a dHash are equal.
    The hash of a blank image says nothing of it and must not be compared.

    Args:
        images: As in `phash` or `dhash`.
        kind: "phash" or "dhash".

    Returns:
        (N,) uint64 and (N,) bool.

    Raises:
        ValueError, ImportError: As `phash`.
    """
    return (_hash_frequencies if kind == "phash" else _hash_steps)(images)


def phash(images: Any) -> NDArray[np.uint64]:
    """pHash: which of the 8 x 8 lowest frequencies of a two-dimensional DCT-II are above their median.

    Bit-equal to `imagehash.phash` of the same pixels, on every device. Where rounding decides (blank, mirrored or
    striped images: coefficients that ought to be equal), the image is transformed again on the host by SciPy, as
    imagehash does it.

    Args:
        images: Whole images, or what Pillow's Lanczos made of them in 32 x 32: (N, H, W, 3) RGB, (N, H, W, 1) or
            (N, H, W) grey, or a list of (H, W, 3), (H, W, 1) or (H, W) of any sizes; uint8; numpy, CuPy or torch.

    Raises:
        ValueError: Another dtype or shape, or an image without pixels.
        ImportError: SciPy is needed for such an image and is not installed.
    """
    return _hash_frequencies(images)[0]


def dhash(images: Any) -> NDArray[np.uint64]:
    """dHash: where the brightness rises from one pixel to its right neighbour. Bit-equal to `imagehash.dhash`.

    Args:
        images: As in `phash`; what is small already is 9 pixels wide and 8 high.

    Raises:
        ValueError: Another dtype or shape, or an image without pixels.
    """
    return _hash_steps(images)[0]


def _hash_frequencies(images: Any) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    pixels = _reduced(images, (_DCT_SIZE, _DCT_SIZE))
    import torch

    basis = _dct_basis(str(pixels.device))
    hashes = np.empty(len(pixels), np.uint64)
    for block in blocks(len(pixels), _IMAGES_AT_ONCE):
        part = pixels[block]
        # (n, 64) the lowest frequencies, (n, 1) their median
        low = (basis @ part.to(torch.float64) @ basis.T).flatten(1)
        ordered = low.sort(dim=1).values
        median = (ordered[:, 31:32] + ordered[:, 32:33]) / 2
        unsure = ((low - median).abs() < _UNSURE_COEFFICIENT).any(dim=1)
        packed = _pack_bits(low > median)
        if unsure.any():
            rows = torch.nonzero(unsure)[:, 0]
            packed[rows.cpu().numpy()] = _phash_by_scipy(part[rows].cpu().numpy())
        hashes[block] = packed
    return hashes, _is_flat(pixels, _FLAT_32_LEVELS) | _tells_little(hashes, "phash")


def _hash_steps(images: Any) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    pixels = _reduced(images, (8, 9))
    hashes = _pack_bits((pixels[:, :, 1:] > pixels[:, :, :-1]).flatten(1))
    return hashes, _is_flat(pixels, _FLAT_9_LEVELS) | _tells_little(hashes, "dhash")


def _reduced(images: Any, size: tuple[int, int]) -> torch.Tensor:
    """(N, height, width) uint8 grey, as Pillow's Lanczos makes it of whole images."""
    if not isinstance(images, list):
        return reduce(grey(images), size)
    import_whole("torch")
    import torch

    if not images:
        return torch.empty((0, *size), dtype=torch.uint8)
    return torch.cat([reduce(grey(image[None]), size) for image in to_torch(images)])


def _is_flat(pixels: torch.Tensor, levels: int) -> NDArray[np.bool_]:
    """Flag images whose greys lie within so many levels: (N, h, w) uint8 -> (N,) bool on the host."""
    flat: NDArray[np.bool_] = (pixels.amax((1, 2)) - pixels.amin((1, 2)) <= levels).cpu().numpy()
    return flat


def _tells_little(hashes: NDArray[np.uint64], kind: str) -> NDArray[np.bool_]:
    """Flag hashes that many images without structure share: (N,) uint64 -> (N,) bool."""
    if kind == "phash":
        return np.bitwise_count(hashes) < _FEWEST_BITS
    return np.isin(hashes, CONSTANT_HASHES["dhash"])


@cache
def _dct_basis(device: str) -> torch.Tensor:
    """(8, 32) float64: the lowest rows of the DCT-II, unscaled, as scipy.fftpack has it."""
    import torch

    frequency, place = torch.arange(_DCT_LOW, dtype=torch.float64), torch.arange(_DCT_SIZE, dtype=torch.float64)
    return (2 * torch.cos(torch.pi * frequency[:, None] * (2 * place + 1) / (2 * _DCT_SIZE))).to(device)


def _pack_bits(bits: torch.Tensor) -> NDArray[np.uint64]:
    """(N, 64) bool -> (N,) uint64, the first bit the highest."""
    import torch

    place = torch.arange(63, -1, -1, device=bits.device)
    return (bits.to(torch.int64) << place).sum(dim=1).cpu().numpy().view(np.uint64)  # the highest bit wraps, as wanted


def _phash_by_scipy(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    try:
        from scipy.fft import dct
    except ImportError as error:
        raise ImportError(
            "phash of blank or mirrored images needs SciPy: pip install 'curator-dali[curate]'"
        ) from error
    low = dct(dct(pixels, axis=1), axis=2)[:, :_DCT_LOW, :_DCT_LOW].reshape(-1, 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return bits.view(">u8")[:, 0].astype(np.uint64)


def find_comparable(values: NDArray[Any], kind: str) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Find the hashes that may be compared: none that is missing, and none that blank images share.

    Earlier versions stored the hashes of blank images, too.

    Args:
        values: (N,) uint64, or objects: 16 hexadecimal digits, or None where there is no hash.
        kind: "phash" or "dhash".

    Returns:
        (M,) int64 rows, ascending, and their (M,) hashes.

    Raises:
        ValueError: A text is no hash.
    """
    if values.dtype == object:
        rows = np.flatnonzero(values != None)  # noqa: E711 - element by element
        hashes = from_hex(values[rows].tolist())
    else:
        rows, hashes = np.arange(len(values)), values
    comparable = ~_tells_little(hashes, kind)
    return rows[comparable], hashes[comparable]


def to_hex(hashes: NDArray[np.uint64]) -> list[str]:
    """Hashes (N,) as imagehash prints them, 16 hexadecimal digits each; (N, 2) digests as 32 digits."""
    hashes = np.asarray(hashes)
    if hashes.dtype != np.uint64 or hashes.shape[1:] not in ((), (2,)):
        raise ValueError(f"hashes are {hashes.dtype} of shape {hashes.shape}; (N,) or (N, 2) uint64 is needed")
    digits = 16 * (hashes.shape[1] if hashes.ndim == 2 else 1)
    text = hashes.astype(">u8").tobytes().hex()
    return [text[start : start + digits] for start in range(0, len(text), digits)]


def from_hex(texts: Iterable[str]) -> NDArray[np.uint64]:
    """(N,) uint64 of hashes as imagehash prints them.

    Raises:
        ValueError: A text is not 16 hexadecimal digits.
    """
    texts = list(texts)
    for text in texts:
        if not _HEX_HASH.fullmatch(text):
            raise ValueError(f"{text!r} is no 64-bit hash; 16 hexadecimal digits are needed")
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64)


def grey(images: Any) -> torch.Tensor:
    """Brightness as Pillow's `convert("L")` has it, bit for bit: the luma of ITU-R BT.601.

    The transform `Grey` is DALI's own conversion, a node in the graph behind the decoder: off by one here and there.

    Args:
        images: (N, h, w, 3) uint8 RGB; (N, h, w, 1) and (N, h, w) are grey already. numpy, CuPy or torch.

    Returns:
        (N, h, w) uint8, on the same device.

    Raises:
        ValueError: Another dtype or shape.
    """
    pixels: torch.Tensor = to_torch(images)
    import torch

    channels = pixels.shape[3] if pixels.ndim == 4 else 1
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or channels not in (1, 3):
        raise ValueError(f"images are {pixels.dtype} of shape {tuple(pixels.shape)}; (N, h, w, 3) uint8 is needed")
    if channels == 1:
        return pixels.reshape(pixels.shape[:3])
    red, green, blue = (pixels[..., channel].to(torch.int32) for channel in range(3))
    # 16-bit fixed point, rounded: Pillow's own numbers
    luma = red.mul_(19595) + green.mul_(38470) + blue.mul_(7471)
    return luma.add_(1 << 15).bitwise_right_shift_(16).to(torch.uint8)


def reduce(images: torch.Tensor, size: tuple[int, int], *, fast: bool | None = None) -> torch.Tensor:
    """Scale grey images as `image.resize((width, height), Image.Resampling.LANCZOS)`, bit for bit.

    Args:
        images: (N, H, W) uint8, on any device.
        size: (height, width).
        fast: Whether to multiply in int8; None where the hardware does so.

    Returns:
        (N, height, width) uint8, on the same device.

    Raises:
        ValueError: The images have no pixels.
    """
    if 0 in images.shape[1:]:
        raise ValueError(f"images of {images.shape[1]} x {images.shape[2]} pixels have nothing to make smaller")
    fast = _has_fast_int8(images.device.type) if fast is None else fast
    (old_height, old_width), (height, width) = images.shape[1:], size
    tall = old_height > height and old_height - height > 2 * (old_width - width)
    images = images.transpose(1, 2) if tall else images
    for length in (height, width) if tall else (width, height):
        images = images.contiguous()
        if len(images) and images.shape[2] != length:
            # flat first: with one column the strides say nothing, and _int_mm goes by them
            narrow = (_by_digits if fast else _by_floats)(images.flatten().view(-1, images.shape[2]), length)
            images = narrow.view(*images.shape[:2], length)
        images = images.transpose(1, 2)
    return (images.transpose(1, 2) if tall else images).reshape(-1, *size)


def _has_fast_int8(device: str) -> bool:
    import torch

    # torch has no public names for either (2.13)
    return device == "cpu" and hasattr(torch, "_int_mm") and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _by_digits(rows: torch.Tensor, length: int) -> torch.Tensor:
    """One pass: (M, K) to (M, length), uint8."""
    import torch

    digits, offset = _weight_digits(rows.shape[1], length)
    products = torch._int_mm((rows ^ 128).view(torch.int8), digits)  # of value - 128
    low, middle, high = torch.split(products, length, dim=1)
    sums = torch.add(low, middle, alpha=1 << 8).add_(high, alpha=1 << 16).add_(offset)
    return sums.bitwise_right_shift_(_WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


def _by_floats(rows: torch.Tensor, length: int) -> torch.Tensor:
    """The same."""
    import torch

    weights = _weight_floats(rows.shape[1], length, str(rows.device))
    parts = torch.split(rows, max(1, _FLOATS_AT_ONCE // rows.shape[1]))
    sums = torch.cat([part.to(torch.float64) @ weights for part in parts]).add_(1 << (_WEIGHT_BITS - 1))
    return sums.mul_(2.0**-_WEIGHT_BITS).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=1024)  # of ordinary photographs 60 kB each
def _weight_digits(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(old, 3 new) int8, the lowest digits to base 256 first; (new,) int32 to add, for rounding and the 128."""
    import torch

    at, weights = _weights(old, new)
    offset = 128 * weights.sum(1, dtype=np.int32) + np.int32(1 << (_WEIGHT_BITS - 1))
    table = np.zeros((old + at.shape[1], 3, new), np.int8)
    for place in range(3):
        digit = weights.astype(np.int8)
        table[at, place, np.arange(new)[:, None]] = digit
        weights = (weights - digit) >> 8
    return torch.from_numpy(table[:old].reshape(old, -1)), torch.from_numpy(offset)


@lru_cache(maxsize=256)
def _weight_floats(old: int, new: int, device: str) -> torch.Tensor:
    """(old, new) float64."""
    import torch

    at, weights = _weights(old, new)
    table = np.zeros((old + at.shape[1], new))
    table[at, np.arange(new)[:, None]] = weights
    return torch.from_numpy(table[:old]).to(device)


def _weights(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Of each new value the places of the old ones that it is made of, (new, K), and their weights in fixed point.

    Places may go beyond the last old value; the weight is 0 there.
    """
    scale = old / new
    reach = _LANCZOS_LOBES * max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(0, (centre - reach + 0.5).astype(np.int64))
    last = np.minimum(old, (centre + reach + 0.5).astype(np.int64))
    at = first[:, None] + np.arange((last - first).max())
    angle = (at - centre[:, None] + 0.5) * (np.pi * _LANCZOS_LOBES / reach)
    angle[angle == 0] = 1e-9
    weights = np.sin(angle) * np.sin(angle / _LANCZOS_LOBES) / (angle * angle)
    weights[(at >= last[:, None]) | (np.abs(angle) > np.pi * _LANCZOS_LOBES)] = 0
    weights /= weights.sum(1, keepdims=True)
    return at, np.rint(weights * 2**_WEIGHT_BITS).astype(np.int32)


def content_hash(data: bytes | memoryview) -> bytes:
    """16 bytes of BLAKE2b of an image's encoded bytes: nobody can construct two files that share it.

    Lets go of the GIL for more than 2 KB; about 1 GB/s a core.
    """
    return hashlib.blake2b(data, digest_size=16).digest()


def pixel_hash(images: Any) -> NDArray[np.uint64]:
    """(N, 2) uint64: a 128-bit digest of the pixels and their shape, whatever file they were decoded from.

    See the head of this file. `to_hex` makes text of it.

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
    chunks = -(-length // _CHUNK_BYTES)
    numbers = _chunk_numbers(str(images.device))
    sums = torch.empty((len(images), chunks, _COLUMNS), dtype=torch.int64, device=images.device)
    at_once = max(1, _CHUNKS_AT_ONCE // max(1, chunks))
    for start in range(0, len(images), at_once):
        flat = images[start : start + at_once].flatten(1)
        for first in range(0, chunks, _CHUNKS_AT_ONCE):
            part = flat[:, first * _CHUNK_BYTES : (first + _CHUNKS_AT_ONCE) * _CHUNK_BYTES]
            part = torch.nn.functional.pad(part, (0, -part.shape[1] % _CHUNK_BYTES))
            part = part.reshape(len(flat), -1, _CHUNK_BYTES).to(torch.float64)
            sums[start : start + at_once, first : first + part.shape[1]] = (part @ numbers).to(torch.int64)
    words = torch.cat([sums & 0xFFFFFFFF, sums >> 32], dim=1)
    head = torch.tensor([len(shape), *shape], device=images.device)  # a size below 2^32
    head = head[None, :, None].expand(len(images), -1, _COLUMNS)
    words = torch.cat([head, words], dim=1)
    keys = torch.from_numpy(_random_numbers(1, words.shape[1] * _COLUMNS).view(np.int64)).to(images.device)
    columns = ((words * keys.view(-1, _COLUMNS)).sum(dim=1) >> 32) & 0xFFFFFFFF  # products and sums wrap, as wanted
    columns = (columns[:, 0::2] << 32) | columns[:, 1::2]
    return columns.cpu().numpy().view(np.uint64)


@cache
def _chunk_numbers(device: str) -> torch.Tensor:
    """(8192, 4) float64: the random 32-bit numbers of the chunks."""
    import torch

    numbers = _random_numbers(0, _CHUNK_BYTES * _COLUMNS) >> np.uint64(32)
    return torch.from_numpy(numbers.reshape(_CHUNK_BYTES, _COLUMNS).astype(np.float64)).to(device)


def _random_numbers(stream: int, count: int) -> NDArray[np.uint64]:
    """The first `count` numbers of SplitMix64 (Steele, Lea, Flood 2014): the same on every machine, for ever."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return mix(steps + (np.uint64(stream) << np.uint64(61)))

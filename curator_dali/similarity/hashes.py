"""Perceptual hashes as the imagehash package defines them, of many images at once, on the device.

Bit i of a hash, counted from the highest, is the i-th of imagehash's 8 x 8 bits row by row, so hexadecimal text is the
same as `str(imagehash.phash(image))`.

An image without structure has a hash too, which says nothing: white, black and red images have the same one, and so has
a ramp that rises to the right. `hash_images` flags such images, so that they are compared with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import to_torch
from curator_dali.similarity.lanczos import reduce
from curator_dali.threads import import_whole

if TYPE_CHECKING:
    import torch

__all__ = [
    "CONSTANT_HASHES",
    "dhash",
    "find_comparable",
    "from_hex",
    "grey",
    "hash_images",
    "phash",
    "to_hex",
]

CONSTANT_HASHES = {
    "phash": np.array([0, 1 << 63], np.uint64),
    "dhash": np.array([0, 2**64 - 1], np.uint64),
}
"""Hashes that only blank images have: those of one colour, and ramps."""

_SIZE, _LOW = 32, 8  # imagehash's 8 x 8 of a 32 x 32 transform
_AT_ONCE = 1024  # images; 8 MB as float64
_UNSURE = 1e-6  # coefficients go up to 10^6; float64 matrix products are off by less than 10^-8
# Images of one colour with noise of 2 levels reach 5 and 1; of 3,000 crops of photographs 4 lie below.
_FLAT_32, _FLAT_9 = 4, 1
_HEX = re.compile("[0-9a-fA-F]{16}")
_FEWEST_BITS = 16  # of a pHash: the median leaves 32 set where most frequencies differ


def grey(images: Any) -> torch.Tensor:
    """Brightness as Pillow's `convert("L")` has it, bit for bit.

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
    red, green, blue = pixels.to(torch.int32).unbind(3)
    # ITU-R 601-2 in 16-bit fixed point, rounded: Pillow's own numbers
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)


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


def find_comparable(values: NDArray[Any], kind: str) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Find the hashes that may be compared: those that are there, and none that blank images share.

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
    told = ~_tells_little(hashes, kind)
    return rows[told], hashes[told]


def _tells_little(hashes: NDArray[np.uint64], kind: str) -> NDArray[np.bool_]:
    """Flag hashes that many images without structure share: (N,) uint64 -> (N,) bool."""
    if kind == "phash":
        return np.bitwise_count(hashes) < _FEWEST_BITS
    return np.isin(hashes, CONSTANT_HASHES["dhash"])


def _hash_frequencies(images: Any) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """pHash, and which images are blank by it."""
    pixels = _reduced(images, (_SIZE, _SIZE))
    import torch

    basis = _basis(str(pixels.device))
    hashes = np.empty(len(pixels), np.uint64)
    for start in range(0, len(pixels), _AT_ONCE):
        part = pixels[start : start + _AT_ONCE]
        low = (basis @ part.to(torch.float64) @ basis.T).flatten(1)
        ordered = low.sort(dim=1).values
        median = (ordered[:, 31:32] + ordered[:, 32:33]) / 2
        unsure = ((low - median).abs() < _UNSURE).any(dim=1)
        packed = _pack(low > median)
        if unsure.any():
            rows = torch.nonzero(unsure)[:, 0]
            packed[rows.cpu().numpy()] = _phash_by_scipy(part[rows].cpu().numpy())
        hashes[start : start + _AT_ONCE] = packed
    return hashes, _is_flat(pixels, _FLAT_32) | _tells_little(hashes, "phash")


def _hash_steps(images: Any) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """dHash, and which images are blank by it."""
    pixels = _reduced(images, (8, 9))
    hashes = _pack((pixels[:, :, 1:] > pixels[:, :, :-1]).flatten(1))
    return hashes, _is_flat(pixels, _FLAT_9) | _tells_little(hashes, "dhash")


def _is_flat(pixels: torch.Tensor, levels: int) -> NDArray[np.bool_]:
    """Flag images whose greys lie within so many levels: (N, h, w) uint8 -> (N,) bool on the host."""
    if not len(pixels):
        return np.zeros(0, bool)
    flat: NDArray[np.bool_] = (pixels.amax((1, 2)) - pixels.amin((1, 2)) <= levels).cpu().numpy()
    return flat


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
        if not _HEX.fullmatch(text):
            raise ValueError(f"{text!r} is no 64-bit hash; 16 hexadecimal digits are needed")
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64)


def _reduced(images: Any, size: tuple[int, int]) -> torch.Tensor:
    """(N, height, width) uint8 grey, as Pillow's Lanczos makes it of whole images."""
    if not isinstance(images, list):
        return reduce(grey(images), size)
    import_whole("torch")
    import torch

    if not images:
        return torch.empty((0, *size), dtype=torch.uint8)
    return torch.cat([reduce(grey(image[None]), size) for image in to_torch(images)])


@cache
def _basis(device: str) -> torch.Tensor:
    """(8, 32) float64: the lowest rows of the DCT-II, unscaled, as scipy.fftpack has it."""
    import torch

    frequency, place = torch.arange(_LOW, dtype=torch.float64), torch.arange(_SIZE, dtype=torch.float64)
    return (2 * torch.cos(torch.pi * frequency[:, None] * (2 * place + 1) / (2 * _SIZE))).to(device)


def _pack(bits: torch.Tensor) -> NDArray[np.uint64]:
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
    low = dct(dct(pixels, axis=1), axis=2)[:, :_LOW, :_LOW].reshape(-1, 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return bits.view(">u8")[:, 0].astype(np.uint64)

"""One image encoded as a `Write` asks: its colour profile, its bytes, and a note of what was done."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.decoding import pillow
from curator_dali.io import one_line, printable

Format = Literal["jpeg", "webp", "png"]

EXTENSIONS: Mapping[str, str] = {"jpeg": "jpg", "webp": "webp", "png": "png"}
"""Format -> extension of the member that holds it."""

LONGEST_SIDES = {"jpeg": 65_500, "webp": 16_383, "png": 1_000_000}
"""Format -> pixels of the longest side that its encoder takes; libpng refuses sides over a million."""

_LONGEST_NAME = 60  # characters of a profile's name
_STEPS = 9  # of each channel, in the colours that tell whether a profile is sRGB
_SAME_COLOUR = 1  # of 255, that these may differ by


@dataclass(frozen=True)
class Profile:
    """An ICC profile of RGB images.

    Attributes:
        data: The profile's bytes.
        name: Its description.
        is_srgb: Whether sRGB has the same colours, within 1/255.
        transform: The `PIL.ImageCms.ImageCmsTransform` to sRGB.
    """

    data: bytes
    name: str
    is_srgb: bool
    transform: Any


def read_profile(data: Any) -> Profile | str:
    """Read the ICC profile that an encoded image embeds.

    Returns:
        The profile; or a note on one that is left out ("damaged profile left out"), "" where there is none.
    """
    try:
        with pillow.open_image(data) as image:
            embedded = image.info.get("icc_profile")
    except MemoryError:
        raise
    except Exception:  # Pillow's plugins raise almost anything; the image was decoded by another library
        return "unreadable profile left out"
    return _load_profile(embedded) if embedded else ""


@lru_cache(maxsize=64)
def _load_profile(data: bytes) -> Profile | str:
    from PIL import Image, ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = str(profile.profile.xcolor_space).strip()
        if space != "RGB":
            return f"{_clean(space)} profile left out"
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
        name = _clean(ImageCms.getProfileDescription(profile)) or "unnamed profile"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return "damaged profile left out"
    levels = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(_STEPS, -1, 3)  # (9, 81, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    difference = np.abs(converted.astype(np.int16) - colours).max()
    return Profile(data, name, bool(difference <= _SAME_COLOUR), transform)


def _clean(text: str) -> str:
    return one_line(printable(text)).strip()[:_LONGEST_NAME]


@dataclass(frozen=True)
class Encoded:
    """An image as it is written.

    Attributes:
        data: Its bytes.
        columns: What its row says of them, by the names of `WRITTEN`.
    """

    data: Any
    columns: Mapping[str, Any]


WRITTEN = {
    "written_width": "int32",
    "written_height": "int32",
    "written_format": "string",
    "written_bytes": "int64",
    "written_sha256": "string",
    "written_as": "string",
}
"""Columns that say of an image what was written, with their types."""

SHA256 = "sha256"
"""The column with the SHA-256 of the original bytes."""


def keep_original(data: Any, size: tuple[int, int], format: str) -> Encoded:
    """Make the record of an image that is written as its original bytes.

    Args:
        data: The bytes.
        size: Height and width of the upright image.
        format: "jpeg", "webp" or "png".
    """
    digest = hashlib.sha256(data).hexdigest()
    return _describe(data, size, format, "original", digest, digest)


def encode(
    pixels: NDArray[np.uint8],
    original: Any,
    profile: Profile | str,
    format: Format,
    quality: int,
    to_srgb: bool,
) -> Encoded:
    """Encode pixels. Equal arguments give equal bytes.

    Args:
        pixels: (H, W, 3) uint8 RGB on the host, in the colours of `profile`.
        original: The bytes that the pixels were decoded from, for their hash.
        profile: As `read_profile` gives it.
        format: What to encode to.
        quality: Of JPEG and WebP, 1 to 100.
        to_srgb: Whether to convert to sRGB and embed no profile; else the profile is embedded.

    Raises:
        Exception: The encoder refuses the image.
    """
    from PIL import Image, ImageCms

    image = Image.fromarray(pixels)
    options: dict[str, Any] = {"compress_level": 6} if format == "png" else {"quality": quality}
    done = f"{format} {image.width}x{image.height}" + ("" if format == "png" else f" q{quality}")
    if isinstance(profile, str):
        done += f", {profile}" if profile else ""
    elif not to_srgb:
        done += f", {profile.name}"
        options["icc_profile"] = profile.data
    elif not profile.is_srgb:
        done += f", {profile.name} -> sRGB"
        ImageCms.applyTransform(image, profile.transform, inPlace=True)
        image.info.clear()  # Pillow's profile of sRGB, which names the time at which it was made
    buffer = io.BytesIO()
    image.save(buffer, format.upper(), **options)
    data = buffer.getvalue()
    digests = (hashlib.sha256(part).hexdigest() for part in (original, data))
    return _describe(data, (image.height, image.width), format, done, *digests)


def _describe(data: Any, size: tuple[int, int], format: str, done: str, before: str, after: str) -> Encoded:
    values = (size[1], size[0], format, len(data), after, done)
    return Encoded(data, {**dict(zip(WRITTEN, values, strict=True)), SHA256: before})

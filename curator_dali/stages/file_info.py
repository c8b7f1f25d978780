"""`FileInfo`: digests of an image's file, and what its header says: format, colour profile, camera, date, place."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from curator_dali.arrays import missing
from curator_dali.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.stages.base import Stage, checked_stage, list_images

# Tags of EXIF 2.32, and of its folders.
_MAKE, _MODEL, _CHANGED, _EXIF_FOLDER, _GPS_FOLDER = 0x010F, 0x0110, 0x0132, 0x8769, 0x8825
_TAKEN, _TAKEN_ZONE = 0x9003, 0x9011
_LATITUDE, _LONGITUDE = (1, 2, 90.0), (3, 4, 180.0)  # tags of the hemisphere and of the angle; the largest angle
_FORMATS = {"mpo": "jpeg"}  # JPEGs with a second image behind the first, as phones write them


@checked_stage
@dataclass(frozen=True)
class FileInfo(Stage):
    """Write facts of an image's file as columns. They are read from the original bytes; no pixel is decoded for it.

    - `sha256`, `md5`: digests of the encoded bytes, in hexadecimal digits.
    - `format`: "jpeg", "png", "webp", "gif", ..., as Pillow names it in lower case.
    - `color_mode`: "RGB", "L" (grey), "CMYK", "RGBA", ..., as Pillow names it: that of the file, not of the pixels that
      are decoded to RGB.
    - `color_profile`: the name in the embedded ICC profile, as "Display P3".
    - `camera_make`, `camera_model`, `taken_at` (ISO 8601, in the camera's local time where no zone is given): of EXIF.
    - `latitude`, `longitude` (float64, degrees, north and east positive): of EXIF.

    An image that has not got a fact, or has it in a damaged form, has None (NaN for numbers). Camera, date and place
    may identify people: they are written only where they are named.

    Args:
        columns: Which of these.

    Raises:
        StageError: There is no such column, or none is named.
    """

    columns: tuple[str, ...] = ("sha256", "format", "color_profile")

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in _COLUMNS]
        if unknown or not self.columns or len(set(self.columns)) < len(self.columns):
            raise StageError(f"FileInfo.columns is {self.columns!r}; allowed: some of {', '.join(_COLUMNS)}, each once")

    @property
    def reads(self) -> frozenset[str]:
        """The images' bytes."""
        return frozenset(["encoded"])

    @property
    def writes(self) -> Mapping[str, str]:
        """The columns."""
        return {name: "float64" if name in ("latitude", "longitude") else "string" for name in self.columns}

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add the columns."""
        found = {name: missing(len(batch), kind) for name, kind in self.writes.items()}
        for row, image in enumerate(list_images(self, batch)):
            for name, value in read_facts(image, self.columns).items():
                if value is not None:
                    found[name][row] = value
        batch.columns.update(found)
        return batch


def read_facts(data: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Read facts of an encoded image, bytes-like: column -> value, None where the image has not got the fact."""
    found: dict[str, Any] = {name: hashlib.new(name, data).hexdigest() for name in columns if name in _DIGESTS}
    wanted = [name for name in columns if name not in found]
    if not wanted:
        return found
    from PIL import Image

    with warnings.catch_warnings(), suppress(Exception):  # Pillow's plugins raise almost anything on damaged headers
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            for name in wanted:
                with suppress(Exception):
                    found[name] = _READERS[name](image)
    return {name: found.get(name) for name in columns}


def _read_format(image: Any) -> str:
    name = str(image.format).lower()
    return _FORMATS.get(name, name)


def _read_profile(image: Any) -> str | None:
    """The name of the embedded ICC profile."""
    from PIL import ImageCms

    data = image.info.get("icc_profile")
    return _clean(ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data)))) if data else None


def _read_taken(image: Any) -> str | None:
    """When the photograph was taken, or the file changed where only that is known."""
    exif = image.getexif()
    own = exif.get_ifd(_EXIF_FOLDER)
    text = _clean(own.get(_TAKEN)) or _clean(exif.get(_CHANGED))
    if text is None:
        return None
    taken = datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S").isoformat()
    zone = _clean(own.get(_TAKEN_ZONE)) if own.get(_TAKEN) else None
    with suppress(ValueError):
        return datetime.fromisoformat(f"{taken}{zone or ''}").isoformat()
    return taken


def _read_angle(image: Any, hemisphere: int, angle: int, most: float) -> float | None:
    """Degrees of a latitude or longitude; None where there is none, or no angle."""
    place = image.getexif().get_ifd(_GPS_FOLDER)
    if angle not in place:
        return None
    degrees, minutes, seconds = (float(part) for part in place[angle])
    found = degrees + minutes / 60 + seconds / 3600
    sign = -1 if str(place.get(hemisphere, "")).strip().upper()[:1] in ("S", "W") else 1
    return sign * found if math.isfinite(found) and 0 <= found <= most else None


def _clean(value: Any) -> str | None:
    """A text without zeros and white space at its ends; None of an empty one."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
    return text.strip("\0 \t\r\n") or None


_DIGESTS = ("sha256", "md5")
_READERS: dict[str, Callable[[Any], Any]] = {
    "format": _read_format,
    "color_mode": lambda image: image.mode,
    "color_profile": _read_profile,
    "camera_make": lambda image: _clean(image.getexif().get(_MAKE)),
    "camera_model": lambda image: _clean(image.getexif().get(_MODEL)),
    "taken_at": _read_taken,
    "latitude": lambda image: _read_angle(image, *_LATITUDE),
    "longitude": lambda image: _read_angle(image, *_LONGITUDE),
}
_COLUMNS = (*_DIGESTS, *_READERS)

"""Which way up a JPEG is, from its EXIF segment alone: microseconds, no pixels."""

from __future__ import annotations

import struct

__all__ = ["TURNED", "jpeg_orientation"]

TURNED = (5, 6, 7, 8)
"""Orientations that swap height and width (EXIF 2.3, tag 0x0112)."""

_ORIENTATION, _SHORT = 0x0112, 3
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1, _START_OF_SCAN = b"\xff\xe1", b"\xff\xda"
_TABLES = 640  # bytes; enough for the tables and the frame header that usually follow the application's segments
_MOST_ENTRIES = 512  # of a directory; a real one has some dozens


def jpeg_orientation(data: memoryview) -> int | None:
    """The orientation of a JPEG, 1 to 8, where DALI and Pillow read the same one.

    Without EXIF, or with a value out of range (some cameras write 0), the image lies as it is: 1.

    Args:
        data: The file's bytes.

    Returns:
        None where only Pillow's reading counts: several or damaged EXIF segments, one behind the first segment that
        is neither an application's nor a comment, and an orientation in XMP instead.
    """
    at, found, in_xmp = 2, None, False
    while at + 4 <= len(data) and data[at] == 0xFF and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        size = data[at + 2] << 8 | data[at + 3]
        if data[at + 1] == 0xE1:
            segment = data[at + 4 : at + 2 + size]
            if segment[:6] == _EXIF:
                if found is not None:
                    return None
                found = _from_tiff(bytes(segment[6:]))
                if found is None:
                    return None
            elif segment[: len(_XMP)] == _XMP:
                in_xmp = in_xmp or b"tiff:Orientation" in bytes(segment)
        at += 2 + size
    rest = bytes(data[at : at + _TABLES])
    if (_APP1 in rest or _START_OF_SCAN not in rest) and _is_late(data, at):
        return None
    if not found:
        return None if in_xmp else 1
    return found if found <= 8 else 1


def _is_late(data: memoryview, at: int) -> bool:
    """Whether EXIF or XMP follows among the segments from `at` to the first scan, where writers hardly ever put it."""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if data[at + 1] == 0xE1:
            segment = bytes(data[at + 4 : at + 4 + len(_XMP)])
            if segment.startswith(_EXIF) or segment == _XMP:
                return True
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _from_tiff(tiff: bytes) -> int | None:
    """The tag's value in the first directory, 0 without one; None where the directory is damaged or of another type."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return None
    (entries,) = struct.unpack_from(f"{order}H", tiff, start)
    if entries > _MOST_ENTRIES or start + 2 + 12 * entries > len(tiff):
        return None
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and count == 1 else None
    return 0

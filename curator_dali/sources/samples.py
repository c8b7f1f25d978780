"""What the members of a sample mean, whatever they are kept in: names, image extensions and sidecars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = [
    "IMAGE_EXTENSIONS",
    "SIDECARS",
    "image_member",
    "is_image",
    "parse_metadata",
    "sniff_extension",
    "split_name",
]

IMAGE_EXTENSIONS = frozenset(["jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "jp2", "gif", "avif", "heic"])
"""Extensions, in lower case, of members that are images; names are compared without regard to case."""

SIDECARS = ("json", "txt", "cls")
"""Extensions of the members that become metadata, in the order that `parse_metadata` takes them."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8", "jpg"),
    (0, b"\x89PNG", "png"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"GIF8", "gif"),
    (0, b"II*\0", "tif"),
    (0, b"MM\0*", "tif"),
    (4, b"jP  ", "jp2"),
    (4, b"ftypavif", "avif"),
    (4, b"ftyphei", "heic"),
)


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension as WebDataset does: at the first dot of the last component.

    Returns:
        `("a/b", "left.jpg")` for `a/b.left.jpg`, or None where the last component has no dot or starts with one
        (`README`, `.DS_Store`, `._a.jpg`): WebDataset passes over such members, and so do we.
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    return (name[:dot], name[dot + 1 :]) if dot > start else None


def is_image(name: str) -> bool:
    """Whether a file's name ends in an image extension, in either case."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def sniff_extension(head: bytes | memoryview) -> str:
    """The extension that fits an image's first 16 bytes; jpg where none does."""
    head = bytes(head[:16])
    return next((extension for at, magic, extension in _MAGIC if head.startswith(magic, at)), "jpg")


def image_member(members: Mapping[str, memoryview], path: str) -> memoryview:
    """The image among a sample's members.

    Args:
        members: Extension -> bytes.
        path: The sample's `image_path`, whose name decides where several are images.
    """
    images = [extension for extension in members if is_image(f".{extension}")] or list(members)
    if len(images) > 1:
        name = path.partition("::")[0]
        images = sorted(images, key=lambda extension: (not name.endswith(f".{extension}"), -len(extension)))
    return members[images[0]] if images else memoryview(b"")


def parse_metadata(
    json_bytes: bytes | None = None,
    txt: bytes | None = None,
    cls: bytes | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    problem: str = "",
) -> dict[str, Any]:
    """Make a sample's metadata of its sidecars.

    The fields of a JSON object come first; any other JSON value is kept under `"json"`. `.txt` is the `caption`
    unless the JSON has one. `.cls` is the `label` (int), also over one in the JSON: it is there for nothing else.
    `defaults` (a folder's label) fill what is still missing. What cannot be parsed never costs the image: the
    reason stands under `"metadata_error"`.

    Args:
        json_bytes: The `.json` member, if there is one.
        txt: The `.txt` member.
        cls: The `.cls` member, an integer in ASCII.
        defaults: Fields of lowest precedence.
        problem: A reason why a sidecar could not be read, if there was one.
    """
    metadata: dict[str, Any] = {}
    problems = [problem] if problem else []
    if json_bytes is not None:
        try:
            value = json.loads(json_bytes)
        except (ValueError, RecursionError) as error:  # RecursionError: hostile nesting
            problems.append(f"invalid .json: {error}")
        else:
            metadata = value if isinstance(value, dict) else {"json": value}
    if txt is not None:
        metadata.setdefault("caption", txt.decode("utf-8", "replace").strip())
    if cls is not None:
        try:
            metadata["label"] = int(cls)
        except ValueError:
            problems.append(f"invalid .cls: {cls[:40]!r} is not an integer")
    for name, value in (defaults or {}).items():
        metadata.setdefault(name, value)
    if problems:
        metadata["metadata_error"] = "; ".join(problems)
    return metadata

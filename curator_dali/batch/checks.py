"""What can be wrong with a batch: rows that do not match, bad ids, paths that lead nowhere, odd shapes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curator_dali.batch.image import ImageObject

__all__ = ["dtype_of", "misaligned", "name", "problems"]


def problems(data: Sequence[ImageObject], rows: Mapping[str, Any], check_paths: bool = True) -> list[str]:
    """Every reason why a batch is not as it should be, a line each; see `ImageBatch.problems`.

    Args:
        data: N images.
        rows: "images", "embeddings" and "encoded" -> N rows, or None.
        check_paths: Whether to look for every path.
    """
    found = misaligned(data, rows)
    images, embeddings = rows["images"], rows["embeddings"]
    counts = Counter(item.image_id for item in data)
    found += [f"image_id {key!r} is used by {count} images" for key, count in counts.items() if count > 1 and key]
    found += [f"image {i} has no image_id" for i, item in enumerate(data) if not item.image_id]
    pixels = [item.image_data for item in data] if images is None else list(images)
    for i, image in enumerate(pixels):
        if image is not None and not _is_image(image):
            found.append(
                f"{name(data, i)}: pixels are {tuple(image.shape)} {dtype_of(image)}, not (H, W, 3) uint8 "
                "nor (H, W, 3) or (3, H, W) floating point"
            )
    if embeddings is not None and (embeddings.ndim != 2 or "float" not in dtype_of(embeddings)):
        found.append(f"embeddings are {tuple(embeddings.shape)} {dtype_of(embeddings)}, not (N, D) float")
    if check_paths:
        for i, trouble in _path_troubles([item.image_path for item in data]):
            found.append(f"{name(data, i)}: {trouble}")
    return found


def misaligned(data: Sequence[ImageObject], rows: Mapping[str, Any]) -> list[str]:
    """Arrays that do not have a row an image."""
    return [
        f"{len(array)} rows of {what} for {len(data)} images in data"
        for what, array in rows.items()
        if array is not None and len(array) != len(data)
    ]


def name(data: Sequence[ImageObject], row: int) -> str:
    """What to call an image in a message."""
    return f"image {row} ({data[row].image_id if row < len(data) else ''!r})"


def dtype_of(array: Any) -> str:
    """An array's or tensor's dtype as numpy names it."""
    return str(array.dtype).removeprefix("torch.")


def _is_image(image: Any) -> bool:
    shape = tuple(image.shape)
    if len(shape) != 3 or 0 in shape:
        return False
    return (shape[2] == 3 and dtype_of(image) == "uint8") or (3 in (shape[0], shape[2]) and "float" in dtype_of(image))


def _path_troubles(paths: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The paths that lead nowhere. An archive named by many (`tar://a.jpg::/data/0.tar`) is opened once."""
    from fsspec.core import url_to_fs

    archives: dict[tuple[str, str], Any] = {}
    for i, path in enumerate(map(os.fspath, paths)):
        first, _, chain = path.partition("::")
        protocol, _, inner = first.rpartition("://")
        try:
            if not path:
                yield i, "has no image_path"
                continue
            if not protocol and not chain:
                exists = os.path.exists(path)
            elif protocol and chain:
                key = (protocol, chain)
                if key not in archives:
                    archives[key] = None  # for those that follow, if it cannot be opened
                    archives[key], _ = url_to_fs(path)
                exists = archives[key] is not None and archives[key].exists(inner)
            else:
                filesystem, inner = url_to_fs(path)
                exists = filesystem.exists(inner)
            if not exists:
                yield i, f"image_path {path!r} does not exist"
        except Exception as error:  # each store has its own
            yield i, f"image_path {path!r} cannot be looked up: {error}"

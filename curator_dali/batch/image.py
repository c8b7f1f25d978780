"""`ImageObject`: one image, with the names and meanings of NeMo Curator's; its fields, and checks of many images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import objects, with_gaps
from curator_dali.view import draw_image, size_of

_ATTRIBUTES = ("image_id", "image_path", "aesthetic_score", "nsfw_score")


class LazyMetadata:
    """A dict, or a function without arguments that returns it and is called when the attribute is first read."""

    @overload
    def __get__(self, item: None, owner: type) -> LazyMetadata: ...
    @overload
    def __get__(self, item: object, owner: type) -> dict[str, Any]: ...
    def __get__(self, item: object | None, owner: type) -> Any:
        if item is None:
            return self
        value = item.__dict__["_metadata"]
        if callable(value):
            value = item.__dict__["_metadata"] = value()
        return value

    def __set__(self, item: object, value: dict[str, Any] | Callable[[], dict[str, Any]]) -> None:
        item.__dict__["_metadata"] = value


class _Described:
    """Holds the descriptor, because `@dataclass` takes a field's default away from the class that has the field."""

    metadata = LazyMetadata()


@dataclass(repr=False)
class ImageObject(_Described):
    """One image: who it is, what came beside it, what was computed of it, and its pixels once they are on the host.

    Attributes:
        image_path: URL that `fsspec.open` opens; tells every sample of a source apart.
        image_id: The sample's key.
        metadata: What came beside the image. The constructor (and assignment) also takes a function without arguments
            that returns the dict: it is called when `metadata` is first read, compared or pickled, and never again.
        image_data: (H, W, 3) uint8 RGB on the host, or None.
        embedding: (D,) float on the host, or None.
        aesthetic_score: LAION aesthetic score, or None.
        nsfw_score: Probability in [0, 1], or None.
    """

    image_path: str = ""
    image_id: str = ""
    if TYPE_CHECKING:
        metadata: LazyMetadata = LazyMetadata()  # the constructor takes what `__set__` takes
    else:
        metadata: dict[str, Any] = field(default_factory=dict)
    image_data: NDArray[Any] | None = None
    embedding: NDArray[Any] | None = None
    aesthetic_score: float | None = None
    nsfw_score: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        _ = self.metadata  # a function over open files would not pickle
        return self.__dict__

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __repr__(self) -> str:
        parts = [f"{self.image_id!r}, path {self.image_path!r}"]
        metadata = self.__dict__["_metadata"]
        parts.append("metadata not read yet" if callable(metadata) else f"metadata {sorted(map(str, metadata))}")
        parts += [
            f"{name} {'x'.join(map(str, np.shape(value)))}"
            for name, value in (("pixels", self.image_data), ("embedding", self.embedding))
            if value is not None
        ]
        parts += [
            f"{name} {value:.3g}"
            for name, value in (("aesthetic", self.aesthetic_score), ("nsfw", self.nsfw_score))
            if value is not None
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        pixels, embedding = self.image_data, self.embedding
        size = () if pixels is None else size_of(pixels.shape)
        facts = {
            "id": self.image_id,
            "path": self.image_path,
            "pixels": " × ".join(map(str, reversed(size))),
            "aesthetic score": self.aesthetic_score,
            "nsfw score": self.nsfw_score,
            "embedding": None if embedding is None else f"{embedding.size} {embedding.dtype}",
            **{f"metadata {key}": value for key, value in self.metadata.items()},
        }
        return draw_image(pixels, self.image_id, facts)


def _same(a: Any, b: Any) -> bool:
    """Equality of two field values that may be arrays."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is b or (a is not None and b is not None and np.array_equal(a, b))
    return bool(a == b)


def clone(item: ImageObject, changes: Mapping[str, Any]) -> ImageObject:
    """A copy of an image that leaves lazy metadata unread; `dataclasses.replace` would read it."""
    new = object.__new__(type(item))
    new.__dict__.update(item.__dict__)
    new.__dict__.update(changes)
    metadata = new.__dict__["_metadata"]
    new.__dict__["_metadata"] = metadata if callable(metadata) else dict(metadata)
    return new


def field_values(data: Sequence[ImageObject], columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """A field's value for each image.

    Looks into `columns` first, then at the attributes that have a value, then into the metadata.

    Args:
        data: N images.
        columns: Name -> (N,) values.
        name: The field.

    Returns:
        (N,): numbers as float64 with NaN where an image has none, int64 or bool where all have one; else objects, with
        None where an image has none.

    Raises:
        KeyError: No image has the field; the message names those that there are.
    """
    if name in columns:
        return columns[name]
    found: list[Any] = [getattr(item, name) for item in data] if name in _ATTRIBUTES else [None] * len(data)
    if all(value is None for value in found):
        found = [item.metadata.get(name) for item in data]
    if data and all(value is None for value in found):
        there = {*columns, *_ATTRIBUTES[:2], *(key for item in data for key in item.metadata)}
        there |= {field for field in _ATTRIBUTES[2:] if any(getattr(item, field) is not None for item in data)}
        raise KeyError(f"no image has a field {name!r}; there are {', '.join(sorted(map(str, there)))}")
    kinds = {type(value) for value in found if value is not None}
    if kinds and kinds <= {bool, int, float, np.float32, np.float64, np.int64}:
        if None in found or kinds & {float, np.float32, np.float64}:
            return with_gaps(found, np.float64)
        if kinds == {bool} or all(isinstance(v, bool) or -(2**63) <= v < 2**63 for v in found):
            return np.array(found, bool if kinds == {bool} else np.int64)
    return objects(found)


def sort_rows(values: NDArray[Any], descending: bool = False) -> NDArray[np.int64]:
    """Row numbers that sort values; equal ones keep their order, missing ones (None, NaN) come last either way.

    Raises:
        TypeError: Values of different kinds that cannot be compared.
    """
    missing = np.array([value is None or value != value for value in values.tolist()], bool)
    there = np.flatnonzero(~missing)
    ranks = np.unique(values[there], return_inverse=True)[1].ravel()
    sort = np.argsort(-ranks if descending else ranks, kind="stable")
    return np.concatenate([there[sort], np.flatnonzero(missing)]).astype(np.int64)


def find_problems(data: Sequence[ImageObject], rows: Mapping[str, Any], check_paths: bool = True) -> list[str]:
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
                f"{describe_image(data, i)}: pixels are {tuple(image.shape)} {dtype_of(image)}, not (H, W, 3) uint8 "
                "nor (H, W, 3) or (3, H, W) floating point"
            )
    if embeddings is not None and (embeddings.ndim != 2 or "float" not in dtype_of(embeddings)):
        found.append(f"embeddings are {tuple(embeddings.shape)} {dtype_of(embeddings)}, not (N, D) float")
    if check_paths:
        for i, trouble in _path_troubles([item.image_path for item in data]):
            found.append(f"{describe_image(data, i)}: {trouble}")
    return found


def misaligned(data: Sequence[ImageObject], rows: Mapping[str, Any]) -> list[str]:
    """Arrays that do not have a row an image."""
    return [
        f"{len(array)} rows of {what} for {len(data)} images in data"
        for what, array in rows.items()
        if array is not None and len(array) != len(data)
    ]


def describe_image(data: Sequence[ImageObject], row: int) -> str:
    """Name an image in a message."""
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

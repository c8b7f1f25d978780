"""Encoded images that are in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError
from curator_dali.io import fingerprint
from curator_dali.sources.base import HEADER_DTYPE, EncodedBatch, LearningSource, sniff_extension
from curator_dali.sources.sidecars import make_sidecars

if TYPE_CHECKING:
    import pyarrow as pa

Encoded = bytes | bytearray | memoryview | NDArray[np.uint8]


class MemorySource(LearningSource):
    """Encoded images held as bytes; each read copies them into writable memory.

    `image_id` is the mapping's key, or the number in the sequence; `image_path` is `<name>/<id>`, which no filesystem
    opens.

    Args:
        images: Encoded images, in a list, or by key.
        metadata: A mapping for each image, in the same order, or by the same keys (some may be missing). In an output,
            keys that are no texts become texts, and arrays become lists; values that `dump_fields` has no type for
            become texts.
        name: The data set's name.

    Raises:
        SourceError: An image is not bytes, metadata is no mapping, or there is not as much metadata as images.
    """

    def __init__(
        self,
        images: Iterable[Encoded] | Mapping[str, Encoded],
        metadata: Iterable[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "memory",
    ) -> None:
        self.name = name
        given: object = images
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise SourceError(f"images is {given!r:.60}; give encoded images (bytes) in a list, or by key")
        values = list(images.values()) if isinstance(images, Mapping) else list(images)
        self._keys = list(images) if isinstance(images, Mapping) else [str(number) for number in range(len(values))]
        self._images = [_to_bytes(value, key) for key, value in zip(self._keys, values, strict=True)]
        if metadata is None:
            self._metadata: list[Mapping[str, Any]] = [{}] * len(self._images)
        elif isinstance(metadata, Mapping):
            self._metadata = [metadata.get(key, {}) for key in self._keys]
        elif isinstance(images, Mapping):
            raise SourceError("metadata of images by key must be a mapping with the same keys, not a sequence")
        else:
            self._metadata = list(metadata)
        if len(self._metadata) != len(self._images):
            raise SourceError(f"{len(self._images)} images need as many metadata, not {len(self._metadata)}")
        wrong = [key for key, about in zip(self._keys, self._metadata, strict=True) if not isinstance(about, Mapping)]
        if wrong:
            about = self._metadata[self._keys.index(wrong[0])]
            raise SourceError(f"metadata of image {wrong[0]!r} is {about!r:.60}; give a mapping, as {{'label': 1}}")
        self._headers = np.zeros(len(self._images), HEADER_DTYPE)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def has_known_ids(self) -> bool:
        """True: ids are names that the fingerprint is made of."""
        return True

    @cached_property
    def fingerprint(self) -> str:
        """Of the keys, the images' bytes and the metadata."""
        return fingerprint(
            "memory",
            (
                (key, hashlib.blake2b(data, digest_size=8).digest(), make_sidecars(metadata))
                for key, data, metadata in zip(self._keys, self._images, self._metadata, strict=True)
            ),
        )

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Copy images; see `Source.read`."""
        numbers = [int(index) for index in indices]
        data = [self._images[number] for number in numbers]
        return EncodedBatch(
            indices=np.asarray(indices, np.int64),
            objects=[
                ImageObject(f"{self.name}/{self._keys[n]}", self._keys[n], dict(self._metadata[n])) for n in numbers
            ],
            images=[np.frombuffer(bytearray(image), np.uint8) for image in data],
            shards=[self.name] * len(numbers),
            headers=self.headers(indices),
            errors={row: "the image has no bytes" for row, image in enumerate(data) if not image},
            members=[self._members(number) for number in numbers] if members else None,
        )

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """The keys; see `Source.read_ids`."""
        import pyarrow as pa

        return pa.array([self._keys[number] for number in np.asarray(indices, np.int64).tolist()], pa.large_string())

    def _members(self, number: int) -> dict[str, memoryview]:
        image, metadata = self._images[number], self._metadata[number]
        found = {sniff_extension(image): image, **(make_sidecars(metadata) if metadata else {})}
        return {extension: memoryview(value) for extension, value in found.items()}


def _to_bytes(value: object, key: str) -> bytes:
    if isinstance(value, np.ndarray) and (value.ndim != 1 or value.dtype != np.uint8):
        raise SourceError(
            f"image {key!r} is an array of shape {value.shape} and dtype {value.dtype}: images must be *encoded* "
            "(the bytes of a JPEG, PNG, ...), as bytes or one-dimensional uint8 arrays"
        )
    if isinstance(value, (bytes, bytearray, memoryview, np.ndarray)):
        return bytes(value)
    raise SourceError(f"image {key!r} is a {type(value).__name__}: images must be encoded, as bytes or uint8 arrays")

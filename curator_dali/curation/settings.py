"""`Settings`: how a curation loads and what it writes, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from curator_dali.curation.metadata import FIELD_TYPES
from curator_dali.headers import MAX_PIXELS

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The arguments of `curate` that are numbers and switches; `curate` says what each is.

    Raises:
        ValueError: One is out of its range.
    """

    batch_size: int = 64
    part_size: int = 8192
    tars: bool = True
    shard_samples: int | None = None
    shard_bytes: int | None = None
    embeddings: bool | Literal["float32", "float16"] = False
    num_threads: int | None = None
    prefetch: int = 2
    max_pixels: int = MAX_PIXELS
    max_error_rate: float | None = None
    metadata: Mapping[str, str] | None = None
    html: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "part_size", "prefetch", "max_pixels"):
            _check_count(name, getattr(self, name))
        for name in ("shard_samples", "shard_bytes", "num_threads"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        if self.max_error_rate is not None and not 0 <= self.max_error_rate <= 1:
            raise ValueError(f"max_error_rate is {self.max_error_rate}; give a share from 0 to 1")
        if not isinstance(self.metadata, (Mapping, type(None))):
            raise ValueError(f"metadata is {self.metadata!r}; give fields with their types, as {{'score': 'float64'}}")
        for name, kind in (self.metadata or {}).items():
            if kind not in FIELD_TYPES:
                raise ValueError(f"metadata[{name!r}] is {kind!r}; allowed: {', '.join(FIELD_TYPES)}")
        if self.embeddings not in (True, False, "float32", "float16"):
            raise ValueError(f'embeddings is {self.embeddings!r}; allowed: True, False, "float32", "float16"')

    @property
    def stored(self) -> Literal["float32", "float16"] | None:
        """The type of the embeddings that are stored; None where none are."""
        return "float32" if self.embeddings is True else self.embeddings or None

    @property
    def limits(self) -> dict[str, int | None]:
        """The limits of a tar, as `Output` and an output's records have them."""
        return {"max_samples": self.shard_samples, "max_bytes": self.shard_bytes}


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least 1")

"""`Settings`: how a curation loads and what it writes, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from curator_dali.arguments import Count, Limits, Share, checked
from curator_dali.curation.metadata import FIELD_TYPES
from curator_dali.decoding.headers import MAX_PIXELS

__all__ = ["FieldTypes", "Settings"]

FieldTypes = Annotated[Mapping[str, str], Limits("fields with their types, as {'score': 'float64'}")]


@checked
@dataclass(frozen=True)
class Settings:
    """The arguments of `curate` that are numbers and switches; `curate` says what each is.

    Raises:
        ValueError: One is out of its range.
    """

    batch_size: Count = 64
    part_size: Count = 8192
    tars: bool = True
    shard_samples: Count | None = None
    shard_bytes: Count | None = None
    embeddings: bool | Literal["float32", "float16"] = False
    num_threads: Count | None = None
    prefetch: Count = 2
    max_pixels: Count = MAX_PIXELS
    max_error_rate: Share | None = None
    metadata: FieldTypes | None = None
    html: bool = True

    def __post_init__(self) -> None:
        for name, kind in (self.metadata or {}).items():
            if kind not in FIELD_TYPES:
                raise ValueError(f"metadata[{name!r}] is {kind!r}; allowed: {', '.join(FIELD_TYPES)}")

    @property
    def stored(self) -> Literal["float32", "float16"] | None:
        """The type of the embeddings that are stored; None where none are."""
        return "float32" if self.embeddings is True else self.embeddings or None

    @property
    def limits(self) -> dict[str, int | None]:
        """The limits of a tar, as `Output` and an output's records have them."""
        return {"max_samples": self.shard_samples, "max_bytes": self.shard_bytes}

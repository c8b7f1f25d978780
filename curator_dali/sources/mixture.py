"""Several sources as one, each with its share of every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, Limits, checked
from curator_dali.batch import ImageObject, clone
from curator_dali.errors import SourceError
from curator_dali.io import fingerprint
from curator_dali.sources.base import (
    HEADER_DTYPE,
    KINDS,
    EncodedBatch,
    Head,
    Source,
    make_batch,
    merge_arrow_types,
    merge_schemas,
    order_ids,
    split_by_shard,
)
from curator_dali.sources.open import open_source, reopen
from curator_dali.sources.sidecars import add_sidecars

if TYPE_CHECKING:
    import pyarrow as pa

_BY_NAME = 'sources by name, as {"a": "a/*.tar", "b": source_b}'


class Mixture(Source):
    """Sources of which a loader draws by weight; `curator_dali.sampling.MixedOrder` says in which order.

    As a source it is all of them one after the other: `len`, `headers` and `read` know nothing of weights. An index
    of len(self) or more is the same sample as the one so many lower: a loader counts its repeats so. Every image's
    metadata tells its source in the field `source` (unless it has such a field already).

    Args:
        sources: Name -> source, or what `open_source` opens.
        weights: Name -> share of the draws; only ratios matter. A source with more draws than samples repeats them
            within an epoch; of one with fewer, the next epoch goes on where this one stopped. None: every sample
            once an epoch, as if they were of one source.
        samples: Draws an epoch, with weights; by default as many as there are samples in all.
        name: The data set's name.

    Raises:
        ValueError: Weights of other names than the sources', weights that are not positive, no or empty sources.
        SourceError: A source cannot be opened.
    """

    @checked
    def __init__(
        self,
        sources: Annotated[Mapping[str, Any], Limits(_BY_NAME)],
        weights: Mapping[str, float] | None = None,
        *,
        samples: Count | None = None,
        name: str = "mixture",
    ) -> None:
        if not sources:
            raise ValueError(f"a mixture of no sources: give {_BY_NAME}")
        if weights is not None and set(weights) != set(sources):
            raise ValueError(f"weights are of {sorted(weights)}, sources are {sorted(sources)}: give each its own")
        if samples is not None and weights is None:
            raise ValueError(f"samples is {samples}; give the draws of an epoch together with weights")
        self.name = name
        self.sources = {key: open_source(source) for key, source in sources.items()}
        self._owned = [self.sources[key] for key, source in sources.items() if self.sources[key] is not source]
        for key, source in self.sources.items():
            if isinstance(source, Mixture):
                raise ValueError(f"{key!r} is a Mixture itself: give its sources to one Mixture, with all weights")
            if not len(source):
                raise ValueError(f"the source {key!r} is empty: leave it out of the mixture")
        self.weights = None if weights is None else {key: weights[key] for key in self.sources}
        origins = {key: source.origin for key, source in self.sources.items()}
        if None not in origins.values():
            self.origin = {"mixture": origins, "weights": self.weights, "samples": samples, "name": name}
        self.samples = samples or int(self._starts[-1])
        self.read_ahead = max(source.read_ahead for source in self.sources.values())

    @classmethod
    def reopen(cls, origin: Mapping[str, Any], data: Any = None) -> Mixture:
        """Open a mixture again; where the files of its sources have moved, `data` is a mapping with the same names."""
        origins = origin["mixture"]
        if data is not None and not (isinstance(data, Mapping) and set(data) == set(origins)):
            raise SourceError(
                f"the data set is a mixture of {', '.join(origins)}, which {data!r:.80} is not: give the Mixture, or "
                "{name: source} for each of these"
            )
        sources = {key: reopen(part, None if data is None else data[key]) for key, part in origins.items()}
        mixture = cls(sources, origin["weights"], samples=origin["samples"], name=origin["name"])
        mixture._owned = list(sources.values())
        return mixture

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(source) for source in self.sources.values())], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """Class lists of all sources, under the sources' names."""
        found: dict[str, Sequence[str]] = {}
        for key, source in self.sources.items():
            parts = source.class_lists
            found |= {key if len(parts) == 1 else f"{key}: {part}": names for part, names in parts.items()} or {key: []}
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Of the sources' names and fingerprints, in their order."""
        return fingerprint("mixture", ((key, source.fingerprint) for key, source in self.sources.items()))

    @property
    def fields(self) -> Mapping[str, str] | None:
        """Fields of all sources, where all have a schema."""
        schemas = [source.fields for source in self.sources.values()]
        return {"source": "string"} | merge_schemas(filter(None, schemas)) if None not in schemas else None

    @property
    def arrow_fields(self) -> Mapping[str, Any] | None:
        """Fields of all sources, where all have a schema."""
        import pyarrow as pa

        schemas = [source.arrow_fields for source in self.sources.values()]
        return None if None in schemas else merge_arrow_types([{"source": pa.string()}, *filter(None, schemas)])

    @property
    def locations(self) -> Sequence[str]:
        """Locations of all sources."""
        return [place for source in self.sources.values() for place in source.locations]

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Those of all sources."""
        return np.concatenate([source.shard_sizes for source in self.sources.values()])

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples, one read a source that has any; see `Source.read`."""
        batch = make_batch(np.asarray(indices, np.int64), np.zeros(len(indices), HEADER_DTYPE))
        found: list[Any] = [None] * len(indices)
        for key, source, rows, own in self._split(indices):
            part = source.read(own, members=members)
            for i, row in enumerate(rows.tolist()):
                metadata = partial(_with_source, part.objects[i], key)  # which are still unread
                item = batch.objects[row] = clone(part.objects[i], {"_metadata": metadata})
                batch.images[row], batch.shards[row] = part.images[i], part.shards[i]
                if part.members is not None:
                    found[row] = add_sidecars(part.members[i], item.metadata) if part.members[i] else {}
                if i in part.errors:
                    batch.errors[row] = part.errors[i]
            batch.headers[rows] = part.headers
            batch.unread.update(rows[list(part.unread)].tolist())
        batch.members = found if members else None
        return batch

    @property
    def has_known_ids(self) -> bool:
        """Whether all sources have."""
        return all(source.has_known_ids for source in self.sources.values())

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """Ids of samples; see `Source.read_ids`."""
        parts = [(rows, source.read_ids(own)) for _, source, rows, own in self._split(indices)]
        return order_ids(parts)

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples."""
        headers = np.zeros(len(indices), HEADER_DTYPE)
        for _, source, rows, own in self._split(indices):
            headers[rows] = source.headers(own)
        return headers

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encoded bytes of samples' images; see `Source.image_sizes`."""
        sizes = np.full(len(indices), -1, np.int64)
        for _, source, rows, own in self._split(indices):
            sizes[rows] = source.image_sizes(own)
        return sizes

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings of images; see `Source.read_heads`."""
        heads: list[Head | None] = [None] * len(indices)
        for _, source, rows, own in self._split(indices):
            for row, head in zip(rows.tolist(), source.read_heads(own, length), strict=True):
                heads[row] = head
        return heads

    def learn(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Let the sources keep what was learnt."""
        for _, source, rows, own in self._split(indices):
            source.learn(own, headers[rows])

    def close(self) -> None:
        """Close the sources that were opened here."""
        for source in self._owned:
            source.close()

    def _split(self, indices: NDArray[np.int64]) -> Iterator[tuple[str, Source, NDArray[np.int64], NDArray[np.int64]]]:
        """(name, source, rows of `indices`, indices in the source) of every source that has any."""
        sources = list(self.sources.items())
        for number, rows, samples in split_by_shard(np.asarray(indices) % len(self), self._starts):
            yield *sources[number], rows, samples


def _with_source(item: ImageObject, source: str) -> dict[str, Any]:
    return {"source": source, **item.metadata}


KINDS["mixture"] = Mixture

"""`Deduplicate`: of images that are alike, keep one."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali import similarity
from curator_dali.arguments import Count, Limits
from curator_dali.arrays import missing, objects, with_gaps
from curator_dali.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.index import Comparison, Matches, check_earlier, match_earlier
from curator_dali.similarity import MAX_PAIRS, Grouping, Keep, Linkage, MatchSet, Pairs, TooManyPairs
from curator_dali.stages.base import GlobalSelector, Reason, ScoredRows, Stage, View, checked_stage, list_images
from curator_dali.stages.distributed import SpreadEmbeddings
from curator_dali.stages.embed import embedder_of
from curator_dali.transforms import Grey

logger = logging.getLogger(__name__)

_MOST_IN_MEMORY = 1 << 30  # bytes of embeddings; more are put into a temporary file
_HASH_NAMES = {"phash": "pHash", "dhash": "dHash"}
_PIXEL_VIEW: View = ()
HASH_VIEW: View = (Grey(),)
"""Whole images in grey, which `similarity.phash` and `dhash` are fastest with."""


class _State(NamedTuple):
    """The device, and what is known of the earlier outputs that are compared with."""

    device: str
    against: dict[str, Any]


@checked_stage
@dataclass(frozen=True)
class Deduplicate(GlobalSelector):
    """Keep one image of those that are alike. It decides once all images are scored, so put it last.

    While images come by it writes what they are compared by: `content_hash` (BLAKE2b-128 of the image's encoded
    bytes), `pixel_hash` (128 bits of the decoded pixels, on the device), `phash` or `dhash` (as imagehash has them, on
    the device), `image_bytes`. Hashes are text, of 32 or 16 hexadecimal digits. A blank image (of one colour, a ramp:
    see `similarity.hash_images`) has no perceptual hash, is a near duplicate of nothing, and says so in `phash_blank`
    or `dhash_blank`. Its decision adds `duplicate_group` (a number that all images of a group share, -1 for an image
    that is like no other) and `duplicate_of` (the `image_id` that was kept for a dropped one).

    An image whose embedding is NaN, infinite or zero is no semantic duplicate of anything; the log says how many.

    Args:
        exact: "bytes": equal files. "pixels": equal pixels, whatever the file. True: both. False: neither.
        near: Most bits, 0 to 16, in which perceptual hashes of near duplicates differ; 4 to 6 is usual.
        similarity: Least cosine, in (0, 1], of semantic duplicates; needs `Embed` before it.
        keep: "largest": most pixels, then most bytes. "best": highest `score`. "first": first in the source. The first
            in the source decides what is still open.
        score: The column of "best".
        linkage: "star": every dropped image is like the one that is kept for it. "components": chains count.
        hash: Of near duplicates: "phash" or "dhash".
        against: Folders of earlier outputs. What is like an image that was kept there is dropped; these must have been
            curated with the same comparisons, and for `similarity` with `embeddings=True` and the same model. One that
            has an index (`write_index`) is looked up in it, which costs the new images; any other is read whole.
        max_pairs: More pairs than these (20 bytes each, three times that for a while) are an error.

    Raises:
        StageError: Nothing is compared, or a setting is out of its range.
    """

    exact: bool | Literal["bytes", "pixels"] = True
    near: Annotated[int, Limits("0 to 16 bits, 4 to 6 is usual", 0, 16)] | None = None
    similarity: Annotated[float, Limits("a cosine above 0, at most 1, as 0.95", 0, 1)] | None = None
    keep: Keep = "largest"
    score: str | None = None
    linkage: Linkage = "star"
    hash: Literal["phash", "dhash"] = "phash"
    against: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
    max_pairs: Count = MAX_PAIRS

    def __post_init__(self) -> None:
        if self.similarity == 0:
            raise StageError("Deduplicate.similarity is 0; give a cosine above 0, at most 1, as 0.95")
        if not self.ways:
            raise StageError("Deduplicate compares nothing; give exact=, near= or similarity=")
        if (self.keep == "best") != (self.score is not None):
            raise StageError(
                f"Deduplicate: keep={self.keep!r} with score={self.score!r}; keep='best' needs the column that says "
                "what is best, as score='aesthetic_score', and nothing else does"
            )
        folders = [self.against] if isinstance(self.against, (str, os.PathLike)) else self.against
        object.__setattr__(self, "against", tuple(str(folder) for folder in folders or ()))

    @property
    def ways(self) -> tuple[Comparison, ...]:
        """How images are compared, the surest way first."""
        found = []
        if self.exact in (True, "bytes"):
            found.append(Comparison("content_hash", "same", 0, "same bytes"))
        if self.exact in (True, "pixels"):
            found.append(Comparison("pixel_hash", "same", 0, "same pixels"))
        if self.near is not None:
            found.append(Comparison(self.hash, "near", self.near, f"{_HASH_NAMES[self.hash]} distance {{}}"))
        if self.similarity is not None:
            found.append(Comparison("embedding", "similar", self.similarity, "cosine {}"))
        return tuple(found)

    @property
    def needs(self) -> tuple[str, ...]:
        """What `decide` looks at: columns, and "embeddings"."""
        size = ("width", "height", "image_bytes") if self.keep == "largest" else ()
        return (*self._hash_columns, *size, *self._score, *self._embeddings)

    @property
    def optional(self) -> frozenset[str]:
        """The score: an image without one is the last to be kept."""
        return frozenset(self._score)

    @property
    def _earlier(self) -> tuple[str, ...]:
        assert isinstance(self.against, tuple)  # made so by __post_init__
        return self.against

    @property
    def _score(self) -> tuple[str, ...]:
        return () if self.score is None else (self.score,)

    @property
    def _embeddings(self) -> tuple[str, ...]:
        return () if self.similarity is None else ("embeddings",)

    @property
    def _hash_columns(self) -> tuple[str, ...]:
        return tuple(way.column for way in self.ways if way.kind != "similar")

    @property
    def reads(self) -> frozenset[str]:
        """The bytes, the embeddings and the score, as it needs them."""
        bytes_too = self.exact in (True, "bytes") or self.keep == "largest"
        return frozenset([*(["encoded"] if bytes_too else []), *self._embeddings, *self._score])

    @property
    def expects(self) -> Mapping[str, str]:
        """The score, as a number."""
        return dict.fromkeys(self._score, "float64")

    @property
    def writes(self) -> Mapping[str, str]:
        """What it compares by."""
        columns = dict.fromkeys(self._hash_columns, "string")
        columns |= {} if self.near is None else {f"{self.hash}_blank": "bool"}
        return columns | ({"image_bytes": "int64"} if self.keep == "largest" else {})

    @property
    def decides(self) -> Mapping[str, str]:
        """`duplicate_group` and `duplicate_of`."""
        return {"duplicate_group": "int64", "duplicate_of": "string"}

    @property
    def views(self) -> tuple[View, ...]:
        """Whole images for the hash of pixels, and in grey for a perceptual hash."""
        near = [HASH_VIEW] if self.near is not None else []
        return (*([_PIXEL_VIEW] if self.exact in (True, "pixels") else []), *near)

    @property
    def lineage(self) -> dict[str, Any]:
        """Which earlier outputs it compares with."""
        return {"against": self.state.against} if self.against else {}

    def setup(self, device: str) -> None:
        """Nothing to load; the earlier outputs must be there."""
        if not self._is_set_up(device):
            ways = [way for way in self.ways if way.kind != "similar"]
            self._keep(_State(device, check_earlier(self.name, self._earlier, ways, 0, {})))

    def connect(self, before: Sequence[Stage]) -> None:
        """Refuse earlier outputs whose embeddings are of another model."""
        if self.similarity is not None:
            embedder = embedder_of(self, before)
            self.check_embeddings(embedder.dim, embedder.lineage)

    def check_embeddings(self, dim: int, lineage: Mapping[str, Any]) -> None:
        """Refuse earlier outputs whose embeddings are of another width or model."""
        check_earlier(self.name, self._earlier, self.ways, dim, lineage)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        """Add what it compares by."""
        wanted = self.writes
        if "content_hash" in wanted or "image_bytes" in wanted:
            images = list_images(self, batch)
            if "content_hash" in wanted:
                batch.columns["content_hash"] = objects([similarity.content_hash(image).hex() for image in images])
            if "image_bytes" in wanted:
                batch.columns["image_bytes"] = np.array([len(image) for image in images], np.int64)
        if "pixel_hash" in wanted:
            batch.columns["pixel_hash"] = objects(similarity.to_hex(similarity.pixel_hash(batch.to_torch(_PIXEL_VIEW))))
        if self.near is not None:
            hashes, blank = similarity.hash_images(batch.to_torch(HASH_VIEW), self.hash)
            batch.columns[f"{self.hash}_blank"] = blank
            batch.columns[self.hash] = objects(similarity.to_hex(hashes))
            batch.columns[self.hash][blank] = None
        return batch

    def decide(self, scored: ScoredRows) -> tuple[NDArray[np.object_], Mapping[str, NDArray[Any]]]:
        """Reasons as "duplicate of KEY (cosine 0.973)"; see `GlobalSelector.decide`.

        Raises:
            StageError: So many pairs are alike that they do not fit into memory.
        """
        count = len(scored)
        keys = scored.column("image_id")
        device = self.state.device if self._state is not None else "cpu"
        with tempfile.TemporaryFile() as scratch:
            new: dict[str, Any] = {name: scored.column(name) for name in self._hash_columns}
            good, shared = np.empty(0, np.int64), None
            if self.similarity is not None:
                if scored.workers is not None and not similarity.few(count, device):
                    logger.info("semantic duplicates among %d images, by the executor's workers", count)
                    shared = SpreadEmbeddings(scored, scored.workers)
                    good = shared.good
                if shared is None or self.against:  # what is compared with earlier outputs is in one place
                    new["embedding"], good = embeddings_of(scored, scratch)
                if len(good) < count:
                    logger.warning(
                        "%d of %d embeddings are NaN, infinite or zero: these images are no semantic duplicates",
                        count - len(good), count,
                    )  # fmt: skip
            try:
                earlier = (
                    match_earlier(self._earlier, self.ways, count, new, good, device=device, max_pairs=self.max_pairs)
                    if self.against and count
                    else Matches(count)
                )
                unmatched = np.flatnonzero(earlier.comparison < 0) if self.linkage == "star" else np.arange(count)
                compared = new if shared is None else {**new, "embedding": shared}
                ways = [self._likeness(way, compared[way.column], good, count, unmatched, device) for way in self.ways]
            except TooManyPairs as error:
                raise StageError(
                    f"{self.name}: {error}. Here: a higher similarity=, a lower near=, or a Deduplicate() of exact "
                    "duplicates in a run before it"
                ) from error
            order = self._order(scored, earlier.comparison >= 0)
            combined = similarity.combine(ways, order, self.linkage)
        return self._explain(keys, combined, earlier)

    def _likeness(
        self,
        way: Comparison,
        values: Any,
        good: NDArray[np.int64],
        count: int,
        unmatched: NDArray[np.int64],
        device: str,
    ) -> MatchSet:
        """Pairs among the rows of `unmatched`, by one way; all other rows are like nothing."""
        rows = unmatched if way.kind != "similar" else good[np.isin(good, unmatched)]
        if way.kind == "same":
            digests = np.frombuffer(bytes.fromhex("".join(values[rows].tolist())), np.uint64).reshape(-1, 2)
            found = similarity.Collector(0).pairs(similarity.same_digests(digests))
        elif way.kind == "near":
            comparable, hashes = similarity.find_comparable(values[rows], way.column)
            rows = rows[comparable]
            found = similarity.near_pairs(hashes, int(way.limit), max_pairs=self.max_pairs)
        elif isinstance(values, SpreadEmbeddings):
            found = values.similar_pairs(rows, way.limit, device, max_pairs=self.max_pairs)
        else:
            whole = len(rows) == len(good)
            found = similarity.similar_pairs(
                values if whole else values[np.isin(good, unmatched)],
                way.limit,
                device=device,
                max_pairs=self.max_pairs,
            )
        assert found.same is not None
        same = np.arange(count)
        same[rows] = rows[found.same]
        pairs = Pairs(rows[found.first], rows[found.second], found.value, same)
        return MatchSet(pairs, 1.0 if way.kind == "similar" else 0.0)

    def _order(self, scored: ScoredRows, earlier: NDArray[np.bool_]) -> NDArray[np.int64]:
        columns: dict[str, Any] = {}
        if self.keep == "largest":
            columns["pixels"] = scored.column("width").astype(np.float64) * scored.column("height").astype(np.float64)
            columns["nbytes"] = scored.column("image_bytes").astype(np.float64)
        if self.score is not None:
            try:
                columns["score"] = with_gaps(scored.column(self.score).tolist(), np.float64)
            except (TypeError, ValueError) as error:
                raise StageError(f"Deduplicate.score={self.score!r} is no column of numbers: {error}") from error
        return similarity.keep_order(len(scored), self.keep, earlier=earlier, **columns)

    def _explain(
        self, keys: NDArray[Any], combined: Grouping, earlier: Matches
    ) -> tuple[NDArray[np.object_], dict[str, NDArray[Any]]]:
        """(M,) reasons; and the columns of (M,) groups and (M,) keys of the images that are kept instead."""
        count = len(keys)
        reasons, of = missing(count, "string"), missing(count, "string")
        group = np.full(count, -1, np.int64)
        ways, numbers = self.ways, dict[Any, int]()
        # as "same bytes", "pHash distance <= 6", "cosine >= 0.95"
        kinds = [f"duplicate: {way.text}".format(f"{'<=' if way.kind == 'near' else '>='} {way.limit}") for way in ways]
        matched = earlier.comparison >= 0
        for row in np.flatnonzero((combined.keeper != np.arange(count)) | matched).tolist():
            keeper = int(combined.keeper[row])
            old = row if matched[row] else keeper if matched[keeper] else -1
            if old >= 0:
                where, of[row] = f" in {earlier.folder[old]}", earlier.key[old]
                name: Any = (earlier.folder[old], earlier.key[old])
            else:
                where, of[row], name = "", keys[keeper], keeper
            group[row] = numbers.setdefault(name, len(numbers))
            if old < 0:
                group[keeper] = group[row]
            found = earlier if old == row else combined
            way = int(found.comparison[row]) if old in (-1, row) else -1
            why = ways[way].reason(float(found.value[row])) if way >= 0 else "by a chain of others"
            kind = kinds[way] if way >= 0 else "duplicate: by a chain of others"
            reasons[row] = Reason(f"duplicate of {of[row]}{where} ({why})", kind)
        return reasons, {"duplicate_group": group, "duplicate_of": of}


def embeddings_of(scored: ScoredRows, scratch: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the embeddings that are of use, (G, D), into memory or the open file `scratch`; and their rows, (G,)."""
    whole: NDArray[np.float32] | None = None
    good, at, kept = [], 0, 0
    for block in scored.embeddings():
        if whole is None:
            shape = (len(scored), block.shape[1])
            in_file = 4 * shape[0] * shape[1] > _MOST_IN_MEMORY
            whole = np.memmap(scratch, np.float32, "w+", shape=shape) if in_file else np.empty(shape, np.float32)
        rows = np.delete(np.arange(len(block)), similarity.bad_rows(block)) if len(block) else np.empty(0, np.int64)
        whole[kept : kept + len(rows)] = block[rows]
        good.append(at + rows)
        at, kept = at + len(block), kept + len(rows)
    if whole is None:
        return np.empty((0, 1), np.float32), np.empty(0, np.int64)
    return whole[:kept], np.concatenate(good)

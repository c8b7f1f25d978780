"""Earlier outputs: new images are looked up among their kept images, by their index or by reading them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import similarity
from curator_dali.arrays import missing, objects
from curator_dali.errors import StageError
from curator_dali.index.index import Index, find_present, open_index, usable_embeddings
from curator_dali.io import is_remote
from curator_dali.outputs import EMBEDDING, Manifest, RowFiles, labels_of
from curator_dali.similarity import MAX_PAIRS, Pairs

logger = logging.getLogger(__name__)

Ids = Callable[[NDArray[np.int64]], NDArray[np.object_]]

_CLUSTERED_ROWS = 50_000  # new rows from which clusters of them are cheaper than all products
_LARGE_OUTPUT = 100_000  # rows whose reading takes seconds
_ROWS_AT_ONCE = 65_536  # of an earlier output in memory


@dataclass(frozen=True)
class Comparison:
    """One comparison of images.

    Attributes:
        column: Of digests, of hashes, or "embedding".
        kind: "same", "near" or "similar".
        limit: The distance or the cosine.
        text: The words of a reason, with a place for the value.
    """

    column: str
    kind: str
    limit: float
    text: str

    def reason(self, value: float) -> str:
        """As "same bytes", "pHash distance 2", "cosine 0.973"."""
        # a cosine below 1 is not to be read as 1, nor one at the limit as below it
        return self.text.format(int(value) if self.kind == "near" else f"{np.floor(value * 1000 + 1e-4) / 1000:.3f}")


class Matches:
    """For N new rows the earlier image that each is most like by the surest comparison.

    Attributes:
        key: (N,) objects: the `image_id`, None where there is none.
        folder: (N,) objects: the output that it is in.
        comparison: (N,) int8: the place of the comparison, -1 where there is no match.
        value: (N,) float32.
    """

    def __init__(self, count: int) -> None:
        self.key, self.folder = missing(count, "string"), missing(count, "string")
        self.comparison = np.full(count, -1, np.int8)
        self.value = np.full(count, np.nan, np.float32)
        self._closeness = np.full(count, -np.inf, np.float32)

    def update(self, found: Pairs, comparison: int, similar: bool, folder: str, ids: Ids) -> None:
        """Replace the matches that are worse than pairs of new rows and rows of `folder`, whose keys `ids` gives.

        `similar` says whether a higher value is closer, and not a lower one.
        """
        rows, others, value = found.first, found.second, found.value
        closeness = value if similar else -value
        order = np.lexsort((np.arange(len(rows)), -closeness, rows))
        first = order[np.unique(rows[order], return_index=True)[1]]  # of each row the closest, of those the first
        rows, others, value, closeness = rows[first], others[first], value[first], closeness[first]
        better = (self.comparison[rows] < 0) | (comparison < self.comparison[rows])
        better |= (self.comparison[rows] == comparison) & (closeness > self._closeness[rows])
        rows = rows[better]
        self.key[rows], self.folder[rows], self.comparison[rows] = ids(others[better]), folder, comparison
        self.value[rows], self._closeness[rows] = value[better], closeness[better]


def embedder_lineage(run: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage of the last stage that made embeddings in a manifest's run; empty if none is known."""
    settings = run.get("settings", {})
    stages = settings.get("scored") or settings.get("stages", [])
    labels = labels_of("Embed" for stage in stages if stage.get("type") == "Embed")
    lineage = run.get("lineage", {})
    return dict(lineage.get(labels[-1], {})) if labels else {}


def check_earlier(
    who: str, folders: Sequence[str], comparisons: Sequence[Comparison], dim: int, lineage: Mapping[str, Any]
) -> dict[str, Any]:
    """Refuse earlier outputs that cannot be compared with, before any work.

    `dim` and `lineage` are of the new embeddings, 0 and empty where they are not known; errors begin with `who`.

    Returns:
        Folder -> its data set and size: goes into the records, so that a run goes on only with the same.

    Raises:
        StageError: A column or the embeddings are missing, or the embeddings are of another width or model.
        OutputError: There is no output, or it is of another version.
    """
    found: dict[str, Any] = {}
    for folder in folders:
        run = Manifest.load(folder).run
        files = RowFiles(folder)
        for comparison in comparisons:
            if comparison.column == EMBEDDING:
                _check_embeddings(who, folder, files, run, dim, lineage)
            elif comparison.column not in files.schema.names:
                raise StageError(
                    f"{who}: {folder} has no column {comparison.column!r}, so it cannot be compared with by this; "
                    "curate it with the same Deduplicate, or leave that comparison out. It has "
                    f"{', '.join(files.schema.names)}"
                )
        found[folder] = {"source": run["source"], "samples": run["samples"], "files": len(files.files)}
    return found


def _check_embeddings(
    who: str, folder: str, files: RowFiles, run: Mapping[str, Any], dim: int, lineage: Mapping[str, Any]
) -> None:
    if not files.embedding_dim:
        raise StageError(f"{who}: {folder} stores no embeddings: curate it again with embeddings=True")
    if dim and files.embedding_dim != dim:
        raise StageError(
            f"{who}: the embeddings in {folder} have {files.embedding_dim} numbers, the new ones {dim}: they are of "
            "another model; embed one of the two again"
        )
    known = embedder_lineage(run)
    then, now = ({n: x.get(n) for n in ("model", "weights", "view")} for x in (known, lineage))
    if not (known and lineage):
        return
    if then["weights"] != now["weights"] or (then["weights"] is None and then["model"] != now["model"]):
        raise StageError(
            f"{who}: the embeddings in {folder} are of {then['model']!r} with the weights {_short(then['weights'])}, "
            f"the new ones of {now['model']!r} with {_short(now['weights'])}: cosines between them mean nothing; "
            "embed one of the two again"
        )
    if then["view"] != now["view"]:
        raise StageError(
            f"{who}: {folder} was embedded of images prepared by {then['view']}, the new ones by {now['view']}: embed "
            "one of the two again"
        )


def _short(weights: Any) -> str:
    if not isinstance(weights, Mapping):
        return str(weights)
    return ", ".join(f"{name} (sha256 {str(digest)[:12]}...)" for name, digest in weights.items())


def match_earlier(
    folders: Sequence[str],
    comparisons: Sequence[Comparison],
    count: int,
    new: Mapping[str, Any],
    good: NDArray[np.int64],
    *,
    device: str = "cpu",
    max_pairs: int = MAX_PAIRS,
    clustered: int = _CLUSTERED_ROWS,
) -> Matches:
    """Find the kept rows of earlier outputs that new rows are like.

    An output that has an index (`curator-dali index`) is looked up in it: that costs the new rows. Any other is read
    whole, once. Old rows are never compared with each other.

    Args:
        folders: The outputs; of equally close images the earlier folder's counts.
        comparisons: How to compare, the surest first.
        count: N, the number of new rows.
        new: Column -> (N,) values: digests and hashes as text (None where an image has none); "embedding" -> (G, D)
            rows of `good`.
        good: (G,) the new rows whose embeddings are of use.
        device: Where to compute cosines.
        max_pairs: More pairs than these, in one output or in a block of one, are an error.
        clustered: From more new embeddings than these on, an output without an index is compared with clusters of them.

    Raises:
        TooManyPairs: More than `max_pairs` pairs.
    """
    matches = Matches(count)
    finders: dict[int, _Finder] = {}
    for folder in folders:
        index = open_index(folder)
        unserved = []
        for number, comparison in enumerate(comparisons):
            if comparison.kind == "similar" and not len(good):
                continue
            if index is not None and _serves(index, comparison):
                found = _look_up(index, comparison, new[comparison.column], good, device, max_pairs)
                matches.update(found, number, comparison.kind == "similar", folder, index.ids)
            else:
                unserved.append(number)
                if number not in finders:
                    finders[number] = _Finder(comparison, new[comparison.column], good, device, max_pairs, clustered)
        if unserved:
            _scan(matches, folder, {number: finders[number] for number in unserved}, indexed=index is not None)
    return matches


def _serves(index: Index, comparison: Comparison) -> bool:
    limit = comparison.limit
    if comparison.kind != "similar" or limit >= index.threshold:
        return True
    logger.warning(
        "the index of %s is for cosines of %s and more, not %s: its embeddings are all read. To look these up too: "
        "curator-dali index %s --similarity %s", index.out, index.threshold, limit, index.out, limit,
    )  # fmt: skip
    return False


def _look_up(
    index: Index, comparison: Comparison, new: Any, good: NDArray[np.int64], device: str, max_pairs: int
) -> Pairs:
    """Find the pairs of new rows and rows of an index."""
    if comparison.kind == "same":
        return index.equal(comparison.column, new.tolist())
    if comparison.kind == "near":
        rows, hashes = similarity.find_comparable(new, comparison.column)
        found = index.near(comparison.column, hashes, int(comparison.limit), max_pairs=max_pairs)
    else:
        rows, found = good, index.similar(new, comparison.limit, device=device, max_pairs=max_pairs)
    return Pairs(rows[found.first], found.second, found.value)


def _scan(matches: Matches, folder: str, finders: Mapping[int, _Finder], *, indexed: bool) -> None:
    """Read an output's kept rows and compare them."""
    import pyarrow.compute as pc

    if not indexed and not is_remote(folder):
        rows = sum(part.counts.get("kept", 0) for part in Manifest.load(folder).parts())
        if rows >= _LARGE_OUTPUT:
            logger.warning(
                "%s has no index, so all of its %s rows are read: curator-dali index %s makes this cost the new ones "
                "only", folder, f"{rows:,}", folder,
            )  # fmt: skip
    columns = ["image_id", "status", *dict.fromkeys(finder.comparison.column for finder in finders.values())]
    for batch in RowFiles(folder).batches(columns, rows=_ROWS_AT_ONCE):
        batch = batch.filter(pc.equal(batch.column("status"), "kept"))
        if not len(batch):
            continue
        keys = objects(batch.column("image_id").to_pylist())
        for number, finder in finders.items():
            comparison = finder.comparison
            found = finder.find(batch.column(comparison.column))
            matches.update(found, number, comparison.kind == "similar", folder, keys.__getitem__)


class _Finder:
    """Finds the rows of a block that new rows are like, by one comparison."""

    def __init__(
        self, comparison: Comparison, new: Any, good: NDArray[np.int64], device: str, max_pairs: int, clustered: int
    ) -> None:
        import pyarrow as pa

        self.comparison, self._new, self._good = comparison, new, good
        self._options: dict[str, Any] = {"device": device, "max_pairs": max_pairs}
        self._clusters: similarity.Clusters | None = None
        if comparison.kind == "same":
            self._values = pa.array(new.tolist(), pa.string())
            self._rows: dict[str, list[int]] = {}
            for row, value in enumerate(new.tolist()):
                if value is not None:
                    self._rows.setdefault(value, []).append(row)
        elif comparison.kind == "near":
            self._comparable, self._hashes = similarity.find_comparable(new, comparison.column)
        elif len(new) > clustered:
            self._clusters = similarity.divide(new, comparison.limit, device=device)

    def find(self, column: Any) -> Pairs:
        """Find the pairs of new rows and rows of the block that has this column."""
        import pyarrow.compute as pc

        name, limit = self.comparison.column, self.comparison.limit
        if self.comparison.kind == "same":
            hits = find_present(pc.is_in(column, self._values, skip_nulls=True))
            pairs = [(row, hit) for hit in hits.tolist() for row in self._rows[column[hit].as_py()]]
            rows, others = np.array(pairs, np.int64).reshape(-1, 2).T
            return Pairs(rows, others, np.zeros(len(rows), np.float32))
        if self.comparison.kind == "near":
            known, hashes = similarity.find_comparable(objects(column.to_pylist()), name)
            found = similarity.near_between(self._hashes, hashes, int(limit), max_pairs=self._options["max_pairs"])
            return Pairs(self._comparable[found.first], known[found.second], found.value)
        present, block = usable_embeddings(column)
        block = block.astype(np.float32, copy=False)
        if self._clusters is None:
            found = similarity.pairs_between(self._new, block, limit, **self._options)
            return Pairs(self._good[found.first], present[found.second], found.value)
        found = similarity.pairs_between(block, self._new, limit, clusters=self._clusters, **self._options)
        return Pairs(self._good[found.second], present[found.first], found.value)

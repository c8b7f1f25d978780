"""Similar pairs of embeddings: exact blocks for few rows; for many, k-means and block products within clusters.

A row's home is the cluster of its best centroid. The row is also looked at in every cluster whose centroid is worse for
it by no more than a margin. How wide the margin must be follows from the threshold and the data, and is measured on
planted pairs: rows of the set are moved to exactly the threshold's cosine, in directions in which other rows differ.
The margin is the least with which the wanted share of these pairs meet in some cluster. Pairs that meet are decided by
their exact cosine. So clusters cost recall only; precision is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.cosine import join, join_self, same_rows
from curator_dali.similarity.pairs import (
    MAX_PAIRS,
    Collector,
    Pairs,
    Progress,
    Vectors,
    as_vectors,
    blocks,
    check_threshold,
    sort_by_label,
)

if TYPE_CHECKING:
    import torch

_RECALL = 0.998  # of pairs at the threshold; those above it are nearer to each other and meet more surely
_SPLIT = 8  # a cluster so many times the mean is divided again
_SPLIT_FROM = 8192  # rows; a cluster of fewer is not
_DEEPEST = 3  # divisions of divisions

_ITERATIONS = 8  # of k-means
_ROWS_PER_CLUSTER = 64  # rows of the sample for each centroid; faiss asks for 39 at least
_SAMPLE_BLOCK = 4096  # rows of the sample at once
_SAMPLE_NUMBERS = 2**28  # of a sample that is held: 1 GB
_WORST_ROWS = 16  # of each block, kept for empty clusters
_PLANTED_PAIRS = 4096  # pairs that the margin is measured with
_COSINES_AT_ONCE = 2**22  # to centroids: 16 MB
_SAMPLE_SEED, _PLANTED_SEED, _NOISE_SEED = 0, (0, 1), (0, 2)


def similar_pairs(
    embeddings: Any,
    threshold: float,
    *,
    exact: bool | None = None,
    device: str | None = None,
    max_pairs: int = MAX_PAIRS,
) -> Pairs:
    """Pairs of rows with a cosine of `threshold` or more, each of them checked: precision is 1.

    Few rows (30,000 on a CPU, 500,000 on a GPU) are compared with all others and nothing is missed. Of more, at least
    99% of the pairs are found (more of those well above the threshold), in time that grows as N^1.5. The same rows give
    the same pairs on the same device.

    Args:
        embeddings: (N, D) floats, of any length but zero; numpy, a mapped file, or torch on any device.
        threshold: In (0, 1].
        exact: True compares all, False uses clusters; None goes by the number.
        device: Where to compute; None: where the embeddings lie.
        max_pairs: More pairs than these are an error.

    Raises:
        ValueError: As `as_vectors` and `check_threshold` do.
        TooManyPairs: More than `max_pairs` pairs.
    """
    check_threshold(threshold)
    vectors = as_vectors(embeddings, device=device)
    same = same_rows(vectors)
    rows = np.flatnonzero(same == np.arange(len(same)))
    found = Collector(max_pairs)
    exact = few(len(rows), vectors.device) if exact is None else exact
    if exact or len(rows) < 2:
        join_self(found, vectors, rows, threshold)
        return found.pairs(same)
    different = vectors.subset(rows)
    _join_clustered_self(found, different, find_clusters(different, threshold))
    pairs = found.pairs()
    return Pairs(rows[pairs.first], rows[pairs.second], pairs.value, same)


def pairs_between(
    queries: Any,
    embeddings: Any,
    threshold: float,
    *,
    clusters: Clusters | None = None,
    device: str | None = None,
    max_pairs: int = MAX_PAIRS,
) -> Pairs:
    """Pairs of a row of one set and a row of another: test against training set, new rows against those kept earlier.

    The cost goes with the number of `queries`; rows of `embeddings` are never compared with each other.

    Args:
        queries: (Q, D) floats.
        embeddings: (N, D) floats.
        threshold: In (0, 1].
        clusters: Those of `embeddings`, of `divide`: 99% of the pairs at the threshold are found. Without them all
            rows are compared.
        device: Where to compute; None: where the embeddings lie.
        max_pairs: More pairs than these are an error.

    Returns:
        Pairs of rows of `queries` (first) and of `embeddings` (second).

    Raises:
        ValueError: The sets differ in width, the clusters are of other rows or a higher threshold, or as
            `similar_pairs`.
        TooManyPairs: More than `max_pairs` pairs.
    """
    check_threshold(threshold)
    right = as_vectors(embeddings, device=device)
    left = as_vectors(queries, device=device or right.device, name="queries", width=right.dim)
    found = Collector(max_pairs, within=False)
    if clusters is None:
        join(found, left, np.arange(len(left)), right, np.arange(len(right)), threshold)
    else:
        _check(clusters, right, threshold)
        _join_clustered(found, left, right, clusters, threshold)
    return found.pairs()


def divide(
    embeddings: Any,
    threshold: float,
    *,
    clusters: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Clusters:
    """Divide a set into clusters, once, for `pairs_between` in later runs.

    Args:
        embeddings: (N, D) floats, N at least 1.
        threshold: The lowest cosine that will be asked for.
        clusters: How many; None: about the square root of N, which balances the cost of assigning with that of joining.
        device: Where to compute; None: where the embeddings lie.
        progress: Called with rows done and rows in all.

    Raises:
        ValueError: No rows, or as `as_vectors` and `check_threshold` do.
    """
    import torch

    check_threshold(threshold)
    vectors = as_vectors(embeddings, device=device)
    if not len(vectors):
        raise ValueError("no rows, so there is nothing to divide into clusters")
    found = find_clusters(vectors, threshold, count=clusters)
    centroids = torch.from_numpy(found.centroids).to(vectors.device)
    primary = np.empty(len(vectors), np.int32)
    for block in blocks(len(vectors), assign_rows(len(centroids))):
        primary[block] = (vectors.unit(block) @ centroids.T).argmax(dim=1).cpu().numpy()
        if progress:
            progress(block.stop, len(vectors))
    return replace(found, primary=primary)


def few(rows: int, device: str) -> bool:
    """Return whether the products of so many rows with all of them cost less than making clusters would."""
    return rows <= (30_000 if device == "cpu" else 500_000)


def _check(clusters: Clusters, vectors: Vectors, threshold: float) -> None:
    if clusters.centroids.shape[1] != vectors.dim or len(clusters.primary) != len(vectors):
        raise ValueError(
            f"the clusters are of {len(clusters.primary)} rows of {clusters.centroids.shape[1]} columns, the "
            f"embeddings are {len(vectors)} of {vectors.dim}: divide these"
        )
    if threshold < clusters.threshold:
        raise ValueError(
            f"the clusters were made for cosines of {clusters.threshold} and more, not {threshold}: divide again"
        )


@dataclass(frozen=True)
class Clusters:
    """A division of a set of embeddings. Plain arrays, to be kept beside the embeddings for a later run.

    Attributes:
        centroids: (K, D) float32, of length 1.
        primary: (N,) int32, the best centroid of every row; (0,) while no row is assigned.
        threshold: The cosine from which on pairs meet.
        margin: A pair meets if either row's cosine to the other's best centroid is within this of that to its own.
        reach: The same, where only one of the two sets is looked up in several clusters.
        looked_at: Clusters that a row is within the margin of, on average.
    """

    centroids: NDArray[np.float32]
    primary: NDArray[np.int32]
    threshold: float
    margin: float
    reach: float
    looked_at: float

    def reached(self, vectors: Vectors) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Rows of another set that are to be looked up in each cluster: (M,), and (K + 1,) bounds of the clusters'."""
        _, rows, numbers = assign_blocks(vectors, self.centroids, self.reach)
        return sort_by_label(rows, numbers, len(self.centroids))


def _join_clustered_self(found: Collector, vectors: Vectors, clusters: Clusters, depth: int = 0) -> None:
    """Add the pairs of a set that its clusters let meet, by its own row numbers; `depth` divisions came before."""
    if must_join_all(clusters):
        join_self(found, vectors, np.arange(len(vectors)), clusters.threshold)
        return
    count = len(clusters.centroids)
    home, rows, numbers = assign_blocks(vectors, clusters.centroids, clusters.margin)
    rows, bounds = sort_by_label(rows, numbers, count)
    limit = split_limit(len(rows), count)
    for number in range(count):
        members = rows[bounds[number] : bounds[number + 1]].astype(np.int64)
        join_cluster(found, vectors, members, home[members] == number, clusters.threshold, limit=limit, depth=depth)


def join_cluster(
    found: Collector,
    vectors: Vectors,
    members: NDArray[np.int64],
    own: NDArray[np.bool_],
    threshold: float,
    *,
    limit: int,
    depth: int = 0,
) -> None:
    """Add the pairs of one cluster: of those that belong to it, with each other and with those near its border.

    (M,) `members` are the rows of `vectors` that are looked at in the cluster, ascending; (M,) `own` says whether it is
    the row's home. From more members than `limit` on, of `split_limit`, it is divided again; `depth` divisions came
    before.
    """
    if len(members) > limit and depth < _DEEPEST:
        inner, part = Collector(found.max_pairs), vectors.subset(members)
        _join_clustered_self(inner, part, find_clusters(part, threshold), depth + 1)
        pairs = inner.pairs()
        found.add(members[pairs.first], members[pairs.second], pairs.value)
    elif len(members) > 1:
        join_self(found, vectors, members[own], threshold, border=members[~own])


def _join_clustered(found: Collector, left: Vectors, right: Vectors, clusters: Clusters, threshold: float) -> None:
    """Add the pairs of a row of `left` and a row of `right` that the clusters of `right` let meet.

    Costs the rows of `left`, and one reading of the clusters that they fall into.
    """
    count = len(clusters.centroids)
    rows, bounds = clusters.reached(left)
    others, ends = sort_by_label(np.arange(len(right)), clusters.primary, count)
    for number in range(count):
        members = rows[bounds[number] : bounds[number + 1]].astype(np.int64)
        if len(members):
            join(found, left, members, right, others[ends[number] : ends[number + 1]], threshold)


def must_join_all(clusters: Clusters) -> bool:
    """Return whether the threshold is so low for the data that most clusters would have to be looked at for a row."""
    return 3 * clusters.looked_at > len(clusters.centroids)


def split_limit(near: int, count: int) -> int:
    """Rows from which on a cluster is divided again, where `near` are looked at in `count` clusters."""
    return int(max(_SPLIT_FROM, _SPLIT * near // count))


def find_clusters(vectors: Vectors, threshold: float, *, count: int | None = None) -> Clusters:
    """The division of `divide` into `count` clusters, by `drawn_rows` alone: no row is assigned yet."""
    centroids = kmeans(vectors, count or _count(len(vectors)))
    margin, reach, looked_at = _measure_margins(vectors, centroids, threshold)
    return Clusters(centroids.cpu().numpy(), np.empty(0, np.int32), threshold, margin, reach, looked_at)


def drawn_rows(count: int) -> NDArray[np.int64]:
    """The rows that `find_clusters` reads of `count` rows, ascending."""
    return np.unique(np.concatenate([_sampled_rows(count, _count(count)), _planted_rows(count).ravel()]))


def kmeans(vectors: Vectors, clusters: int) -> torch.Tensor:
    """Lloyd's iterations for the cosine, from distinct random rows, on a random sample of 64 rows a cluster.

    An empty cluster is seeded again with one of the rows that are farthest from their centroids. The same rows give the
    same centroids on the same device and number of threads.

    Args:
        vectors: N rows.
        clusters: How many centroids, 1 to N.

    Returns:
        (clusters, D) float32, of length 1, on the vectors' device.

    Raises:
        ValueError: `clusters` is below 1 or above N.
    """
    import torch

    if not 1 <= clusters <= len(vectors):
        raise ValueError(f"{clusters} clusters of {len(vectors)} rows were asked for; 1 to as many as there are rows")
    rows = _sampled_rows(len(vectors), clusters)
    centroids = vectors.unit(np.sort(rows[:clusters]))
    rows = np.sort(rows)
    sample = vectors.unit(rows) if len(rows) * vectors.dim <= _SAMPLE_NUMBERS else None
    for _ in range(_ITERATIONS):
        # (K, D) the sum of the rows of each cluster, (K,) whether it has any, and rows for clusters that have none
        sums = torch.zeros_like(centroids)
        filled = torch.zeros(clusters, dtype=torch.bool, device=centroids.device)
        worst: list[tuple[torch.Tensor, torch.Tensor]] = []
        for block in blocks(len(rows), _SAMPLE_BLOCK):
            part = vectors.unit(rows[block]) if sample is None else sample[block]
            best, home = (part @ centroids.T).max(dim=1)
            # a product, not index_add_, whose sums on a GPU come in any order
            sums += torch.nn.functional.one_hot(home, clusters).to(part.dtype).T @ part
            filled[home] = True
            low = best.topk(min(_WORST_ROWS, len(best)), largest=False)
            worst.append((low.values, part[low.indices]))
        empty = torch.nonzero(~filled | (sums.norm(dim=1) < 1e-6))[:, 0]
        if len(empty):
            values, candidates = (torch.cat(column) for column in zip(*worst, strict=True))
            chosen = candidates[values.sort(stable=True).indices[: len(empty)]]
            sums[empty[: len(chosen)]] = chosen
        lengths = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(lengths > 0, sums / lengths.clamp_min(1e-30), centroids)
    return centroids


def _sampled_rows(count: int, clusters: int) -> NDArray[np.int64]:
    """The rows that `kmeans` looks at of `count`, in no order: 64 for each cluster, or all."""
    rng = np.random.default_rng(_SAMPLE_SEED)
    return rng.choice(count, min(count, _ROWS_PER_CLUSTER * clusters), replace=False)


def _planted_rows(count: int) -> NDArray[np.int64]:
    """(3, P): a row, and two whose difference is a direction to move it in."""
    return np.random.default_rng(_PLANTED_SEED).integers(count, size=(3, _PLANTED_PAIRS))


def _plant_pairs(vectors: Vectors, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Move rows to exactly the threshold's cosine, in directions in which other rows differ.

        away, of length 1
          ^      moved = threshold * row + (1 - threshold^2)^0.5 * away
          |    /
          |  /   the angle between row and moved has the threshold as its cosine
          |/________> row, of length 1

    Returns:
        (P, D) the rows and (P, D) the moved ones, float32 of length 1.
    """
    import torch

    row, one, other = (vectors.unit(rows) for rows in _planted_rows(len(vectors)))
    away = one - other  # (P, D)
    # equal rows, or one beside the row itself: any direction will do
    noise = np.random.default_rng(_NOISE_SEED).standard_normal(tuple(away.shape), np.float32)
    away += 1e-4 * torch.from_numpy(noise).to(away.device)
    # (P, D) what is left at right angles to the row, of length 1
    away = torch.nn.functional.normalize(away - (away * row).sum(1, keepdim=True) * row)
    return row, threshold * row + max(0.0, 1 - threshold**2) ** 0.5 * away


def _measure_margins(vectors: Vectors, centroids: torch.Tensor, threshold: float) -> tuple[float, float, float]:
    """Margin and reach that let `_RECALL` of planted pairs meet, and how many clusters are within the margin."""
    import torch

    if len(centroids) == 1:
        return 0.0, 0.0, 1.0
    row, moved = _plant_pairs(vectors, threshold)
    # (P, K) cosines to all centroids; (P,) the best of them, and the home that it makes
    scores, moved_scores = row @ centroids.T, moved @ centroids.T
    best, home = scores.max(dim=1)
    moved_best, moved_home = moved_scores.max(dim=1)
    # (P,) by how much the other's home is worse for a row than its own: with that margin it is looked at there
    shortfall = best - scores.gather(1, moved_home[:, None])[:, 0]
    moved_shortfall = moved_best - moved_scores.gather(1, home[:, None])[:, 0]
    # within one set either row may come to the other's home; between two sets only the row of the first set comes
    margin = float(torch.quantile(torch.minimum(shortfall, moved_shortfall), _RECALL)) + 1e-6
    reach = float(torch.quantile(torch.cat([shortfall, moved_shortfall]), _RECALL)) + 1e-6
    return margin, reach, float((scores >= best[:, None] - margin).sum(dim=1, dtype=torch.float32).mean())


def assign_rows(clusters: int) -> int:
    """Return how many rows get their cosines to all centroids at once."""
    return max(1, _COSINES_AT_ONCE // clusters)


def assign(
    unit: torch.Tensor, centroids: torch.Tensor, margin: float
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """Find the homes of the rows of a block, and the clusters in which they are looked at.

    Args:
        unit: (n, D) float32 of length 1, on the centroids' device.
        centroids: (K, D).
        margin: How much worse than a row's best centroid another may be.

    Returns:
        (n,) the best centroid of each row; (M,) rows of the block, ascending, and (M,) clusters that they are near.
    """
    import torch

    scores = unit @ centroids.T
    best, primary = scores.max(dim=1, keepdim=True)
    hits = torch.nonzero(scores >= best - margin).cpu().numpy()
    return primary[:, 0].cpu().numpy().astype(np.int32), hits[:, 0], hits[:, 1].astype(np.int32)


def assign_blocks(
    vectors: Vectors, centroids: NDArray[np.float32], margin: float
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """`assign` all rows: (N,) the best centroid of each, (M,) rows, ascending, and (M,) clusters that they are near."""
    import torch

    on_device = torch.tensor(centroids, device=vectors.device)
    primary = np.empty(len(vectors), np.int32)
    rows: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    numbers: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    for block in blocks(len(vectors), assign_rows(len(centroids))):
        primary[block], row, number = assign(vectors.unit(block), on_device, margin)
        rows.append((row + block.start).astype(np.int32))
        numbers.append(number)
    return primary, np.concatenate(rows), np.concatenate(numbers)


def _count(rows: int) -> int:
    return max(1, min(rows, round(math.sqrt(rows))))

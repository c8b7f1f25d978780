"""Similar pairs of many rows: k-means, then block products inside a cluster and with what lies near its border.

A row belongs to the cluster of its best centroid, and is looked at in every cluster whose centroid is worse for it by
no more than a margin. How wide the margin must be follows from the threshold and the data, and is measured: rows of
the set are moved to exactly the threshold's cosine, in the directions in which other rows differ, and the margin is
set so that the wanted share of these pairs would have met. What is found is then decided by its exact cosine, so only
recall is a matter of clusters; precision is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.cosine import join, join_self
from curator_dali.similarity.kmeans import kmeans
from curator_dali.similarity.pairs import Collector
from curator_dali.similarity.vectors import Progress, Vectors, as_vectors, blocks

if TYPE_CHECKING:
    import torch

__all__ = ["Clusters", "join_clustered", "join_clustered_self", "make_clusters"]

_RECALL = 0.998  # of pairs at the threshold; those above it are nearer to each other and meet more surely
_PLANTED = 4096  # pairs that the margin is measured with
_ASSIGN = 2**22  # cosines to centroids at once: 16 MB
_SPLIT = 8  # a cluster so many times the mean is divided again, from this many rows on:
_SPLIT_FROM = 8192


@dataclass(frozen=True)
class Clusters:
    """A division of a set of embeddings. Plain arrays, to be kept beside the embeddings for a later run.

    Attributes:
        centroids: (K, D) float32, of length 1.
        primary: (N,) int32, the best centroid of every row.
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

    def of(self, rows: NDArray[np.int64]) -> Clusters:
        """The same division of some of the rows, or of all of them in another order."""
        return replace(self, primary=self.primary[rows])

    def extended(self, embeddings: Any, *, device: str | None = None) -> Clusters:
        """The same division with further rows behind those it has: the cost of these alone.

        Args:
            embeddings: (M, D) floats, the further rows.
            device: As in `as_vectors`, which also says what is raised.
        """
        import torch

        vectors = as_vectors(embeddings, device=device, width=self.centroids.shape[1])
        primary = _primary(vectors, torch.from_numpy(self.centroids).to(vectors.device))
        return replace(self, primary=np.concatenate([self.primary, primary]))


def make_clusters(
    vectors: Vectors,
    threshold: float,
    *,
    count: int | None = None,
    seed: int = 0,
    recall: float = _RECALL,
    progress: Progress | None = None,
) -> Clusters:
    """Divide a set for the search of pairs with a cosine of `threshold` or more.

    Args:
        vectors: N rows, at least one.
        threshold: In (0, 1].
        count: Clusters; None: about the square root of N, which balances the cost of assigning with that of joining.
        seed: For the sample and the planted pairs.
        recall: Share of pairs at exactly the threshold that are to meet.
        progress: Called with rows assigned and rows in all.
    """
    count = count or max(1, min(len(vectors), round(len(vectors) ** 0.5)))
    centroids = kmeans(vectors, count, seed=seed)
    margin, reach, looked_at = _margins(vectors, centroids, threshold, seed, recall)
    return Clusters(
        centroids.cpu().numpy(), _primary(vectors, centroids, progress), threshold, margin, reach, looked_at
    )


def _primary(vectors: Vectors, centroids: torch.Tensor, progress: Progress | None = None) -> NDArray[np.int32]:
    """The best centroid of every row."""
    primary = np.empty(len(vectors), np.int32)
    for block in blocks(len(vectors), max(1, _ASSIGN // len(centroids))):
        primary[block] = (vectors.unit(block) @ centroids.T).argmax(dim=1).cpu().numpy()
        if progress:
            progress(block.stop, len(vectors))
    return primary


def _margins(
    vectors: Vectors, centroids: torch.Tensor, threshold: float, seed: int, recall: float
) -> tuple[float, float, float]:
    """Margin and reach that let `recall` of planted pairs meet, and how many clusters are within the margin."""
    import torch

    if len(centroids) == 1:
        return 0.0, 0.0, 1.0
    rng = np.random.default_rng([seed, 1])
    draw = rng.integers(len(vectors), size=(3, _PLANTED))
    row, one, other = (vectors.unit(draw[n]) for n in range(3))
    away = one - other
    # equal rows, or one beside the row itself: any direction will do
    away += 1e-4 * torch.from_numpy(rng.standard_normal(tuple(away.shape), np.float32)).to(away.device)
    away = torch.nn.functional.normalize(away - (away * row).sum(1, keepdim=True) * row)
    moved = threshold * row + max(0.0, 1 - threshold**2) ** 0.5 * away
    scores, moved_scores = row @ centroids.T, moved @ centroids.T
    best, home = scores.max(dim=1)
    moved_best, moved_home = moved_scores.max(dim=1)
    here = best - scores.gather(1, moved_home[:, None])[:, 0]
    there = moved_best - moved_scores.gather(1, home[:, None])[:, 0]
    margin = float(torch.quantile(torch.minimum(here, there), recall)) + 1e-6
    reach = float(torch.quantile(torch.cat([here, there]), recall)) + 1e-6
    return margin, reach, float((scores >= best[:, None] - margin).sum(dim=1, dtype=torch.float32).mean())


def _near(
    vectors: Vectors, centroids: torch.Tensor, margin: float, progress: Progress | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(M,) rows of every cluster, those whose best one is no more than the margin better; (K + 1,) bounds of them."""
    import torch

    rows: list[NDArray[np.int32]] = []
    numbers: list[NDArray[np.int32]] = []
    for block in blocks(len(vectors), max(1, _ASSIGN // len(centroids))):
        scores = vectors.unit(block) @ centroids.T
        hits = torch.nonzero(scores >= scores.amax(dim=1, keepdim=True) - margin).cpu().numpy()
        rows.append((hits[:, 0] + block.start).astype(np.int32))
        numbers.append(hits[:, 1].astype(np.int32))
        if progress:
            progress(block.stop, len(vectors))
    number = np.concatenate([*numbers, np.empty(0, np.int32)])
    order = np.argsort(number, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=len(centroids)))])
    return np.concatenate([*rows, np.empty(0, np.int32)])[order], bounds


def join_clustered_self(
    found: Collector,
    vectors: Vectors,
    clusters: Clusters,
    threshold: float,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    depth: int = 0,
) -> None:
    """Add the pairs of a set that its clusters let meet, by its own row numbers.

    A cluster that is far larger than the others is divided again. Where the threshold is so low for the data that
    most clusters would have to be looked at for a row, all pairs are.

    Args:
        found: Takes the pairs; the collector orders the two rows of each.
        vectors: The set that the clusters were made of.
        clusters: From `make_clusters`.
        threshold: The cosine that a pair must have, not below the clusters'.
        seed: For dividing again.
        progress: Called with clusters done and clusters in all.
        depth: How often the set was divided before.
    """
    import torch

    count = len(clusters.centroids)
    if 3 * clusters.looked_at > count:
        join_self(found, vectors, np.arange(len(vectors)), threshold, progress=progress)
        return
    rows, bounds = _near(vectors, torch.from_numpy(clusters.centroids).to(vectors.device), clusters.margin)
    limit = max(_SPLIT_FROM, _SPLIT * len(rows) // count)
    for number in range(count):
        members = rows[bounds[number] : bounds[number + 1]].astype(np.int64)
        if len(members) > limit and depth < 3:
            inner, part = Collector(found.max_pairs), vectors.subset(members)
            again = make_clusters(part, threshold, seed=seed)
            join_clustered_self(inner, part, again, threshold, seed=seed, depth=depth + 1)
            pairs = inner.pairs()
            found.add(members[pairs.first], members[pairs.second], pairs.value)
        elif len(members) > 1:
            own = clusters.primary[members] == number
            join_self(found, vectors, members[own], threshold, border=members[~own])
        if progress:
            progress(number + 1, count)


def join_clustered(
    found: Collector,
    left: Vectors,
    right: Vectors,
    clusters: Clusters,
    threshold: float,
    progress: Progress | None = None,
) -> None:
    """Add the pairs of a row of `left` and a row of `right` that the clusters of `right` let meet.

    Costs the rows of `left`, and one reading of the clusters that they fall into.
    """
    import torch

    rows, bounds = _near(left, torch.from_numpy(clusters.centroids).to(left.device), clusters.reach)
    order = np.argsort(clusters.primary, kind="stable")
    count = len(clusters.centroids)
    ends = np.concatenate([[0], np.cumsum(np.bincount(clusters.primary, minlength=count))])
    for number in range(count):
        members = rows[bounds[number] : bounds[number + 1]].astype(np.int64)
        if len(members):
            join(found, left, members, right, order[ends[number] : ends[number + 1]], threshold)
        if progress:
            progress(number + 1, count)

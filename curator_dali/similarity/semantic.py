"""Semantic duplicates of any number of embeddings: exact blocks for few, clusters for many; and new against old."""

from __future__ import annotations

from typing import Any

import numpy as np

from curator_dali.similarity.clusters import Clusters, find_clusters, join_clustered, join_clustered_self, make_clusters
from curator_dali.similarity.cosine import join, join_self, same_rows
from curator_dali.similarity.pairs import MAX_PAIRS, Collector, Pairs
from curator_dali.similarity.vectors import Progress, Vectors, as_vectors, check_threshold

__all__ = ["divide", "few", "pairs_between", "similar_pairs"]


def few(rows: int, others: int, device: str) -> bool:
    """Whether all products of so many rows with so many others cost less than making clusters would."""
    return rows * others <= (30_000**2 if device == "cpu" else 500_000**2)


def similar_pairs(
    embeddings: Any,
    threshold: float,
    *,
    exact: bool | None = None,
    clusters: Clusters | None = None,
    seed: int = 0,
    device: str | None = None,
    max_pairs: int = MAX_PAIRS,
    progress: Progress | None = None,
) -> Pairs:
    """Pairs of rows with a cosine of `threshold` or more, each of them checked: precision is 1.

    Few rows (30,000 on a CPU, 500,000 on a GPU) are compared with all others and nothing is missed. Of more, at least
    99% of the pairs are found (more of those well above the threshold), in time that grows as N^1.5.

    Args:
        embeddings: (N, D) floats, of any length but zero; numpy, a mapped file, or torch on any device.
        threshold: In (0, 1].
        exact: True compares all, False uses clusters; None goes by the number.
        clusters: Those of these rows, of `divide`, where they are known already.
        seed: Of the clusters. The same seed finds the same pairs on the same device.
        device: Where to compute; None: where the embeddings lie.
        max_pairs: More pairs than these are an error.
        progress: Called with parts done and parts in all.

    Raises:
        ValueError: As `as_vectors` and `check_threshold` do, or the clusters are of other rows or a higher threshold.
        TooManyPairs: More than `max_pairs` pairs.
    """
    check_threshold(threshold)
    vectors = as_vectors(embeddings, device=device)
    same = same_rows(vectors)
    rows = np.flatnonzero(same == np.arange(len(same)))
    found = Collector(max_pairs)
    if clusters is not None:
        _check(clusters, vectors, threshold)
    if exact or (exact is None and clusters is None and few(len(rows), len(rows), vectors.device)) or len(rows) < 2:
        join_self(found, vectors, rows, threshold, progress=progress)
        return found.pairs(same)
    different = vectors.subset(rows)
    known = find_clusters(different, threshold, seed=seed) if clusters is None else clusters.of(rows)
    inner = Collector(max_pairs)
    join_clustered_self(inner, different, known, threshold, seed=seed, progress=progress)
    pairs = inner.pairs()
    return Pairs(rows[pairs.first], rows[pairs.second], pairs.value, same)


def pairs_between(
    queries: Any,
    embeddings: Any,
    threshold: float,
    *,
    exact: bool | None = None,
    clusters: Clusters | None = None,
    device: str | None = None,
    max_pairs: int = MAX_PAIRS,
    progress: Progress | None = None,
) -> Pairs:
    """Pairs of a row of one set and a row of another: test against training set, new rows against those kept earlier.

    What it costs goes with the number of `queries`; rows of `embeddings` are never compared with each other.

    Args:
        queries: (Q, D) floats.
        embeddings: (N, D) floats.
        threshold: In (0, 1].
        exact: True compares all; None does so unless `clusters` are given.
        clusters: Those of `embeddings`, of `divide`. They find 99% of the pairs at the threshold.
        device: Where to compute; None: where the embeddings lie.
        max_pairs: More pairs than these are an error.
        progress: Called with parts done and parts in all.

    Returns:
        Pairs of rows of `queries` (first) and of `embeddings` (second).

    Raises:
        ValueError: The sets differ in width, or as `similar_pairs`.
        TooManyPairs: More than `max_pairs` pairs.
    """
    check_threshold(threshold)
    right = as_vectors(embeddings, device=device)
    left = as_vectors(queries, device=device or right.device, name="queries", width=right.dim)
    found = Collector(max_pairs, within=False)
    if exact or clusters is None:
        join(found, left, np.arange(len(left)), right, np.arange(len(right)), threshold, progress)
    else:
        _check(clusters, right, threshold)
        join_clustered(found, left, right, clusters, threshold, progress)
    return found.pairs()


def divide(
    embeddings: Any,
    threshold: float,
    *,
    clusters: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Clusters:
    """Divide a set into clusters, once, for `similar_pairs` and for `pairs_between` in later runs.

    Args:
        embeddings: (N, D) floats, N at least 1.
        threshold: The lowest cosine that will be asked for.
        clusters: How many; None: about the square root of N.
        seed: The same one gives the same clusters on the same device.
        device: Where to compute; None: where the embeddings lie.
        progress: Called with rows done and rows in all.

    Raises:
        ValueError: No rows, or as `as_vectors` and `check_threshold` do.
    """
    check_threshold(threshold)
    vectors = as_vectors(embeddings, device=device)
    if not len(vectors):
        raise ValueError("no rows, so there is nothing to divide into clusters")
    return make_clusters(vectors, threshold, count=clusters, seed=seed, progress=progress)


def _check(clusters: Clusters, vectors: Vectors, threshold: float) -> None:
    if clusters.centroids.shape[1] != vectors.dim or len(clusters.primary) != len(vectors):
        raise ValueError(
            f"the clusters are of {len(clusters.primary)} rows of {clusters.centroids.shape[1]} columns, the "
            f"embeddings are {len(vectors)} of {vectors.dim}: divide these, or take a part with Clusters.of"
        )
    if threshold < clusters.threshold:
        raise ValueError(
            f"the clusters were made for cosines of {clusters.threshold} and more, not {threshold}: divide again"
        )

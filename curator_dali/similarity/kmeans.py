"""Spherical k-means on a sample: centroids that divide many embeddings into parts that can be searched one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.vectors import Vectors, blocks

if TYPE_CHECKING:
    import torch

__all__ = ["kmeans", "sampled_rows"]

_PER_CLUSTER = 64  # rows of the sample for each centroid; faiss asks for 39 at least
_BLOCK = 4096


def kmeans(vectors: Vectors, clusters: int, *, seed: int = 0, iterations: int = 8) -> torch.Tensor:
    """Lloyd's iterations for the cosine, from distinct random rows, on a random sample of 64 rows a cluster.

    A centroid that loses all its rows takes the row that is served worst. The same seed gives the same centroids on
    the same device and number of threads.

    Args:
        vectors: N rows.
        clusters: How many centroids, 1 to N.
        seed: For the sample.
        iterations: Passes over the sample.

    Returns:
        (clusters, D) float32, of length 1, on the vectors' device.

    Raises:
        ValueError: `clusters` is below 1 or above N.
    """
    import torch

    if not 1 <= clusters <= len(vectors):
        raise ValueError(f"{clusters} clusters of {len(vectors)} rows were asked for; 1 to as many as there are rows")
    rows = sampled_rows(len(vectors), clusters, seed)
    count = len(rows)
    centroids = vectors.unit(np.sort(rows[:clusters]))
    sample = vectors.unit(np.sort(rows)) if count * vectors.dim <= 2**28 else None  # 1 GB at most
    rows = np.sort(rows)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids)
        filled = torch.zeros(clusters, dtype=torch.bool, device=centroids.device)
        worst: list[tuple[torch.Tensor, torch.Tensor]] = []
        for block in blocks(count, _BLOCK):
            part = vectors.unit(rows[block]) if sample is None else sample[block]
            best, label = (part @ centroids.T).max(dim=1)
            # a product, not index_add_, whose sums on a GPU come in any order
            sums += torch.nn.functional.one_hot(label, clusters).to(part.dtype).T @ part
            filled[label] = True
            low = best.topk(min(16, len(best)), largest=False)
            worst.append((low.values, part[low.indices]))
        empty = torch.nonzero(~filled | (sums.norm(dim=1) < 1e-6))[:, 0]
        if len(empty):
            values, candidates = (torch.cat(column) for column in zip(*worst, strict=True))
            chosen = candidates[values.sort(stable=True).indices[: len(empty)]]
            empty = empty[: len(chosen)]
            sums[empty] = chosen
        lengths = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(lengths > 0, sums / lengths.clamp_min(1e-30), centroids)
    return centroids


def sampled_rows(count: int, clusters: int, seed: int) -> NDArray[np.int64]:
    """The rows that `kmeans` looks at of `count`, in no order: 64 for each cluster, or all."""
    return np.random.default_rng(seed).choice(count, min(count, _PER_CLUSTER * clusters), replace=False)

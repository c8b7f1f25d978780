"""Embeddings in a file sorted by cluster, and sketches of them that rule most of a cluster out.

A sketch of a unit vector x is its part Px in the directions in which the embeddings are largest, and the length r of
what is left. By Cauchy and Schwarz the cosine of x and y is at most Px * Py + rx * ry, the product of two sketches:
whatever is below the threshold there need not be read. The others are, and their exact cosine decides. So precision is
1, and what is missed is missed by the clusters: 0.2% of the pairs at the threshold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.index import arrays
from curator_dali.similarity.clusters import Clusters, divide
from curator_dali.similarity.cosine import collect, join
from curator_dali.similarity.pairs import MAX_PAIRS, Collector, Pairs, Vectors, as_vectors, blocks
from curator_dali.threads import ignore

if TYPE_CHECKING:
    import torch

__all__ = ["VectorIndex"]

_WIDTH = 127  # directions of a sketch; with the length of the rest 256 bytes
_SAMPLE = 16_384  # rows that the directions are found by
_SLACK = 2**-10  # float16 rounds a product of two sketches by half of this at most
_ROWS = 8192  # of a cluster compared at once
_QUERIES = 1024
_HELD = 2**20  # candidates, until they are looked at
_DENSE = 8  # one of so many a candidate: comparing all is cheaper


@dataclass(frozen=True)
class VectorIndex:
    """Vectors, sorted by cluster.

    Attributes:
        vectors: (G, D) float16 or float32, mapped.
        sketches: (G, W + 1) float16, mapped.
        rows: (G,) int64, mapped: which row each is.
        bounds: (K + 1,) int64: where the clusters begin.
        basis: (D, W) float32, orthonormal.
        clusters: Without their rows.
    """

    vectors: NDArray[Any]
    sketches: NDArray[np.float16]
    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    basis: NDArray[np.float32]
    clusters: Clusters

    @staticmethod
    def write(
        folder: str,
        vectors: NDArray[Any],
        rows: NDArray[np.int64],
        threshold: float,
        *,
        device: str | None = None,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> dict[str, Any]:
        """Write the files of one.

        Args:
            folder: Where.
            vectors: (G, D), G at least 1; a mapped file, if they are many.
            rows: (G,) ascending.
            threshold: The lowest cosine that will be asked for.
            device: Where to compute.
            progress: Called with what is done, and rows done and in all.

        Returns:
            What `load` needs besides the files, in JSON's types.
        """
        told = progress or ignore

        def divided(done: int, total: int) -> None:
            told("divided", done, total)

        clusters = divide(vectors, threshold, device=device, progress=divided)
        order = np.argsort(clusters.primary, kind="stable")
        counts = np.bincount(clusters.primary, minlength=len(clusters.centroids))
        known = Vectors(vectors, device or "cpu")
        basis = _basis(known)
        count, dim = vectors.shape
        with tempfile.TemporaryFile(dir=folder) as room:  # beside the vectors, which are gathered once

            def gathered() -> Iterator[NDArray[Any]]:
                for block in blocks(count):
                    part = vectors[order[block]]
                    room.write(_sketch(Vectors(part, known.device).unit(slice(None)), basis).astype(np.float16).data)
                    yield part
                    told("stored", block.stop, count)

            arrays.save_blocks(folder, "embedding.vectors", vectors.dtype, (count, dim), gathered())
            room.flush()
            shape = (count, basis.shape[1] + 1)
            sketches = np.memmap(room, np.float16, "r", shape=shape)
            arrays.save_blocks(folder, "embedding.sketches", np.float16, shape, (sketches[b] for b in blocks(count)))
        arrays.save(folder, "embedding.rows", rows[order])
        arrays.save(folder, "embedding.bounds", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        arrays.save(folder, "embedding.basis", basis.cpu().numpy())
        arrays.save(folder, "embedding.centroids", clusters.centroids)
        return {name: getattr(clusters, name) for name in ("threshold", "margin", "reach", "looked_at")}

    @classmethod
    def load(cls, folder: str, about: dict[str, Any]) -> VectorIndex:
        """The one that was written there."""
        names = ("vectors", "sketches", "rows", "bounds", "basis")
        parts: dict[str, Any] = {name: arrays.load(folder, f"embedding.{name}") for name in names}
        known = {name: float(about[name]) for name in ("threshold", "margin", "reach", "looked_at")}
        centroids = np.array(arrays.load(folder, "embedding.centroids"))
        return cls(**parts, clusters=Clusters(centroids, np.empty(0, np.int32), **known))

    def similar(
        self, queries: Any, threshold: float, *, device: str | None = None, max_pairs: int = MAX_PAIRS
    ) -> Pairs:
        """Pairs of a query and a row with a cosine of `threshold` or more.

        Args:
            queries: (Q, D) floats.
            threshold: Not below the clusters'.
            device: Where to compute.
            max_pairs: More than these are an error.

        Raises:
            ValueError: As `as_vectors` does, or the threshold is below the clusters'.
            TooManyPairs: More than `max_pairs` pairs.
        """
        if threshold < self.clusters.threshold:
            raise ValueError(f"the index is for cosines of {self.clusters.threshold} and more, not {threshold}")
        left = as_vectors(queries, device=device, name="queries", width=self.vectors.shape[1])
        search = _Search(self, left, threshold, Collector(max_pairs, within=False))
        search.run()
        pairs = search.found.pairs()
        rows = np.asarray(self.rows[pairs.second])
        order = np.lexsort((rows, pairs.first))
        return Pairs(pairs.first[order], rows[order], pairs.value[order])


@dataclass
class _Search:
    """One look-up."""

    index: VectorIndex
    left: Vectors
    threshold: float
    found: Collector
    _held: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    _count: int = 0

    def run(self) -> None:
        import torch

        index, left = self.index, self.left
        basis = torch.from_numpy(np.array(index.basis)).to(left.device)
        parts = [_sketch(left.unit(block), basis) for block in blocks(len(left))]
        sketches = np.concatenate([*parts, np.empty((0, basis.shape[1] + 1), np.float32)])
        members, bounds = index.clusters.reached(left)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            mine = members[bounds[number] : bounds[number + 1]].astype(np.int64)
            start, stop = index.bounds[number : number + 2].tolist()
            for part in blocks(stop - start, _ROWS):
                rows = np.arange(start + part.start, start + part.stop)
                others = index.sketches[rows[0] : rows[-1] + 1].astype(np.float32).T
                for block in blocks(len(mine), _QUERIES):
                    self._compare(mine[block], sketches[mine[block]] @ others, rows)
        self._look()

    def _compare(self, mine: NDArray[np.int64], most: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Keep what may be similar, by the most that the cosines can be."""
        i, j = np.divmod(np.flatnonzero(most >= self.threshold - _SLACK), len(rows))
        if len(i) * _DENSE > most.size and most.size >= _ROWS:
            join(self.found, self.left, mine, self._right, rows, self.threshold)
            return
        if len(i):
            self._held.append((mine[i], rows[j]))
            self._count += len(i)
            if self._count >= _HELD:
                self._look()

    def _look(self) -> None:
        """Decide what is held, by the vectors, in the order in which they lie in the file."""
        if self._held:
            i, j = (np.concatenate(part) for part in zip(*self._held, strict=True))
            self._held, self._count = [], 0
            collect(self.found, self.threshold, self.left, i, self._right, j)

    @property
    def _right(self) -> Vectors:
        return Vectors(self.index.vectors, self.left.device)


def _basis(vectors: Vectors) -> torch.Tensor:
    """(D, W) float32: orthonormal, the directions that hold most of the vectors' squares."""
    import torch

    count = min(len(vectors), _SAMPLE)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), count, replace=False))
    sample = vectors.unit(rows).double()
    basis: torch.Tensor = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -_WIDTH:].float().contiguous()
    return basis


def _sketch(unit: torch.Tensor, basis: torch.Tensor) -> NDArray[np.float32]:
    """(N, W + 1) float32 of (N, D) unit vectors."""
    import torch

    inside = unit @ basis
    # never too short by rounding: a sketch must not rule out what is similar
    rest = (1 - (inside * inside).sum(1, keepdim=True)).clamp_min(0.0).add(1e-6).sqrt()
    sketch: NDArray[np.float32] = torch.cat([inside, rest], 1).cpu().numpy()
    return sketch

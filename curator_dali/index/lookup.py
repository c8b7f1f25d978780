"""Files of an index, and looking up in them: vectors by cluster, hashes by lane, digests by bisection.

Vectors have sketches. The sketch of a unit vector x is its part Px in the directions in which the embeddings are
largest, and the length r of what is left. By Cauchy and Schwarz the cosine of x and y is at most Px * Py + rx * ry, the
product of two sketches: whatever is below the threshold there need not be read. The others are, and their exact cosine
decides. So precision is 1, and what is missed is missed by the clusters: 0.2% of the pairs at the threshold.

Perceptual hashes lie sorted by a quarter of their bits: what is near is found without comparing with all. The 64 bits
are dealt into four lanes of 16. Where two hashes differ in at most d bits, some lane n of 0 to 3 differs in at most
floor((d - n) / 4): else they would differ in d + 1 (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with
Multi-Index Hashing", 2012). So each lane is looked up with all values that near; where these are so many that comparing
with every hash costs less, that is done.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from curator_dali.io import AtomicFile, open_regular
from curator_dali.similarity import (
    MAX_PAIRS,
    Clusters,
    Collector,
    Pairs,
    Vectors,
    as_vectors,
    blocks,
    collect,
    compare,
    divide,
    join,
    sort_by_label,
)
from curator_dali.threads import ignore

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

_CLUSTERS_ABOUT = ("threshold", "margin", "reach", "looked_at")  # stands in index.json
_SKETCH_WIDTH = 127  # directions of a sketch; with the length of the rest 256 bytes
_SAMPLE_ROWS = 16_384  # rows that the directions are found by
_SKETCH_SLACK = 2**-10  # float16 rounds a product of two sketches by half of this at most
_ROWS_AT_ONCE = 8192  # of a cluster compared at once
_QUERIES_AT_ONCE = 1024
_DENSE = 8  # one of so many a candidate: comparing all is cheaper
_MOST_CANDIDATES = 2**20  # held until they are decided

_LANES, _LANE_VALUES = 4, 2**16
_HASHES_AT_ONCE = 2**18  # looked up, or compared
# Nanoseconds: a value of a lane, a hash that has it, one in a scan.
_LOOK_UP_TIME, _COMPARE_TIME, _SCAN_TIME = 20.0, 38.0, 1.0


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
        progress: Callable[[str, int, int], object] = ignore,
    ) -> dict[str, Any]:
        """Write the files of an index.

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
        clusters = divide(vectors, threshold, device=device, progress=partial(progress, "divided"))
        count, dim = vectors.shape
        # (G,) rows of `vectors`, cluster by cluster; (K + 1,) where the clusters begin
        order, bounds = sort_by_label(np.arange(count), clusters.primary, len(clusters.centroids))
        known = Vectors(vectors, device or "cpu")
        basis = _basis(known)
        with tempfile.TemporaryFile(dir=folder) as scratch:  # beside the vectors, which are gathered once

            def gathered() -> Iterator[NDArray[Any]]:
                for block in blocks(count):
                    part = vectors[order[block]]
                    scratch.write(_sketch(Vectors(part, known.device).unit(slice(None)), basis).astype(np.float16).data)
                    yield part
                    progress("stored", block.stop, count)

            _save_blocks(folder, "embedding.vectors", vectors.dtype, (count, dim), gathered())
            scratch.flush()
            shape = (count, basis.shape[1] + 1)
            sketches = np.memmap(scratch, np.float16, "r", shape=shape)
            _save_blocks(folder, "embedding.sketches", np.float16, shape, (sketches[b] for b in blocks(count)))
        _save(folder, "embedding.rows", rows[order])
        _save(folder, "embedding.bounds", bounds)
        _save(folder, "embedding.basis", basis.cpu().numpy())
        _save(folder, "embedding.centroids", clusters.centroids)
        return {name: getattr(clusters, name) for name in _CLUSTERS_ABOUT}

    @classmethod
    def load(cls, folder: str, about: dict[str, Any]) -> VectorIndex:
        """Map the files that `write` wrote; `about` is what it returned."""
        names = ("vectors", "sketches", "rows", "bounds", "basis")
        parts: dict[str, Any] = {name: _load(folder, f"embedding.{name}") for name in names}
        known = {name: float(about[name]) for name in _CLUSTERS_ABOUT}
        centroids = np.array(_load(folder, "embedding.centroids"))
        return cls(**parts, clusters=Clusters(centroids, np.empty(0, np.int32), **known))

    def similar(
        self, queries: Any, threshold: float, *, device: str | None = None, max_pairs: int = MAX_PAIRS
    ) -> Pairs:
        """Pairs of one of (Q, D) queries and a row with a cosine of `threshold` or more.

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
    """Finds the pairs of queries and rows of an index."""

    index: VectorIndex
    left: Vectors
    threshold: float
    found: Collector
    _candidates: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    _count: int = 0

    def run(self) -> None:
        """Compare the sketches of queries with those of the clusters that they reach, and decide what may be alike."""
        import torch

        index, left = self.index, self.left
        basis = torch.from_numpy(np.array(index.basis)).to(left.device)
        # (Q, W + 1) sketches of the queries; which queries are looked up in each cluster
        parts = [_sketch(left.unit(block), basis) for block in blocks(len(left))]
        sketches = np.concatenate([*parts, np.empty((0, basis.shape[1] + 1), np.float32)])
        members, bounds = index.clusters.reached(left)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            mine = members[bounds[number] : bounds[number + 1]].astype(np.int64)
            start, stop = index.bounds[number : number + 2].tolist()
            for part in blocks(stop - start, _ROWS_AT_ONCE):
                rows = np.arange(start + part.start, start + part.stop)
                others = index.sketches[rows[0] : rows[-1] + 1].astype(np.float32).T
                for block in blocks(len(mine), _QUERIES_AT_ONCE):
                    self._compare(mine[block], sketches[mine[block]] @ others, rows)
        self._decide()

    def _compare(self, mine: NDArray[np.int64], most: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Keep the candidates among queries and rows: `most` (queries, rows) is the most that a cosine can be."""
        i, j = np.divmod(np.flatnonzero(most >= self.threshold - _SKETCH_SLACK), len(rows))
        if len(i) * _DENSE > most.size and most.size >= _ROWS_AT_ONCE:
            join(self.found, self.left, mine, self._right, rows, self.threshold)
        elif len(i):
            self._candidates.append((mine[i], rows[j]))
            self._count += len(i)
            if self._count >= _MOST_CANDIDATES:
                self._decide()

    def _decide(self) -> None:
        """Decide the candidates by the vectors, in the order in which these lie in the file."""
        if self._candidates:
            i, j = (np.concatenate(part) for part in zip(*self._candidates, strict=True))
            self._candidates, self._count = [], 0
            collect(self.found, self.threshold, self.left, i, self._right, j)

    @property
    def _right(self) -> Vectors:
        return Vectors(self.index.vectors, self.left.device)


def _basis(vectors: Vectors) -> torch.Tensor:
    """(D, W) float32: orthonormal, the directions that hold most of the vectors' squares."""
    import torch

    count = min(len(vectors), _SAMPLE_ROWS)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), count, replace=False))
    sample = vectors.unit(rows).double()
    basis: torch.Tensor = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -_SKETCH_WIDTH:].float().contiguous()
    return basis


def _sketch(unit: torch.Tensor, basis: torch.Tensor) -> NDArray[np.float32]:
    """(N, W + 1) float32 of (N, D) unit vectors."""
    import torch

    inside = unit @ basis
    # never too short by rounding: a sketch must not rule out what is similar
    rest = (1 - (inside * inside).sum(1, keepdim=True)).clamp_min(0.0).add(1e-6).sqrt()
    sketch: NDArray[np.float32] = torch.cat([inside, rest], 1).cpu().numpy()
    return sketch


@dataclass(frozen=True)
class SortedIndex:
    """Values, each once, with the first row that has it. Each attribute has a file, FOLDER/NAME.ATTRIBUTE.npy."""

    @classmethod
    def load(cls, folder: str, name: str) -> Self:
        """Map the files that were written."""
        return cls(*(_load(folder, f"{name}.{part.name}") for part in fields(cls)))


@dataclass(frozen=True)
class HashIndex(SortedIndex):
    """Perceptual hashes, four times, sorted by each lane.

    Attributes:
        hashes: (4, U) uint64, with the bits of a lane side by side; mapped.
        rows: (4, U) int64, mapped.
        starts: (4, 65537) int64: where a value of the lane begins; mapped.
    """

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]

    @staticmethod
    def write(folder: str, name: str, hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Write the files of (N,) hashes of rows; these ascend."""
        different, first = np.unique(hashes, return_index=True)
        dealt, rows = _deal(different), rows[first]
        shape = (_LANES, len(dealt))
        # for each lane (U,) the places in its order, and (65537,) where its values begin
        sorted_by = [sort_by_label(np.arange(len(dealt)), lane, _LANE_VALUES) for lane in _lanes(dealt)]
        _save_blocks(folder, f"{name}.hashes", np.uint64, shape, (dealt[order] for order, _ in sorted_by))
        _save_blocks(folder, f"{name}.rows", np.int64, shape, (rows[order] for order, _ in sorted_by))
        _save(folder, f"{name}.starts", np.array([starts for _, starts in sorted_by]))

    def near(self, queries: NDArray[np.uint64], distance: int, *, max_pairs: int = MAX_PAIRS) -> Pairs:
        """Pairs of one of (Q,) queries and the first row of each hash at most `distance` (0 to 16) bits away.

        Raises:
            TooManyPairs: More than `max_pairs` pairs.
        """
        found = Collector(max_pairs, within=False)
        dealt = _deal(queries)
        find = self._scan if self._cheaper_to_scan(distance) else self._look_up
        find(found, dealt, distance)
        return found.pairs()

    def _look_up(self, found: Collector, dealt: NDArray[np.uint64], distance: int) -> None:
        for number, lane in enumerate(_lanes(dealt)):
            masks = _masks((distance - number) // _LANES)
            for block in blocks(len(dealt), max(1, _HASHES_AT_ONCE // max(1, len(masks)))):
                values = (lane[block, None] ^ masks).ravel().astype(np.int64)
                start, stop = self.starts[number][values], self.starts[number][values + 1]
                left = np.repeat(dealt[block], len(masks))
                for i, j, apart in compare(left, self.hashes[number], start, stop, distance):
                    found.add(block.start + i // len(masks), self.rows[number][j], apart)

    def _cheaper_to_scan(self, distance: int) -> bool:
        """Whether comparing a query with all hashes costs less than looking it up."""
        count = max(1, self.hashes.shape[1])
        cost = 0.0
        for number in range(_LANES):
            # queries have the values that hashes have often more often
            together = float((np.diff(self.starts[number]).astype(np.float64) ** 2).sum()) / count
            cost += len(_masks((distance - number) // _LANES)) * (_LOOK_UP_TIME + _COMPARE_TIME * together)
        return bool(cost > _SCAN_TIME * count)

    def _scan(self, found: Collector, dealt: NDArray[np.uint64], distance: int) -> None:
        for part in blocks(self.hashes.shape[1], _HASHES_AT_ONCE // 64):
            hashes = self.hashes[0][part]
            for block in blocks(len(dealt), 64):
                apart = np.bitwise_count(dealt[block, None] ^ hashes)
                i, j = np.nonzero(apart <= distance)
                found.add(block.start + i, self.rows[0][part.start + j], apart[i, j].astype(np.float32))


def _deal(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes with their bits in another order, that of the lanes; they differ in as many as before.

    Dealt in turn: neighbouring bits are of neighbouring pixels or frequencies, and go together too often.
    """
    bits = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1)
    dealt = np.packbits(bits.reshape(-1, 16, _LANES).transpose(0, 2, 1).reshape(-1, 64), axis=1)
    return dealt.view("<u8").reshape(-1).astype(np.uint64)


def _lanes(dealt: NDArray[np.uint64]) -> list[NDArray[np.uint16]]:
    return [(dealt >> np.uint64(16 * number)).astype(np.uint16) for number in range(_LANES)]


@cache
def _masks(bits: int) -> NDArray[np.uint16]:
    """Return all masks of 16 bits with at most so many set; none if `bits` is below 0."""
    values = np.arange(_LANE_VALUES, dtype=np.uint16)
    return values[np.bitwise_count(values) <= bits] if bits >= 0 else values[:0]


@dataclass(frozen=True)
class DigestIndex(SortedIndex):
    """Digests in order.

    Attributes:
        keys: (U,) of 16 bytes, mapped.
        rows: (U,) int64, mapped.
    """

    keys: NDArray[np.bytes_]
    rows: NDArray[np.int64]

    @staticmethod
    def write(folder: str, name: str, digests: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Write the files of (N, 16) digests of rows; these ascend."""
        keys, first = np.unique(_as_keys(digests), return_index=True)
        _save(folder, f"{name}.keys", keys)
        _save(folder, f"{name}.rows", rows[first])

    def find(self, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find (Q, 16) digests: the places of those that the index has, ascending, and the first row of each."""
        wanted = _as_keys(digests)
        at = np.searchsorted(self.keys, wanted)
        inside = np.flatnonzero(at < len(self.keys))
        hits = inside[self.keys[at[inside]] == wanted[inside]]
        return hits, np.asarray(self.rows[at[hits]])


def _as_keys(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(digests).view("S16").reshape(-1)


def _save_blocks(
    folder: str, name: str, dtype: DTypeLike, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]
) -> None:
    """Write FOLDER/NAME.npy from parts of rows that together make up `shape`."""
    # not through a mapped file: a full disk would kill the process
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with AtomicFile(os.path.join(folder, f"{name}.npy")) as file:
        np.lib.format.write_array_header_2_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8))


def _save(folder: str, name: str, array: NDArray[Any]) -> None:
    """Write FOLDER/NAME.npy."""
    _save_blocks(folder, name, array.dtype, array.shape, [array])


def _load(folder: str, name: str) -> NDArray[Any]:
    """Map FOLDER/NAME.npy: only the parts that are looked at are read."""
    path = os.path.join(folder, f"{name}.npy")
    check_regular(path)
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def check_regular(path: str) -> None:
    """Refuse anything but a regular file: a pipe would be waited for.

    Raises:
        OSError: It is none, or cannot be opened.
    """
    os.close(open_regular(path))

"""Semantic pairs of embeddings that are in many files, found by many processes: the pairs that one process finds.

**Experimental**: on one machine it is slower than one process, and it has never run on several.

The driver draws a sample, and makes clusters of it. Each worker takes blocks of rows: it says of every row in which
clusters it is to be looked at, and writes the rows to a file, those of neighbouring clusters together. Then each takes
groups of clusters, reads what all files have of them, and gives back the pairs inside. No process has all rows; the
driver has 16 bytes of each, a digest, by which equal rows are found.

What is computed, and in which blocks, is what `similarity` does in one process.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import AtomicFile, store
from curator_dali.outputs import EmbeddingReader
from curator_dali.similarity import (
    MAX_PAIRS,
    Clusters,
    Collector,
    Pairs,
    Picked,
    Vectors,
    assign,
    assign_blocks,
    assign_rows,
    bad_rows,
    block_rows,
    blocks,
    content_hash,
    drawn_rows,
    few,
    find_clusters,
    join,
    join_cluster,
    join_self,
    kmeans,
    must_join_all,
    same_digests,
    similar_pairs,
    sort_by_label,
    split_limit,
)
from curator_dali.stages.base import ScoredRows, Workers

logger = logging.getLogger(__name__)

_TASK_BYTES = 1 << 26  # 32,768 rows of 512
_GROUP_BYTES = 1 << 28  # of the rows of a group of clusters
_LEAST_GROUPS = 32  # so that there is work for many

_Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


class SpreadEmbeddings:
    """The embeddings of scored rows, which stay in their files.

    Args:
        scored: The rows, M of them.
        workers: Do the work.
        at_once: Bytes of embeddings that a task reads at once.

    Attributes:
        good: (G,) int64: the rows whose embeddings are of use.
    """

    def __init__(self, scored: ScoredRows, workers: Workers, *, at_once: int = _TASK_BYTES) -> None:
        self._scored, self._workers = scored, workers
        self._rows = max(1, at_once // (4 * scored.dim))  # of a task
        good: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        digests: list[NDArray[np.uint64]] = [np.empty((0, 2), np.uint64)]
        for rows, found in workers.map(_digest_block, self._blocks(np.arange(len(scored)))):
            good.append(rows)
            digests.append(found)
        self.good, self._digests = np.concatenate(good), np.concatenate(digests)

    def similar_pairs(
        self, images: NDArray[np.int64], threshold: float, device: str, *, max_pairs: int = MAX_PAIRS
    ) -> Pairs:
        """What `curator_dali.similarity.similar_pairs` gives for the embeddings of some images of `good`, ascending.

        `device` is where this process computes what it does itself.

        Raises:
            TooManyPairs: More than `max_pairs` pairs, or more than `MAX_PAIRS` in one unit of work.
        """
        same = same_digests(self._digests[np.searchsorted(self.good, images)])
        different = np.flatnonzero(same == np.arange(len(same)))
        rows = images[different]
        if few(len(rows), device):
            pairs = similar_pairs(self._gather(rows), threshold, exact=True, device=device, max_pairs=max_pairs)
        else:
            pairs = self._spread_pairs(rows, threshold, device, max_pairs)
        return Pairs(different[pairs.first], different[pairs.second], pairs.value, same)

    def _spread_pairs(self, rows: NDArray[np.int64], threshold: float, device: str, max_pairs: int) -> Pairs:
        drawn = drawn_rows(len(rows))
        logger.info("%d different embeddings: clusters of a sample of %d", len(rows), len(drawn))
        sample = Picked(self._gather(rows[drawn]), device, numbers=drawn, count=len(rows))
        clusters = find_clusters(sample, threshold)
        found = Collector(max_pairs)
        if must_join_all(clusters):
            parts = self._join_all(rows, threshold)
        else:
            parts = self._join_clusters(rows, clusters, _groups(sample, clusters, device))
        for first, second, value in parts:
            found.add(first, second, value)
        return found.pairs()

    def _gather(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings of few images, (n, D)."""
        parts = np.split(images, np.searchsorted(images, np.arange(self._rows, images[-1] + 1, self._rows)))
        readers = (self._scored.reader(part) for part in parts if len(part))
        return np.concatenate([*self._workers.map(_read, readers)])

    def _blocks(self, rows: NDArray[np.int64], step: int = 1) -> Iterator[_Block]:
        """Blocks of rows, each a multiple of `step` long."""
        for block in blocks(len(rows), step * max(1, self._rows // step)):
            yield _Block(block.start, self._scored.reader(rows[block]))

    def _join_all(self, rows: NDArray[np.int64], threshold: float) -> Iterator[_Found]:
        """Pairs of all with all, tile by tile."""
        device = self._workers.device
        tiles = [*self._blocks(rows, block_rows(device))]
        logger.info("clusters are of no use at a cosine of %g: all are compared, in %d blocks", threshold, len(tiles))
        items = ((left, right) for number, left in enumerate(tiles) for right in tiles[number:])
        yield from self._workers.map(partial(_pairs_of_tile, threshold=threshold, device=device), items)

    def _join_clusters(
        self, rows: NDArray[np.int64], clusters: Clusters, groups: NDArray[np.int64]
    ) -> Iterator[_Found]:
        """Pairs in each cluster, group by group; a pair may come twice."""
        count, device = len(clusters.centroids), self._workers.device
        with self._workers.scratch() as folder:
            assign_block = partial(_assign_block, clusters=clusters, groups=groups, folder=folder, device=device)
            files: list[_GroupedRows] = [*self._workers.map(assign_block, self._blocks(rows, assign_rows(count)))]
            near = sum(file.near for file in files)
            num_groups = int(groups.max()) + 1
            logger.info("%d clusters in %d groups, a row is in %.1f of them", count, num_groups, near / len(rows))
            pairs_of_group = partial(
                _pairs_of_group,
                groups=groups,
                threshold=clusters.threshold,
                limit=split_limit(near, count),
                device=device,
            )
            items = ((group, [(file.url, int(file.offsets[group])) for file in files]) for group in range(num_groups))
            for done, found in enumerate(self._workers.map(pairs_of_group, items), 1):
                logger.info("pairs of %d of %d groups of clusters", done, num_groups)
                yield found


def _groups(sample: Picked, clusters: Clusters, device: str) -> NDArray[np.int64]:
    """(K,) the group of every cluster: neighbours together, in groups of about equally many rows."""
    import torch

    count = len(clusters.centroids)
    centroids = torch.from_numpy(clusters.centroids).to(device)
    near = np.zeros(count)
    for block in blocks(len(sample.numbers), assign_rows(count)):
        numbers = assign(sample.unit(sample.numbers[block]), centroids, clusters.margin)[2]
        near += np.bincount(numbers, minlength=count)
    near *= len(sample) / len(sample.numbers)
    limit = min(_GROUP_BYTES / (4 * sample.dim), near.sum() / _LEAST_GROUPS)
    regions = kmeans(Vectors(clusters.centroids, device), max(1, round(count**0.5)))
    order = np.argsort((centroids @ regions.T).argmax(dim=1).cpu().numpy(), kind="stable")
    groups = np.empty(count, np.int64)
    groups[order] = np.unique(np.cumsum(near[order]) // limit, return_inverse=True)[1]
    return groups


@dataclass(frozen=True)
class _Block:
    """Consecutive rows of those that are compared: the number of the first, and a reader of their embeddings."""

    start: int
    reader: EmbeddingReader


@dataclass(frozen=True)
class _GroupedRows:
    """The file that holds the rows of one block, by groups of clusters.

    Attributes:
        url: The file.
        offsets: (groups,) where in it the arrays of each begin.
        near: Clusters that its rows are looked at in, in all.
    """

    url: str
    offsets: NDArray[np.int64]
    near: int


def _read(reader: EmbeddingReader) -> NDArray[np.float32]:
    return reader.read()


def _digest_block(block: _Block) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The numbers of the rows that are of use, and their digests."""
    data = block.reader.read()
    use = np.delete(np.arange(len(data)), bad_rows(data))
    digests = b"".join(content_hash(row.data.cast("B")) for row in np.ascontiguousarray(data[use]))
    return use + block.start, np.frombuffer(digests, np.uint64).reshape(-1, 2)


def _assign_block(
    block: _Block, *, clusters: Clusters, groups: NDArray[np.int64], folder: str, device: str
) -> _GroupedRows:
    """Assign a block of rows to clusters, and write for each group of these what finding its pairs needs."""
    data = block.reader.read()
    # each row's nearest cluster, and (A,) pairs of a row and a cluster that it is looked at in
    primary, row, number = assign_blocks(Vectors(data, device), clusters.centroids, clusters.margin)
    members, bounds = sort_by_label(np.arange(len(row)), groups[number], int(groups.max()) + 1)
    offsets = []
    # of a name of its own: the task may be run by two at once, if one was given up
    with AtomicFile(f"{folder}/{block.start:012d}-{secrets.token_hex(4)}.rows", sync=False) as file:
        for begin, end in pairwise(bounds.tolist()):
            chosen = members[begin:end]
            own, place = np.unique(row[chosen], return_inverse=True)
            offsets.append(file.tell())
            for array in (own + block.start, primary[own], place.astype(np.int32), number[chosen], data[own]):
                np.save(file, array)
    return _GroupedRows(file.url, np.array(offsets), len(row))


def _pairs_of_group(
    item: tuple[int, list[tuple[str, int]]], *, groups: NDArray[np.int64], threshold: float, limit: int, device: str
) -> _Found:
    """The pairs in the clusters of one group, by the rows' numbers."""
    group, pieces = item
    loaded = [_load(url, offset) for url, offset in pieces]
    starts = np.cumsum([0, *(len(piece[0]) for piece in loaded)])
    rows, primary, place, number, data = (np.concatenate(column) for column in zip(*loaded, strict=True))
    place = place + np.repeat(starts[:-1], [len(piece[2]) for piece in loaded])
    del loaded
    vectors, found = Vectors(data, device), Collector(MAX_PAIRS)
    members, bounds = sort_by_label(place, number, len(groups))
    for cluster in np.flatnonzero(groups == group).tolist():
        some = members[bounds[cluster] : bounds[cluster + 1]]
        join_cluster(found, vectors, some, primary[some] == cluster, threshold, limit=limit)
    pairs = found.pairs()
    return rows[pairs.first], rows[pairs.second], pairs.value


def _load(url: str, offset: int) -> list[NDArray[np.generic]]:
    with store.open_input(url) as file:
        file.seek(offset)
        return [np.load(file) for _ in range(5)]


def _pairs_of_tile(item: tuple[_Block, _Block], *, threshold: float, device: str) -> _Found:
    """The pairs of two blocks of rows, or of one with itself, by the rows' numbers."""
    one, other = item
    left = Vectors(one.reader.read(), device)
    found = Collector(MAX_PAIRS, within=False)
    if one.start == other.start:
        join_self(found, left, np.arange(len(left)), threshold)
    else:
        right = Vectors(other.reader.read(), device)
        join(found, left, np.arange(len(left)), right, np.arange(len(right)), threshold)
    pairs = found.pairs()
    return pairs.first + one.start, pairs.second + other.start, pairs.value

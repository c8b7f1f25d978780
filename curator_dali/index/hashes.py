"""Perceptual hashes in files sorted by a quarter of their bits: what is near is found without comparing with all.

The 64 bits are dealt into four lanes of 16. Where two hashes differ in at most d bits, some lane n of 0 to 3 differs in
at most floor((d - n) / 4): else they would differ in d + 1 (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with
Multi-Index Hashing", 2012). So each lane is looked up with all values that near; where these are so many that comparing
with every hash costs less, that is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from curator_dali.index import arrays
from curator_dali.similarity.hamming import compare
from curator_dali.similarity.pairs import MAX_PAIRS, Collector, Pairs, blocks

__all__ = ["HashIndex"]

_LANES, _VALUES = 4, 2**16
_AT_ONCE = 2**18  # hashes looked up, or compared
_LOOK_UP, _COMPARE, _SCAN = 20.0, 38.0, 1.0  # nanoseconds: a value of a lane, a hash that has it, one in a scan


@dataclass(frozen=True)
class HashIndex:
    """Hashes, each once, with the first row that has it; four times, sorted by each lane.

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
        """Write the files of one.

        Args:
            folder: Where.
            name: What their names begin with.
            hashes: (N,).
            rows: (N,) ascending.
        """
        values, first = np.unique(hashes, return_index=True)
        dealt, rows = _deal(values), rows[first]
        lanes = _lanes(dealt)
        orders = [np.argsort(lane, kind="stable") for lane in lanes]
        shape = (_LANES, len(dealt))
        arrays.save_blocks(folder, f"{name}.hashes", np.uint64, shape, (dealt[order] for order in orders))
        arrays.save_blocks(folder, f"{name}.rows", np.int64, shape, (rows[order] for order in orders))
        counts = [np.bincount(lane, minlength=_VALUES) for lane in lanes]
        arrays.save(folder, f"{name}.starts", np.array([np.concatenate([[0], np.cumsum(c)]) for c in counts], np.int64))

    @classmethod
    def load(cls, folder: str, name: str) -> HashIndex:
        """The one that was written there."""
        return cls(*(arrays.load(folder, f"{name}.{part}") for part in ("hashes", "rows", "starts")))

    def near(self, queries: NDArray[np.uint64], distance: int, *, max_pairs: int = MAX_PAIRS) -> Pairs:
        """Pairs of a query and the first row of each hash that differs in at most `distance` bits, with the bits.

        Args:
            queries: (Q,).
            distance: 0 to 16.
            max_pairs: More than these are an error.

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
            for block in blocks(len(dealt), max(1, _AT_ONCE // max(1, len(masks)))):
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
            cost += len(_masks((distance - number) // _LANES)) * (_LOOK_UP + _COMPARE * together)
        return bool(cost > _SCAN * count)

    def _scan(self, found: Collector, dealt: NDArray[np.uint64], distance: int) -> None:
        for part in blocks(self.hashes.shape[1], _AT_ONCE // 64):
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
    """What 16 bits differ by, if they differ in at most so many; nothing if these are below 0."""
    values = np.arange(_VALUES, dtype=np.uint16)
    return values[np.bitwise_count(values) <= bits] if bits >= 0 else values[:0]

"""Digests of 16 bytes in a sorted file: looked up by bisection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curator_dali.index import arrays

__all__ = ["DigestIndex"]


@dataclass(frozen=True)
class DigestIndex:
    """Digests in order, each once, with the first row that has it.

    Attributes:
        keys: (U,) of 16 bytes, mapped.
        rows: (U,) int64, mapped.
    """

    keys: NDArray[np.bytes_]
    rows: NDArray[np.int64]

    @staticmethod
    def write(folder: str, name: str, digests: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Write the files of one.

        Args:
            folder: Where.
            name: What their names begin with.
            digests: (N, 16).
            rows: (N,) ascending.
        """
        keys, first = np.unique(_as_keys(digests), return_index=True)
        arrays.save(folder, f"{name}.keys", keys)
        arrays.save(folder, f"{name}.rows", rows[first])

    @classmethod
    def load(cls, folder: str, name: str) -> DigestIndex:
        """The one that was written there."""
        return cls(arrays.load(folder, f"{name}.keys"), arrays.load(folder, f"{name}.rows"))

    def find(self, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of (Q, 16) digests are there: their places, ascending, and the first row of each."""
        wanted = _as_keys(digests)
        at = np.searchsorted(self.keys, wanted)
        inside = np.flatnonzero(at < len(self.keys))
        hits = inside[self.keys[at[inside]] == wanted[inside]]
        return hits, np.asarray(self.rows[at[hits]])


def _as_keys(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(digests).view("S16").reshape(-1)

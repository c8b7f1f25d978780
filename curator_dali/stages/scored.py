"""What a stage sees that decides of all images at once, and who may share its work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reader", "Scored", "Spread"]

T = TypeVar("T")
R = TypeVar("R")


class Reader(Protocol):
    """Embeddings of some images, not read yet. It pickles."""

    def read(self) -> NDArray[np.float32]:
        """(m, D), in the images' order."""


class Spread(Protocol):
    """Other processes that may take a share of a decision; each of them sees the same folders as this one.

    Attributes:
        device: What they have to compute on: "cpu", or "cuda:0".
        dim: D, the width of the embeddings.
    """

    device: str
    dim: int

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What a function gives for each item, in their order. All of it pickles; the function may be run twice."""

    def reader(self, rows: NDArray[np.int64]) -> Reader:
        """The embeddings of some of the M images, by their numbers among these, ascending."""

    def room(self) -> AbstractContextManager[str]:
        """A new folder, or its URL, for files between the processes, which goes away with the block."""


class Scored(Protocol):
    """What a `GlobalSelector` sees: all images that no earlier stage dropped, M of them, in the source's order."""

    def __len__(self) -> int:
        """M."""

    def column(self, name: str) -> NDArray[Any]:
        """(M,) values of a column."""

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """Blocks of (m, D) embeddings, M rows in all: those of a large run need not fit in memory."""

    @property
    def spread(self) -> Spread | None:
        """Who may share the work; None: this process alone."""

"""`Shard`: which positions of an epoch are a rank's; `Position`: where a run stands."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked

__all__ = ["Position", "Shard"]


@checked
@dataclass(frozen=True)
class Shard:
    """A rank's part of every epoch: the positions p with p % world_size == rank.

    All ranks make the same number of steps. Where the world size does not divide what is left of the epoch, the
    last step is filled up from the epoch's first positions (at most world_size - 1 samples are seen twice), as
    PyTorch's `DistributedSampler` does.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank {self.rank} of world size {self.world_size}: the world size must be at least 1 and the rank "
                f"between 0 and world size - 1"
            )

    @classmethod
    def from_torch(cls) -> Shard:
        """Return rank and world size of `torch.distributed`, else of torchrun's RANK and WORLD_SIZE, else 0 of 1.

        Raises:
            ValueError: Only one of RANK and WORLD_SIZE is set, or one is no whole number.
        """
        import sys

        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
        if all(value is None for value in found.values()):
            return cls()
        try:
            return cls(*(int(value or "") for value in found.values()))
        except ValueError as error:
            told = ", ".join(f"{name} is {value!r}" for name, value in found.items())
            raise ValueError(
                f'shard="torch": torch.distributed is not initialised, and of the environment {told}; set both as '
                "torchrun does, or neither (rank 0 of 1); call torch.distributed.init_process_group first; or give "
                f"Shard(rank, world_size) ({error})"
            ) from None

    def num_samples(self, remaining: int) -> int:
        """Samples that every rank takes from `remaining` positions."""
        return -(-remaining // self.world_size)

    def positions(self, start: int, count: int, n: int, first: int = 0) -> NDArray[np.int64]:
        """This rank's positions, `count` of them from its `first`-th on, in an epoch resumed at position `start`.

        Args:
            start: Position at which all ranks (re)started.
            count: How many.
            n: Samples in the epoch; positions beyond it wrap to the epoch's beginning.
            first: How many this rank has taken since `start`.
        """
        return (start + self.rank + (first + np.arange(count, dtype=np.int64)) * self.world_size) % n


@dataclass(frozen=True)
class Position:
    """Where a run stands: all that a resume needs.

    Attributes:
        seed: The shuffle's seed; None for the source's own order.
        epoch: Which epoch.
        position: Positions of the epoch consumed by all ranks together.
    """

    seed: int | None
    epoch: int
    position: int

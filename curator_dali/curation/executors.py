"""Who does the parts of a run: this process, or others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

from curator_dali.curation.worker import Worker
from curator_dali.outputs.manifest import Part
from curator_dali.sampling.order import Range

__all__ = ["Executor", "LocalExecutor", "Mapper", "executor_of"]

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Other processes, on machines that all see the output's folder.

    Attributes:
        device: What a function finds there to compute on: "cpu", or "cuda:0".
    """

    device: str

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What a function gives for each item, in their order.

        Args:
            function: Of the item alone; it may be run more than once for one, where a process died. It pickles, and so
                do the items and what it gives.
            items: Taken as they are needed: few are under way at a time.
        """


class Executor(Protocol):
    """Has parts done by workers, in any order, each exactly once."""

    def run(
        self,
        worker: Worker,
        parts: Sequence[Range],
        finished: Callable[[Part], object],
        progress: Callable[[int], object],
    ) -> None:
        """Do parts.

        Args:
            worker: What does a part; it pickles.
            parts: Ranges of its source.
            finished: Called with each part that is written and recorded.
            progress: Called with the number of samples decided since the last call.
        """

    def mapper(self) -> AbstractContextManager[Mapper | None]:
        """Processes for what is decided of all samples; None: this one alone. What is under way ends with the block."""


class LocalExecutor:
    """This process, part after part."""

    def run(
        self,
        worker: Worker,
        parts: Sequence[Range],
        finished: Callable[[Part], object],
        progress: Callable[[int], object],
    ) -> None:
        """Do parts; see `Executor.run`."""
        try:
            worker.run(parts, finished, progress)
        finally:
            worker.close()

    def mapper(self) -> AbstractContextManager[Mapper | None]:
        """None."""
        return nullcontext()


def executor_of(executor: str | Executor) -> Executor:
    """An executor from its name.

    Args:
        executor: "local", "ray" (with `curator_dali.ray.RayExecutor`'s defaults), or an `Executor`.

    Raises:
        ValueError: No such name.
        ImportError: Ray is not installed.
    """
    if executor == "local":
        return LocalExecutor()
    if executor == "ray":
        # by name, as the only step upwards: the module lies above, because it knows what is here
        return importlib.import_module("curator_dali.ray").RayExecutor()  # type: ignore[no-any-return]
    if isinstance(executor, (str, type)) or not all(
        callable(getattr(executor, name, None)) for name in ("run", "mapper")
    ):
        raise ValueError(f'executor is {executor!r}; allowed: "local", "ray", or a curator_dali.ray.RayExecutor(...)')
    return executor

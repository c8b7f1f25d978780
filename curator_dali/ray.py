"""Curation on a Ray cluster: actors take part after part through the stages; only records of parts travel.

Each actor builds its loader and loads its weights once, and writes its own files. The driver hands out ranges of
samples, one an actor at a time, and never sees a pixel. Ray's core actors are used and not Ray Data, which has no way
to count the failures of a block, nor to give a block up. What a stage decides of all samples is shared out as tasks.
"""

from __future__ import annotations

from curator_dali.curation import RayExecutor, find_killers

__all__ = ["RayExecutor", "find_killers"]

__path__: list[str] = []  # so that `curator_dali.ray.executor`, in pickles of earlier versions, is looked for

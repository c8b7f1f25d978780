"""Make the index of a data set, in parallel, resumably, and anew only for files that changed."""

from __future__ import annotations

from curator_dali.preparation.run import Prepared, prepare

__all__ = ["Prepared", "prepare"]

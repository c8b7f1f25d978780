"""`ImageLoader`: batches of a source in order, shuffled, sharded or in buckets, resumable at any step."""

from __future__ import annotations

from curator_dali.loader.loader import ImageLoader
from curator_dali.loader.results import ErrorList, LoaderStats, write_errors

__all__ = ["ErrorList", "ImageLoader", "LoaderStats", "write_errors"]

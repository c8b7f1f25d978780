"""Curation: a source through the loader, the stages and the sinks, in one process, resumable at every part."""

from __future__ import annotations

from curator_dali.curation.config import Settings
from curator_dali.curation.decide import write_kept
from curator_dali.curation.rows import Output
from curator_dali.curation.run import Curation, curate
from curator_dali.curation.thresholds import rethreshold, stages_of
from curator_dali.curation.worker import Worker

__all__ = ["Curation", "Output", "Settings", "Worker", "curate", "rethreshold", "stages_of", "write_kept"]

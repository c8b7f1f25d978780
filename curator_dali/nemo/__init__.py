"""curator_dali inside NeMo Curator (1.4): a reader, a fused curation stage, and conversions between the two batches.

Needs `pip install 'curator-dali[nemo]'`. These are ordinary NeMo Curator stages, for its `Pipeline` and any executor.
"""

from __future__ import annotations

try:
    import nemo_curator.tasks  # noqa: F401 - only to see whether it is there
except ImportError as error:
    raise ImportError(
        f"curator_dali.nemo needs NeMo Curator ({error}): pip install 'curator-dali[nemo]' (Python 3.11 to 3.13)"
    ) from error

from curator_dali.nemo.stages import DaliCurationStage, DaliImageReaderStage
from curator_dali.nemo.tasks import DROPPED, ERRORS, SampleRangeTask, SplitFilesStage, from_nemo, to_nemo

__all__ = [
    "DROPPED",
    "ERRORS",
    "DaliCurationStage",
    "DaliImageReaderStage",
    "SampleRangeTask",
    "SplitFilesStage",
    "from_nemo",
    "to_nemo",
]

"""Several batches as one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from curator_dali import arrays
from curator_dali.arguments import checked
from curator_dali.batch.batch import ImageBatch

__all__ = ["concat"]


@checked
def concat(batches: Sequence[ImageBatch]) -> ImageBatch:
    """One batch with the rows of all, in order; task, data set and what a batch lacks are the first one's.

    Pixels are copied only where rows of one shape become one array. `images`, `embeddings`, `encoded`, a view or a
    column is kept where every batch with images in it has it.

    Args:
        batches: At least one; all on one device.

    Raises:
        ValueError: There are none, or they lie on different devices.
    """
    wrong = [batch for batch in batches if not isinstance(batch, ImageBatch)]
    if wrong:
        raise ValueError(f"batches has {wrong[0]!r:.60}; give a list of ImageBatch")
    if not batches:
        raise ValueError("concat() needs at least one batch")
    parts = [batch for batch in batches if len(batch)] or [batches[0]]
    if len(parts) == 1:
        return parts[0]
    devices = {part.device for part in parts}
    if len(devices) > 1:
        raise ValueError(f"the batches lie on {' and '.join(sorted(devices))}: move them with to_device() first")
    first = parts[0]
    encoded = [part.encoded for part in parts if part.encoded is not None]
    return ImageBatch(
        task_id=first.task_id,
        dataset_name=first.dataset_name,
        data=[item for part in parts for item in part.data],
        images=_rows([part.images for part in parts]),
        embeddings=_rows([part.embeddings for part in parts]),
        encoded=[row for rows in encoded for row in rows] if len(encoded) == len(parts) else None,
        views={view: _rows([part.views[view] for part in parts]) for view in _common([part.views for part in parts])},
        columns={
            name: np.concatenate([part.columns[name] for part in parts])
            for name in _common([part.columns for part in parts])
        },
    )


def _common(mappings: Sequence[dict[Any, Any]]) -> list[Any]:
    return [key for key in mappings[0] if all(key in mapping for mapping in mappings)]


def _rows(parts: Sequence[Any]) -> Any:
    if any(part is None for part in parts):
        return None
    ends = list(accumulate(map(len, parts)))
    numbered = [(range(end - len(part), end), part) for part, end in zip(parts, ends, strict=True)]
    return arrays.merge(numbered, ends[-1])

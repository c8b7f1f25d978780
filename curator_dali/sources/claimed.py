"""`ClaimedSizes`: a source whose metadata tell the sizes of images, so that nobody need read these to know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.sources.base import CLAIMED, KINDS, Source
from curator_dali.sources.open import reopen
from curator_dali.sources.subset import SameSamples

_LARGEST = 2**31 - 1  # pixels of a side, as a header's type has it


class ClaimedSizes(SameSamples):
    """The same samples in the same order; an unknown header has the size that the metadata tell, and codec `CLAIMED`.

    Args:
        source: The whole; closing this closes it.
        width: The field with the width in pixels.
        height: The field with the height in pixels.
    """

    def __init__(self, source: Source, width: str, height: str) -> None:
        super().__init__(source)
        self.width_field, self.height_field = width, height
        if source.origin is not None:
            self.origin = {"claimed": [width, height], "of": source.origin}

    @classmethod
    def reopen(cls, origin: Mapping[str, Any], data: Any) -> ClaimedSizes:
        """Open one again from its origin; `data` is where the whole is now, None for where it was."""
        return cls(reopen(origin["of"], data), *origin["claimed"])

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples, and the claimed sizes of others. Reads the metadata of the others."""
        found = self.source.headers(indices).copy()
        unknown = np.flatnonzero(found["codec"] == 0)
        if len(unknown):
            batch = self.source.read_without(np.asarray(indices)[unknown], np.ones(len(unknown), bool))
            for row, item in zip(unknown.tolist(), batch.objects, strict=True):
                height, width = (item.metadata.get(name) for name in (self.height_field, self.width_field))
                if _is_size(height) and _is_size(width):
                    found[row] = (height, width, CLAIMED, 1)
        return found


KINDS["claimed"] = ClaimedSizes


def _is_size(value: Any) -> bool:
    """Whether a field's value is a number of pixels."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0 and 0 < value <= _LARGEST

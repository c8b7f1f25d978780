"""A loader that reads ranges of a source one after the other, with no batch in two of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from curator_dali.batch.batch import ImageBatch
from curator_dali.decoding.decoder import Decoded
from curator_dali.loader.loader import ImageLoader
from curator_dali.loader.results import ErrorList
from curator_dali.sampling.order import PartsOrder, Range
from curator_dali.transforms.geometry import Resize

__all__ = ["GLANCE", "PartLoader"]

GLANCE = (Resize((32, 32), "linear"),)
"""The view where no stage wants one: a sample is kept only if it decodes."""


class PartLoader(ImageLoader):
    """An `ImageLoader` over parts of its source, with one decoder for all of them: see `over`.

    Attributes:
        refuse_unread: Whether a sample whose bytes cannot be read now ends the pass with a `SourceError`, instead of
            counting as a bad image.
    """

    max_errors = 0  # the steps tell them
    refuse_unread = False

    def over(self, parts: Sequence[Range]) -> Generator[tuple[Decoded, ImageBatch | None], None, None]:
        """Load ranges of the source, in order.

        Yields:
            Every step, and its batch: None where every image of it is bad. `columns["index"]` of a batch has the
            samples' indices in the source.
        """
        self._order = PartsOrder(parts)
        for decoded, batch in self.steps():
            if batch is not None:
                batch.columns["index"] = decoded.encoded.indices[decoded.rows]
            yield decoded, batch

    def _record(self, decoded: Decoded, errors: ErrorList) -> None:
        if self.refuse_unread:
            decoded.encoded.check_read()
        super()._record(decoded, errors)

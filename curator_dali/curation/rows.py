"""`Rows`: what becomes of a batch's samples, a row each, filled in while the batch goes through the stages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.batch.batch import ImageBatch
from curator_dali.curation.metadata import Misfits
from curator_dali.decoding.decoder import Decoded
from curator_dali.decoding.headers import Codec, upright_sizes
from curator_dali.errors import kind_of_failure

__all__ = ["DECODE", "Rows"]

DECODE = "decode"
"""The `stage` of samples that failed."""


@dataclass
class Rows:
    """N samples of a source, each with what is known of it.

    Attributes:
        columns: Name -> (N,) values: floats with NaN, anything else as objects with None where nothing is known.
        embeddings: None or (N, D) on the host; only the rows of `embedded` count.
        embedded: (N,) which rows have an embedding.
        members: None or a sample's members' original bytes, None for who is not kept.
        reasons: How often (status, stage, kind of reason) occurs.
        seconds: Stage -> seconds that it took.
        misfits: Values of the metadata that do not fit their columns.
    """

    columns: dict[str, NDArray[Any]]
    embeddings: NDArray[Any] | None = None
    embedded: NDArray[np.bool_] | None = None
    members: list[Mapping[str, memoryview] | None] | None = None
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    misfits: Misfits = field(default_factory=dict)

    @classmethod
    def of(cls, decoded: Decoded, kinds: Mapping[str, str]) -> Rows:
        """All samples of a decoded step, of which only the failures are known so far.

        Args:
            decoded: The step.
            kinds: The columns to keep, with their types.
        """
        encoded = decoded.encoded
        n = len(encoded)
        columns: dict[str, NDArray[Any]] = {name: _nothing(n, kind) for name, kind in kinds.items()}
        columns |= {name: np.full(n, None, object) for name in ("status", "stage", "reason")}
        columns["index"] = encoded.indices
        columns["image_id"][:] = [item.image_id for item in encoded.objects]
        columns["image_path"][:] = [item.image_path for item in encoded.objects]
        known = np.flatnonzero(encoded.headers["codec"] != Codec.UNKNOWN)
        sizes = upright_sizes(encoded.headers[known])
        columns["height"][known], columns["width"][known] = sizes[:, 0], sizes[:, 1]
        rows = cls(columns)
        for row, reason in decoded.errors.items():
            rows.decide(np.array([row]), "failed", DECODE, [reason], [kind_of_failure(reason)])
        return rows

    def __len__(self) -> int:
        return len(self.columns["index"])

    def __getitem__(self, rows: slice) -> Rows:
        """Some of the rows, without their bytes and what they add up to."""
        return Rows(
            {name: values[rows] for name, values in self.columns.items()},
            None if self.embeddings is None else self.embeddings[rows],
            None if self.embedded is None else self.embedded[rows],
        )

    def record(
        self, at: NDArray[np.int64], batch: ImageBatch, dim: int, which: NDArray[np.bool_] | None = None
    ) -> None:
        """Take over what a batch knows of its images.

        Args:
            at: (M,) the rows that the batch's images have here.
            batch: M images.
            dim: Width of the embeddings to keep; 0 for none.
            which: (M,) of which images; None for all.
        """
        picked = np.arange(len(at)) if which is None else np.flatnonzero(which)
        at = at[picked]
        for name, values in self.columns.items():
            if name in batch.columns and name not in ("index", "image_id", "image_path"):
                values[at] = batch.columns[name][picked]
        if dim and batch.embeddings is not None:
            if self.embeddings is None:
                self.embeddings, self.embedded = np.zeros((len(self), dim), np.float32), np.zeros(len(self), bool)
            assert self.embedded is not None
            self.embeddings[at] = arrays.to_host(arrays.take(batch.embeddings, picked))
            self.embedded[at] = True

    def spend(self, stage: str, seconds: float) -> None:
        """Count what a stage took."""
        self.seconds[stage] += seconds

    def decide(
        self, at: NDArray[np.int64], status: str, stage: str, reasons: Sequence[str], kinds: Sequence[str]
    ) -> None:
        """Say what became of rows that are dropped or failed: where, and why, in one line and in kind."""
        self.columns["status"][at] = status
        self.columns["stage"][at] = stage
        self.columns["reason"][at] = reasons
        self.reasons.update((status, stage, kind) for kind in kinds)

    def keep(self, at: NDArray[np.int64], members: Sequence[Mapping[str, memoryview]] | None) -> None:
        """Say that rows are kept.

        Args:
            at: (M,) rows.
            members: Their M samples' bytes, if they are to be written.
        """
        self.columns["status"][at] = "kept"
        if members is not None:
            self.members = [None] * len(self)
            for row, found in zip(at.tolist(), members, strict=True):
                self.members[row] = found


def scores_of(columns: Mapping[str, Any], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Make `curation.json` of some rows: where the image came from, its size, and every score that it has.

    What is not known (None, NaN) is left out. Hugging Face's `datasets` takes a field that begins with null for null.
    """
    names = [name for name in columns if name not in ("image_id", "index", "status", "stage", "reason")]
    picked = {name: np.asarray(columns[name])[list(rows)].tolist() for name in names}
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not None and value == value}
        for values in zip(*picked.values(), strict=True)
    ]


def _nothing(n: int, kind: str) -> NDArray[Any]:
    return np.full(n, np.nan, kind) if kind.startswith("float") else np.full(n, None, object)

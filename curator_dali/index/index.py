"""The index of an output: its files, opened, and whether it is of the output as that is now.

    out/_index/index.json      what there is, of which output, in which folder
    out/_index/TOKEN/...       the files of one build: they appear whole when index.json names them

Rows are numbers among the kept rows of the output, in its order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked
from curator_dali.index import arrays
from curator_dali.index.digests import DigestIndex
from curator_dali.index.hashes import HashIndex
from curator_dali.index.lookup import VectorIndex
from curator_dali.io.files import parse_json, read_regular
from curator_dali.io.remote import is_remote
from curator_dali.outputs.manifest import Manifest
from curator_dali.outputs.parquet import EMBEDDING
from curator_dali.similarity.hashes import CONSTANT_HASHES
from curator_dali.similarity.pairs import MAX_PAIRS, Pairs

__all__ = ["FOLDER", "FORMAT", "IDS", "NAME", "Index", "digests_of", "identity", "open_index"]

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "_index"
NAME = "index.json"
IDS = "ids.arrow"
MOST = 1 << 26  # bytes of `index.json`


@dataclass(frozen=True)
class Index:
    """What an output kept, to be looked up in. Its files are mapped: only what is looked at is read.

    Attributes:
        out: The output.
        rows: How many images it kept.
        columns: What they can be looked up by: "content_hash", "pixel_hash", "phash", "dhash", "embedding".
        threshold: The lowest cosine that embeddings can be looked up with; 0 where there are none.
        nbytes: Of the files.
        about: What `index.json` says.
    """

    out: str
    rows: int
    columns: tuple[str, ...]
    threshold: float
    nbytes: int
    about: dict[str, Any] = field(repr=False)
    _digests: dict[str, DigestIndex] = field(repr=False)
    _hashes: dict[str, HashIndex] = field(repr=False)
    _vectors: VectorIndex | None = field(repr=False)
    _ids: Any = field(repr=False)

    @classmethod
    def load(cls, out: str, about: dict[str, Any]) -> Index:
        """The one that `index.json` describes.

        Raises:
            OSError, ValueError, KeyError, TypeError: Its files are not what they should be.
        """
        import pyarrow as pa

        folder = os.path.join(out, FOLDER, about["folder"])
        embedding = about["embedding"]
        arrays.check_regular(os.path.join(folder, IDS))
        ids = pa.ipc.open_file(pa.memory_map(os.path.join(folder, IDS))).read_all().column(0)
        if len(ids) != about["rows"]:
            raise ValueError(f"{len(ids)} ids of {about['rows']} rows")
        return cls(
            out,
            about["rows"],
            (*about["digests"], *about["hashes"], *([EMBEDDING] if embedding else [])),
            embedding["threshold"] if embedding else 0.0,
            sum(entry.stat().st_size for entry in os.scandir(folder)),
            about,
            {name: DigestIndex.load(folder, name) for name in about["digests"]},
            {name: HashIndex.load(folder, name) for name in about["hashes"]},
            VectorIndex.load(folder, embedding) if embedding and embedding["count"] else None,
            ids,
        )

    def equal(self, column: str, texts: Sequence[str | None]) -> Pairs:
        """The first row that has each of these digests.

        Args:
            column: "content_hash" or "pixel_hash".
            texts: In hexadecimal; None is like nothing.

        Returns:
            Pairs of a place in `texts` and a row, with 0.
        """
        places = np.array([place for place, text in enumerate(texts) if text is not None], np.int64)
        hits, rows = self._digests[column].find(digests_of([text for text in texts if text is not None]))
        return Pairs(places[hits], rows, np.zeros(len(hits), np.float32))

    def near(self, column: str, hashes: NDArray[np.uint64], distance: int, *, max_pairs: int = MAX_PAIRS) -> Pairs:
        """Pairs of a place in `hashes` and a row whose hash is at most `distance` bits away, of equal ones the first.

        Raises:
            TooManyPairs: More than `max_pairs`.
        """
        index = self._hashes[column]
        found = index.near(hashes, distance, max_pairs=max_pairs)
        blank = index.near(CONSTANT_HASHES[column], 0).second  # an earlier version indexed them, too
        kept = ~np.isin(found.second, blank)
        return Pairs(found.first[kept], found.second[kept], found.value[kept])

    def similar(
        self, embeddings: Any, threshold: float, *, device: str | None = None, max_pairs: int = MAX_PAIRS
    ) -> Pairs:
        """Pairs of a place in `embeddings` and a row with a cosine of `threshold` or more: 99% of them, none wrong.

        Raises:
            ValueError: The threshold is below the index's, or the embeddings are none, or of another width.
            TooManyPairs: More than `max_pairs`.
        """
        if self._vectors is None:
            none = np.empty(0, np.int64)
            return Pairs(none, none, np.empty(0, np.float32))
        return self._vectors.similar(embeddings, threshold, device=device, max_pairs=max_pairs)

    def ids(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """The `image_id` of each row."""
        found = np.empty(len(rows), object)
        bounds = np.cumsum([0, *(len(chunk) for chunk in self._ids.chunks)])
        chunks = np.searchsorted(bounds, rows, "right") - 1
        for number in np.unique(chunks).tolist():
            here = np.flatnonzero(chunks == number)
            found[here] = self._ids.chunk(number).take(rows[here] - bounds[number]).to_pylist()
        return found

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        names = ("out", "rows", "columns", "threshold", "nbytes")
        return {name: getattr(self, name) for name in names} | {"columns": list(self.columns)}


@checked
def open_index(out: str | os.PathLike[str]) -> Index | None:
    """The index of an output, if it has one that is of the output as it is now. Of another one a warning tells.

    Raises:
        OutputError: There is no output, or it is of another version.
    """
    out = os.fspath(out)
    if is_remote(out):
        return None
    path = os.path.join(out, FOLDER, NAME)
    try:
        about = parse_json(read_regular(path, MOST))
        if about["format"] != FORMAT:
            why = f"is of format {about['format']}, and this version reads {FORMAT}"
        elif about["output"] != identity(Manifest.load(out)):
            why = "is of this output as it was before: it was run again, or went on"
        else:
            return Index.load(out, about)
    except FileNotFoundError:
        if not os.path.exists(path):
            return None
        why = "lacks files"
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"is damaged ({error})"
    logger.warning("the index of %s %s. It is not used; make it again: curator-dali index %s", out, why, out)
    return None


def identity(manifest: Manifest) -> str:
    """What an output is, in 32 digits: another one if it was run again, or has other rows."""
    run = {name: manifest.run.get(name) for name in ("source", "samples", "settings", "lineage")}
    parts = [
        (part.start, part.stop, sorted(part.counts.items()), [tuple(file) for file in part.files])
        for part in manifest.parts()
    ]
    text = json.dumps([run, parts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digests_of(texts: Sequence[str]) -> NDArray[np.uint8]:
    """(N, 16) bytes of digests in hexadecimal.

    Raises:
        ValueError: One is none.
    """
    try:
        return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), 16)
    except ValueError as error:
        odd = next((text for text in texts if len(text) != 32), texts[0])
        raise ValueError(f"{odd!r} is no digest of 32 hexadecimal digits") from error

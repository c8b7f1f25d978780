"""Outputs of made-up rows with planted duplicates: for the tests and for the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import objects
from curator_dali.outputs import Manifest, PartWriter, RowSchema
from curator_dali.similarity import to_hex
from tests.similarity.planted import planted

Rows = dict[str, Any]
"""Column -> (N,) values; "embedding" -> (N, D)."""

HASHES = ("phash", "dhash")


def made_up(old: int, new: int, dim: int, threshold: float, *, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows kept earlier, and new ones: a tenth of these like an old one by bytes, by pixels, by hash, by embedding.

    Hashes of new rows differ in up to 8 bits from an old one's. Some old rows share digests and hashes.
    """
    rng = np.random.default_rng([seed, 7])
    count = old + new
    rows: Rows = {"embedding": planted(count, dim, threshold, topics=max(3, min(1000, count // 100)), seed=seed)}
    order = rng.permutation(count)
    rows["embedding"] = rows["embedding"][order]
    for name in ("content_hash", "pixel_hash"):
        values = rng.integers(0, 256, (count, 16), np.uint8)
        values[old // 2 : old // 2 + old // 50] = values[: old // 50]  # old ones that are alike
        values[_some(rng, old, new)] = values[rng.integers(0, old, new // 10)]
        rows[name] = np.array([value.tobytes().hex() for value in values], object)
    for name in ("phash", "dhash"):
        hashes = rng.integers(0, 2**64, count, np.uint64)
        hashes[: old // 50] = 0  # blank images
        near = hashes[rng.integers(0, old, new // 10)]
        for bits in range(8):
            some = slice((bits + 1) * len(near) // 9, None)
            near[some] ^= np.uint64(1) << rng.integers(0, 64, len(near[some])).astype(np.uint64)
        hashes[_some(rng, old, new)] = near
        rows[name] = hashes
    return {name: values[:old] for name, values in rows.items()}, {name: values[old:] for name, values in rows.items()}


def _some(rng: np.random.Generator, old: int, new: int) -> NDArray[np.int64]:
    return old + rng.choice(new, new // 10, replace=False)


def write_output(
    folder: Path | str,
    rows: Rows,
    *,
    dtype: str = "float32",
    status: Sequence[str] | None = None,
    embedded: NDArray[np.bool_] | None = None,
    part: int = 50_000,
    upto: int | None = None,
    older: bool = False,
) -> None:
    """Write rows as a curation would: a manifest, and Parquet files of `part` rows.

    Args:
        folder: Where; a second call goes on.
        rows: What there is of them.
        dtype: Of the embeddings.
        status: Of each row; "kept" by default.
        embedded: Which rows have an embedding; by default all.
        part: Rows of a file.
        upto: Rows that are written, of those that there will be.
        older: Whether hashes are integers, as earlier versions stored them.
    """
    count = len(next(iter(rows.values())))
    dim = rows["embedding"].shape[1] if "embedding" in rows else 0
    columns = {name: "uint64" if older and name in HASHES else "string" for name in rows if name != "embedding"}
    if not older:
        rows = {name: objects(to_hex(values)) if name in HASHES else values for name, values in rows.items()}
    schema = RowSchema(columns, embedding_dim=dim, embedding_dtype=dtype)
    with Manifest.open(str(folder), source="made up", samples=count, settings={"stages": []}) as manifest:
        for start, stop in manifest.missing(part):
            if start >= (count if upto is None else upto):
                break
            with PartWriter(manifest, start, stop, schema, tars=False) as writer:
                writer.write(
                    {
                        "image_id": [f"image-{n}" for n in range(start, stop)],
                        "image_path": [f"made/up/{n}.jpg" for n in range(start, stop)],
                        "index": np.arange(start, stop),
                        "status": ["kept"] * (stop - start) if status is None else status[start:stop],
                        **{name: rows[name][start:stop] for name in columns},
                    },
                    embeddings=rows["embedding"][start:stop] if dim else None,
                    embedded=None if embedded is None else embedded[start:stop],
                )

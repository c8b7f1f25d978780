"""Embeddings with planted duplicates: for the tests and for the measurements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def planted(
    count: int, dim: int, threshold: float, *, topics: int = 1000, share: float = 0.1, seed: int = 0
) -> NDArray[np.float32]:
    """(count, dim) float32 of length 1: topics of uneven sizes, and near-duplicates around the threshold behind them.

    The background is Gaussian around the topics' centres, with a spectrum that falls like 1 / sqrt(rank) as those of
    image encoders do, so that its own pairs reach up to the threshold. Of the last `share` of the rows, each is a
    background row moved to a cosine spread evenly from `threshold - 0.04` to `threshold + 0.05` (at most 1), in a
    direction of the same spectrum.
    """
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    spectrum /= np.sqrt((spectrum**2).sum())
    centres = rng.standard_normal((topics, dim), np.float32) * spectrum
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    weights = rng.dirichlet(np.full(topics, 0.5))
    rows = np.empty((count, dim), np.float32)
    background = count - int(share * count)
    for start in range(0, count, 65_536):
        part = rows[start : start + 65_536]
        noise = rng.standard_normal(part.shape, np.float32) * spectrum
        part[:] = centres[rng.choice(topics, len(part), p=weights)] + 0.7 * noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    for start in range(background, count, 65_536):
        part = rows[start : start + 65_536]
        source = rows[rng.integers(0, background, len(part))]
        cosine = rng.uniform(threshold - 0.04, min(1.0, threshold + 0.05), (len(part), 1)).astype(np.float32)
        away = rng.standard_normal(part.shape, np.float32) * spectrum
        away -= (away * source).sum(axis=1, keepdims=True) * source
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        part[:] = cosine * source + np.sqrt(1 - cosine**2) * away
    return rows

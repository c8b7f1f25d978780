"""The nearest images of an image, an embedding or a text, by cosine, on the device where the embeddings are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dali import similarity
from curator_dali.batch import ImageBatch
from curator_dali.importing import import_whole

if TYPE_CHECKING:
    import torch

__all__ = ["nearest", "search", "tensor_of"]


def nearest(batch: ImageBatch, query: Any, k: int = 12) -> ImageBatch:
    """See `ImageBatch.nearest`."""
    import_whole("torch")
    import torch

    embeddings = tensor_of(batch)
    if isinstance(query, str):
        rows = [row for row, item in enumerate(batch.data) if item.image_id == query]
        if not rows:
            raise KeyError(f"no image of the batch has the id {query!r}")
        query = rows[0]
    if isinstance(query, (int, np.integer)):
        if not -len(batch) <= query < len(batch):
            raise IndexError(f"row {query} is not in a batch of {len(batch)} images")
        vector = embeddings[int(query)]
    else:
        vector = torch.as_tensor(query, dtype=torch.float32, device=embeddings.device).reshape(-1)
    bad = similarity.bad_rows(embeddings)  # an image without a direction is near nothing
    good = np.setdiff1d(np.arange(len(batch)), bad)
    there = embeddings if not len(bad) else embeddings[torch.from_numpy(good).to(embeddings.device)]
    rows_of, cosines = similarity.nearest(vector[None], there, k)
    found: ImageBatch = batch[good[rows_of[0]]]
    found.columns["similarity"] = cosines[0]
    return found


def search(batch: ImageBatch, text: str, encoder: Any, k: int = 12) -> ImageBatch:
    """See `ImageBatch.search`."""
    return nearest(batch, encoder.encode_text([text])[0], k)


def tensor_of(batch: ImageBatch) -> torch.Tensor:
    """The embeddings, (N, D) float32, where they are.

    Raises:
        ValueError: There are none.
    """
    if batch.embeddings is None:
        raise ValueError("the batch has no embeddings; a stage Embed makes them")
    tensor: torch.Tensor = batch.to_torch("embeddings")
    return tensor.float()

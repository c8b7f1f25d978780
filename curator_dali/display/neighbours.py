"""The nearest images of an image, an embedding or a text, by cosine, on the device where the embeddings are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dali import arrays
from curator_dali.batch import ImageBatch
from curator_dali.importing import import_whole

if TYPE_CHECKING:
    import torch

__all__ = ["nearest", "search"]


def nearest(batch: ImageBatch, query: Any, k: int = 12) -> ImageBatch:
    """See `ImageBatch.nearest`."""
    import_whole("torch")
    import torch
    from torch.nn import functional as F

    if k < 1:
        raise ValueError(f"k is {k}; give the number of images to find, at least 1")
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
        vector = query if isinstance(query, torch.Tensor) else torch.as_tensor(arrays.to_host(query))
        vector = vector.reshape(-1).to(embeddings)
        if len(vector) != embeddings.shape[1]:
            raise ValueError(f"the query has {len(vector)} numbers, the batch's embeddings {embeddings.shape[1]}")
    with torch.inference_mode():
        cosines = F.normalize(embeddings, dim=1) @ F.normalize(vector, dim=0)
        best = torch.topk(torch.nan_to_num(cosines, nan=-2.0), min(k, len(batch)))
    found = batch[best.indices.cpu().numpy()]
    found.columns["similarity"] = best.values.float().cpu().numpy()
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

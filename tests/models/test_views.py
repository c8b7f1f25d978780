"""From shards to embeddings and scores: one decode, a view for each model, no copy on the way."""

from pathlib import Path

import torch

import curator_dali as cd
from curator_dali import arrays
from curator_dali.models import EfficientNetLite0, OpenNSFW


def test_one_decode_feeds_several_models(shards: list[Path]) -> None:
    encoder, classifier = EfficientNetLite0(device="cpu", batch_size=8), OpenNSFW(device="cpu")
    views = (encoder.view, classifier.view)
    with cd.ImageLoader([str(shard) for shard in shards], device="cpu", batch_size=12, views=views) as loader:
        batch = next(iter(loader))
    pixels = batch.to_torch(encoder.view)
    assert pixels.data_ptr() == arrays.to_torch(batch.views[encoder.view]).data_ptr()
    embeddings, scores = encoder(pixels), classifier(batch.to_torch(classifier.view))
    assert (embeddings.shape, scores.shape) == ((12, 1280), (12,))
    # the shards hold crops of nine photographs in turn: rows 0 to 2 and 9 to 11 are of the same three
    alike = embeddings @ embeddings.T
    nearest = alike.fill_diagonal_(0).argmax(dim=1)
    assert sum(int(nearest[row]) == row + 9 for row in range(3)) >= 2
    # a selection gives what it gave within the whole
    part = batch[3:7]
    assert torch.allclose(encoder(part.to_torch(encoder.view)), embeddings[3:7], atol=1e-5)
    assert torch.allclose(classifier(part.to_torch(classifier.view)), scores[3:7], rtol=1e-4, atol=1e-7)

"""How much of the model's speed a curation keeps: decoding, preprocessing and writing should hide behind it.

    python -m tests.benchmarks.overlap [--images 960] [--rounds 3] [--model efficientnet-lite0 | --sleep 0.12]

In one process, in turn: the model alone on images that are ready in memory, then decode + preprocess + embed + write.
Both with one thread for the model and one for decoding. `--sleep` takes the place of a model with one that waits as
long a batch and needs no CPU, as one on a GPU does: the machine's other processes then disturb less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

import curator_dali as cd
from curator_dali.models import ImageEncoder, load_encoder
from curator_dali.transforms import clip
from tests import helpers


class Waiting(ImageEncoder):
    """A model that is somewhere else."""

    name, dim, view, device = "waiting", 1, clip(224), "cpu"

    def __init__(self, seconds: float) -> None:
        self.seconds, self.lineage = seconds, {"model": self.name}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.ones(len(images), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--sleep", type=float, metavar="SECONDS", help="a batch")
    arguments = parser.parse_args()
    size = arguments.batch_size
    torch.set_num_threads(1)
    encoder = Waiting(arguments.sleep) if arguments.sleep else load_encoder(arguments.model, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CURATOR_DALI_CACHE"] = f"{folder}/cache"
        samples = helpers.photo_samples(helpers.load_photos(), arguments.images)
        helpers.write_shards(Path(folder, "shards"), samples, per_shard=500)
        source = cd.open_source(f"{folder}/shards")
        loading = {"device": "cpu", "batch_size": size, "num_threads": 1}
        with cd.ImageLoader(source, transforms=None, views=(encoder.view,), **loading) as loader:
            ready = [batch.to_torch(encoder.view) for batch in loader]

        def alone() -> float:
            began = time.perf_counter()
            for images in ready:
                encoder(images)
            return time.perf_counter() - began

        alone()
        ratios = []
        for number in range(arguments.rounds):
            before = alone()
            out = f"{folder}/out{number}"
            report = cd.curate(source, out, stages=[cd.Embed(encoder)], embeddings=True, part_size=8 * size, **loading)
            model = (before + alone()) / 2
            ratios.append(model / report.seconds)
            stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.stages.items())
            print(f"model {model:.2f} s, curation {report.seconds:.2f} s: {ratios[-1]:.3f} ({stages})", flush=True)
    print(f"median {statistics.median(ratios):.3f} of the model's speed ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()

"""A small curation of made-up samples, to be killed anywhere: `python -m tests.outputs.part_job FOLDER [LIMIT]`."""

from __future__ import annotations

import resource
import sys
from typing import Any

import numpy as np

from curator_dali.outputs import Manifest, PartWriter, RowSchema

SAMPLES, PART, BATCH = 240, 24, 8
SCHEMA = RowSchema({"score": "float32"}, embedding_dim=16)


def image(number: int) -> bytes:
    return number.to_bytes(4, "little") * (50 + number * 7)


def rows(start: int, stop: int) -> dict[str, Any]:
    """Write samples [start, stop): a third dropped, some failed."""
    numbers = np.arange(start, stop)
    statuses = ["failed" if n % 10 == 9 else "dropped" if n % 3 == 0 else "kept" for n in numbers]
    kept = [status == "kept" for status in statuses]
    return {
        "rows": {
            "image_id": [f"{n:06d}" for n in numbers],
            "image_path": [f"/data/{n}.jpg" for n in numbers],
            "index": numbers,
            "status": statuses,
            "stage": [None if ok else "score" for ok in kept],
            "score": numbers / 10,
        },
        "embeddings": np.repeat(numbers[:, None], 16, 1).astype(np.float32),
        "embedded": np.array([status != "failed" for status in statuses]),
        "members": [
            {"jpg": image(int(n)), "txt": b"a caption"} if ok else None for n, ok in zip(numbers, kept, strict=True)
        ],
        "curation": [{"score": n / 10} for n in numbers],
    }


def run(folder: str, samples: int = SAMPLES) -> None:
    """Do what is missing."""
    with Manifest.open(folder, source="made-up", samples=samples, settings={"part": PART}) as manifest:
        for start, stop in manifest.missing(PART):
            with PartWriter(manifest, start, stop, SCHEMA, shard_samples=7) as part:
                for at in range(start, stop, BATCH):
                    part.write(**rows(at, min(stop, at + BATCH)))
        assert manifest.verify() == []


if __name__ == "__main__":
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    run(sys.argv[1])

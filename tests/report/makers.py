"""Outputs of every sort to make reports of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch.batch import ImageBatch
from curator_dali.curation import curate
from curator_dali.report.report import Report
from curator_dali.sources import MemorySource
from curator_dali.stages import Deduplicate, Filter, Quality, Selector
from tests.helpers import crops, encode
from tests.view.conftest import EVIL


@dataclass(frozen=True)
class Every(Selector):
    """Drops everything, for a hundred reasons."""

    many: int = 100

    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        indices = [int(item.image_id) for item in batch.data]
        return np.array([f"reason number {index % self.many}: {EVIL}" for index in indices], object)


def jpegs(photos: Mapping[str, NDArray[np.uint8]], count: int) -> list[bytes]:
    return [encode(np.ascontiguousarray(pixels)) for _, pixels in crops(photos, count, seed=5)]


def hostile(photos: Mapping[str, NDArray[np.uint8]], out: Path) -> tuple[Report, MemorySource]:
    """Markup in every id and caption; kept, dropped, failed and duplicate images."""
    made = jpegs(photos, 20)
    images: dict[str, bytes] = {f"{n} {EVIL}": data for n, data in enumerate(made)}
    images |= {f"copy {n} {EVIL}": data for n, data in enumerate(made[:3])}
    images |= {f"broken {EVIL}": made[0][:500], f"page {EVIL}": f"<script>{EVIL}".encode()}
    source = MemorySource(images, {key: {"caption": EVIL} for key in images}, name=EVIL)
    stages = [Quality(), Filter("sharpness", min=100), Deduplicate(exact="bytes", keep="first")]
    return curate(source, out, stages=stages, device="cpu", batch_size=8), source


def plain(source: Any, out: Path, **more: Any) -> Report:
    """Filters that drop some of the test photographs' crops."""
    stages = [Quality(), Filter("sharpness", min=300), Filter("brightness", max=0.6)]
    return curate(source, out, stages=stages, device="cpu", batch_size=16, **more)

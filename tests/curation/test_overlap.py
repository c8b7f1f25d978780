"""Decoding, the stages and writing run at the same time, and in bounded memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import curator_dali as cd
from curator_dali.batch.batch import ImageBatch
from curator_dali.outputs import PartWriter
from curator_dali.sources import EncodedBatch, Subset, open_source
from tests.curation.helpers import Spy

BATCH = 6


class Watched(Subset):
    """A source that says when samples are read."""

    def __init__(self, source: cd.Source) -> None:
        super().__init__(source, slice(None))
        self.last = -1
        self.moved = threading.Condition()

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        batch = super().read(indices, members=members)
        with self.moved:
            self.last = max(self.last, int(indices[-1]))
            self.moved.notify_all()
        return batch


def test_the_next_batches_are_read_while_a_stage_works_also_across_parts(shards: list[Path], tmp_path: Path) -> None:
    source = Watched(open_source(list(map(str, shards))))
    seen: list[int] = []

    def work(batch: ImageBatch) -> None:
        first = int(batch.columns["index"][0])
        seen.append(first)
        wanted = (
            min(first + 2 * BATCH, len(source)) - 1
        )  # the end of the batch after this one, which is of another part
        with source.moved:
            assert source.moved.wait_for(lambda: source.last >= wanted, timeout=30)

    options: dict[str, Any] = {"device": "cpu", "batch_size": BATCH, "part_size": BATCH}
    report = cd.curate(source, tmp_path / "out", stages=[Spy(work)], **options)
    assert seen == list(range(0, 60, BATCH))
    assert report.parts == 10


def test_a_batch_is_written_while_the_next_one_is_in_a_stage(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Semaphore(0)
    original = PartWriter.write

    def write(self: PartWriter, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        written.release()

    monkeypatch.setattr(PartWriter, "write", write)

    def work(batch: ImageBatch) -> None:
        if batch.columns["index"][0]:
            assert written.acquire(timeout=30)  # of the batch before: it waits for nobody

    cd.curate(str(shards[0]), tmp_path / "out", stages=[Spy(work)], device="cpu", batch_size=BATCH)


def test_a_slow_writer_holds_the_stages_back(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, count, most = threading.Event(), [0], [0]
    original = PartWriter.write

    def write(self: PartWriter, *arguments: Any, **named: Any) -> None:
        assert go.wait(30)
        original(self, *arguments, **named)

    monkeypatch.setattr(PartWriter, "write", write)

    def work(batch: ImageBatch) -> None:
        count[0] += 1
        most[0] = count[0]
        if count[0] == 1:
            threading.Timer(0.7, go.set).start()
        elif not go.is_set():
            most[0] = count[0]

    ahead: list[int] = []

    def watch(done: int) -> None:
        if not go.is_set():
            ahead.append(done)

    cd.curate(list(map(str, shards)), tmp_path / "out", stages=[Spy(work)], device="cpu", batch_size=2, progress=watch)
    assert len(ahead) <= 6  # of 30 batches: the queue's four, one with the writer
    assert count[0] == 30

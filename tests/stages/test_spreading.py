"""Semantic pairs found by many: those that one process finds, whatever the embeddings are."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curator_dali.curation.decide import Candidates, Workroom
from curator_dali.outputs import RowFiles
from curator_dali.similarity import Pairs, bad_rows, similar_pairs
from curator_dali.stages import Deduplicate
from curator_dali.stages.distributed import SpreadEmbeddings
from tests.curation.helpers import write_embedded
from tests.similarity.planted import planted


class Elsewhere:
    """A mapper whose functions, items and results travel, as between machines."""

    device = "cpu"

    def __init__(self) -> None:
        self.names: list[str] = []

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        self.names.append(getattr(function, "func", function).__name__)
        sent = pickle.dumps(function)
        for item in items:
            yield pickle.loads(pickle.dumps(pickle.loads(sent)(pickle.loads(pickle.dumps(item)))))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A sum's last bit depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def crowded() -> NDArray[np.float32]:
    """40,000 x 32; a third of them around one topic, a hundred equal rows, and a few of no use."""
    rows = planted(40_000, 32, 0.97, topics=4000, seed=3)
    rows[5000:18_000] = planted(13_000, 32, 0.97, topics=1, seed=4)
    rows[30_000:30_100] = rows[100:200]
    rows[[7, 9000, 39_999]] = [[np.nan], [0.0], [np.inf]]
    return rows


def everywhere() -> NDArray[np.float32]:
    """In all directions alike, so that clusters are of no use at a low cosine."""
    return np.random.default_rng(6).standard_normal((32_000, 64), np.float32)


def both(rows: NDArray[np.float32], threshold: float, tmp_path: Path) -> tuple[Pairs, Pairs, Elsewhere]:
    """The pairs of one process, and those of many."""
    write_embedded(tmp_path / "out", rows, part_size=9000)
    good = np.delete(np.arange(len(rows)), bad_rows(rows))
    mapper = Elsewhere()
    room = Workroom(mapper, str(tmp_path / "work"))
    spread = Candidates(RowFiles(str(tmp_path / "out")), np.arange(len(rows)), {}, room).spread
    assert spread is not None
    shared = SpreadEmbeddings(spread, len(rows), at_once=1 << 20)  # several blocks
    assert (shared.good == good).all()
    found = shared.similar_pairs(good, threshold, "cpu")
    return similar_pairs(rows[good], threshold), found, mapper


@pytest.mark.parametrize(
    ("make", "threshold", "by"), [(crowded, 0.97, "_pairs_of_group"), (everywhere, 0.55, "_pairs_of_tile")]
)
def test_the_pairs_are_those_of_one_process(
    make: Callable[[], NDArray[np.float32]], threshold: float, by: str, tmp_path: Path
) -> None:
    one, many, mapper = both(make(), threshold, tmp_path)
    assert mapper.names[-1] == by
    assert len(one) > 500
    for name in ("first", "second", "value", "same"):
        assert np.array_equal(getattr(one, name), getattr(many, name)), name
    assert not list((tmp_path / "work").glob("*"))


def test_few_different_rows_are_compared_here(tmp_path: Path) -> None:
    rows = np.repeat(planted(2000, 16, 0.95, topics=50, seed=1), 20, axis=0)
    one, many, mapper = both(rows, 0.95, tmp_path)
    assert mapper.names == ["_digest_block", "_read"]
    assert len(one) > 50
    assert all(np.array_equal(getattr(one, name), getattr(many, name)) for name in ("first", "second", "value", "same"))


def test_some_images_of_an_output(tmp_path: Path) -> None:
    """Rows that an earlier stage dropped are not looked at, wherever they are in the files."""
    rows = planted(41_000, 16, 0.95, topics=4000, seed=2)
    write_embedded(tmp_path / "out", rows, part_size=7000)
    judged = np.flatnonzero(np.random.default_rng(0).random(len(rows)) < 0.8)
    decided = []
    for room in (None, Workroom(Elsewhere(), str(tmp_path / "work"))):
        seen = Candidates(RowFiles(str(tmp_path / "out")), judged, {}, room)
        decided.append(Deduplicate(False, similarity=0.95, keep="first").decide(seen))
    (reasons, columns), (others, other_columns) = decided
    assert reasons.tolist() == others.tolist()
    assert sum(reason is not None for reason in reasons) > 500
    assert all(columns[name].tolist() == other_columns[name].tolist() for name in columns)

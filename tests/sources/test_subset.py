"""`Subset`: some samples of a source are a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import curator_dali as cd
from curator_dali.sources import MemorySource, Subset, TarSource, open_source

WHOLE = MemorySource([bytes([n]) * 9 for n in range(20)])
slices = st.builds(slice, *[st.one_of(st.none(), st.integers(-25, 25))] * 2, st.sampled_from([None, 1, 2, 3, -1, -2]))


@given(st.one_of(slices, st.lists(st.integers(0, 19), max_size=30)))
def test_its_samples_are_those_chosen(rows: slice | list[int]) -> None:
    subset = Subset(WHOLE, rows)
    chosen = list(range(20))[rows] if isinstance(rows, slice) else rows
    assert len(subset) == len(chosen) == subset.shard_sizes.sum()
    indices = np.arange(len(chosen))[::-1]
    batch = subset.read(indices, members=True)
    assert batch.indices.tolist() == indices.tolist()
    assert [item.image_id for item in batch.objects] == [str(n) for n in chosen[::-1]]
    assert [image[0] for image in batch.images] == chosen[::-1]


@given(st.one_of(slices, st.lists(st.integers(0, 59), max_size=80)))
def test_shards_are_runs_of_the_wholes(tars: TarSource, rows: slice | list[int]) -> None:
    subset = Subset(tars, rows)
    sizes = subset.shard_sizes
    assert sizes.sum() == len(subset)
    assert len(subset) == 0 or sizes.min() > 0
    chosen = np.arange(60)[rows] if isinstance(rows, slice) else np.array(rows, int)
    for run in np.split(chosen // 20, np.cumsum(sizes)[:-1]):
        assert len(set(run.tolist())) <= 1


@pytest.fixture(scope="module")
def tars(shards: list[Path]) -> TarSource:
    source = open_source(list(map(str, shards)))
    assert isinstance(source, TarSource)
    return source


def test_headers_are_learnt_for_the_whole(shards: list[Path]) -> None:
    whole = open_source(list(map(str, shards)))
    subset = Subset(whole, slice(25, 35))
    assert subset.image_sizes(np.arange(10)).tolist() == whole.image_sizes(np.arange(25, 35)).tolist()
    with cd.ImageLoader(subset, device="cpu", batch_size=4) as loader:
        ids = [item.image_id for batch in loader for item in batch.data]
    assert ids == [f"{n:06d}" for n in range(25, 35)]
    assert (whole.headers(np.arange(25, 35))["codec"] != 0).all()
    assert (subset.headers(np.arange(10)) == whole.headers(np.arange(25, 35))).all()


def test_fingerprints_tell_subsets_apart() -> None:
    prints = {Subset(WHOLE, rows).fingerprint for rows in (slice(3), slice(4), slice(None), [0, 1, 2], [2, 1, 0])}
    assert len(prints) == 5
    assert Subset(WHOLE, slice(3)).fingerprint == Subset(WHOLE, slice(0, 3)).fingerprint


def test_outside_of_the_source() -> None:
    for rows in ([20], [-1]):
        with pytest.raises(IndexError, match=r"must be in \[0, 20\)"):
            Subset(WHOLE, rows)
    with pytest.raises(IndexError, match=r"must be in \[0, 3\)"):
        Subset(WHOLE, slice(3)).read(np.array([3]))


def test_a_mask_chooses_as_indices_do() -> None:
    source = MemorySource([b"a", b"b", b"c"])
    mask = np.array([False, True, True])
    for rows in (mask, mask.tolist(), [1, 2], iter([1, 2]), {1, 2}, np.array([1, 2], np.uint8), torch.tensor(mask)):
        subset = Subset(source, rows)
        assert [item.image_id for item in subset.read(np.arange(len(subset))).objects] == ["1", "2"]
    with pytest.raises(IndexError, match="rows are 2 booleans for 3 samples"):
        Subset(source, [True, False])
    assert len(Subset(source, [])) == 0

"""The fast product misses nothing: its error stays within what is allowed for, in every dtype it may run in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.similarity import cosine, similar_pairs
from curator_dali.similarity.cosine import _slack, candidates, operand
from tests.similarity.planted import planted


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """What the product runs in, whatever this machine would choose."""
    chosen: torch.dtype = request.param
    monkeypatch.setattr(cosine, "_fast_dtype", lambda device: chosen)
    return chosen


def test_rows_that_round_worst_are_found(dtype: torch.dtype) -> None:
    """Every product is rounded down by the most that is possible, so that the errors add up instead of cancelling."""
    for count, entry in [(63, 0.125), (252, 0.0625), (1014, 2**-5), (3, 0.5)]:
        row = torch.full((count + 1,), entry * (1 + 2**-8 - 2**-20), dtype=torch.float64)
        row[-1] = (1 - (row[:-1] ** 2).sum()).clamp_min(0) ** 0.5
        unit = row.to(torch.float32).repeat(2, 1)
        assert abs(float(row.norm()) - 1) < 2**-6
        if dtype == torch.bfloat16 and count > 3:
            fast = operand(unit).matrix[:2].to(torch.float64)
            assert (fast @ fast.T).min() < 1 - 0.9 * 2**-7  # nearly the worst there is
        i, j = candidates(operand(unit), operand(unit), 1.0)
        assert len(i) == len(j) == 4
    for dim in range(1, 300):
        unit = torch.full((2, dim), dim**-0.5, dtype=torch.float64).to(torch.float32)
        i, j = candidates(operand(unit), operand(unit), 1.0)
        assert len(i) == len(j) == 4, dim


@given(st.integers(0, 2**32), st.integers(1, 600), st.floats(0.05, 1.0))
@settings(max_examples=40, deadline=None)
def test_the_error_stays_within_the_slack(seed: int, dim: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    rows = 1 + spread * rng.standard_normal((150, dim))
    unit = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    exact = unit @ unit.T
    for dtype in (torch.bfloat16, torch.float32):
        fast = unit.to(torch.float32).to(dtype)
        error = (fast @ fast.T).to(torch.float64) - exact
        assert error.abs().max() < _slack(dtype, "cpu", dim)


def test_few_are_looked_at_that_are_not_alike(dtype: torch.dtype) -> None:
    rows = torch.from_numpy(planted(1000, 256, 0.95, topics=50))
    i, _ = candidates(operand(rows), operand(rows), 0.95)
    true = int(((rows @ rows.T) >= 0.95).sum())
    assert true <= len(i) < 1.5 * true


@pytest.mark.parametrize("count", [1, 127, 128, 129, 2049])
def test_rows_added_for_the_shape_are_never_found(dtype: torch.dtype, count: int) -> None:
    unit = torch.nn.functional.normalize(torch.from_numpy(planted(2100, 16, 0.95, topics=3)))[:count]
    for threshold in (0.001, 0.9):  # a threshold below the slack lets zeros pass
        i, j = candidates(operand(unit), operand(unit[: count // 2 + 1]), threshold)
        assert i.max() < count
        assert j.max() < count // 2 + 1


def test_pairs_are_the_same_in_every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted(2500, 128, 0.95, topics=30, share=0.3)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(cosine, "_fast_dtype", lambda device, dtype=dtype: dtype)
        found.append(similar_pairs(rows, 0.95))
    assert len(found[0]) > 300
    for name in ("first", "second", "value"):
        assert (getattr(found[0], name) == getattr(found[1], name)).all()

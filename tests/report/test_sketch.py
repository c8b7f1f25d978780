"""Histograms of values in blocks: every value counts once, whatever the order, the range and the bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.report.scan import Sketch

VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
BOUND = st.none() | st.floats(-1e6, 1e6)


def sketch(*blocks: object) -> Sketch:
    made = Sketch()
    for block in blocks:
        made.add(np.asarray(block, np.float64))
    return made


@given(VALUES, BOUND, BOUND)
def test_every_value_counts_once(values: list[float], low: float | None, high: float | None) -> None:
    drawn = sketch(values).histogram((low, high))
    assert drawn is not None
    assert sum(drawn.counts) == drawn.total == len(values)
    assert len(drawn.edges) == len(drawn.counts) + 1
    assert len(drawn.counts) < 1000
    assert all(np.diff(drawn.edges) > 0)


@given(VALUES, st.integers(0, 60), st.randoms())
def test_neither_order_nor_blocks_matter(values: list[float], cut: int, random: object) -> None:
    other = list(values)
    random.shuffle(other)  # type: ignore[attr-defined]
    assert sketch(values).histogram() == sketch(other[:cut], other[cut:]).histogram()


def test_counts_are_numpys_where_no_value_lies_at_an_edge() -> None:
    values = np.random.default_rng(0).normal(50, 10, 20_000).astype(np.float32)
    drawn = sketch(values).histogram()
    assert drawn is not None
    inside = values[(values >= drawn.edges[0]) & (values < drawn.edges[-1])]
    expected = np.histogram(inside, drawn.edges)[0]
    expected[0] += drawn.below
    expected[-1] += drawn.above
    assert np.abs(expected - drawn.counts).sum() < 0.02 * len(values)  # bins of 0.1%


@pytest.mark.parametrize("bound", [100.0, 0.2, 5.0, 37.5])
def test_a_bar_begins_at_the_bound_and_no_value_is_on_its_wrong_side(bound: float) -> None:
    values = np.random.default_rng(0).uniform(0, 2 * bound, 5000)
    drawn = sketch(values).histogram((bound, None))
    assert drawn is not None
    at = next(n for n, edge in enumerate(drawn.edges) if edge == pytest.approx(bound))
    wrong = abs(sum(drawn.counts[:at]) - int((values < bound).sum()))
    assert wrong <= 0.002 * len(values)


def test_far_outliers_do_not_take_the_axis() -> None:
    drawn = sketch(np.append(np.random.default_rng(0).uniform(0, 1, 10_000), [1e12, -1e12, -2e12])).histogram()
    assert drawn is not None
    assert (drawn.below, drawn.above, drawn.total) == (2, 1, 10_003)
    assert -0.5 < drawn.edges[0] <= 0 < 1 <= drawn.edges[-1] < 1.5


def test_bounds_are_on_the_axis_unless_they_are_far_away() -> None:
    values = np.linspace(0, 0.2, 100)
    near, far = (sketch(values).histogram((None, bound)) for bound in (0.5, 1e6))
    assert near is not None
    assert far is not None
    assert near.edges[0] <= 0
    assert near.edges[-1] >= 0.5
    assert far.edges[-1] < 1


@pytest.mark.parametrize("value", [0.0, -0.0, 7.0, -3.5, 1e-30, 1e300])
def test_one_value(value: float) -> None:
    drawn = sketch([value, value]).histogram()
    assert drawn is not None
    assert sum(drawn.counts) == max(drawn.counts) == 2


def test_nothing_and_what_is_no_number() -> None:
    assert sketch().histogram() is None
    made = sketch([np.nan, np.inf, -np.inf])
    assert (made.histogram(), made.infinite, len(made)) == (None, 2, 0)

"""Histograms of values in blocks: every value counts once, whatever the order, the range and the bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.report.scan import Histogram, Threshold, _lay_out_histograms

VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
BOUND = st.none() | st.floats(-1e6, 1e6)


def draw(*blocks: object, bounds: Threshold = (None, None), rows: int = 1_000_000) -> Histogram | None:
    """The histogram of a score, of an output whose values come in blocks."""
    values = [pa.array(np.asarray(block, np.float64), from_pandas=True) for block in blocks]
    files = Files([pa.RecordBatch.from_pydict({"index": np.arange(len(one)), "score": one}) for one in values])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curator_dali.report.scan._QUANTILE_ROWS", rows)
        total = sum(map(len, values))
        made = _lay_out_histograms(files, total, ["score"], {"score": bounds}).get("score")  # type: ignore[arg-type]
    for one in values if made else ():
        made.add(one.to_numpy(zero_copy_only=False))  # type: ignore[union-attr]
    return made


@dataclass
class Files:
    """Rows in memory."""

    blocks: list[pa.RecordBatch]

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        return (block.select(names) for block in self.blocks)


@given(VALUES, BOUND, BOUND)
def test_every_value_counts_once(values: list[float], low: float | None, high: float | None) -> None:
    drawn = draw(values, bounds=(low, high))
    assert drawn is not None
    assert drawn.counts.sum() == drawn.total == len(values)
    assert len(drawn.edges) == len(drawn.counts) + 1
    assert len(drawn.counts) < 1000
    assert all(np.diff(drawn.edges) > 0)


@given(VALUES, st.integers(0, 60), st.randoms())
def test_neither_order_nor_blocks_matter(values: list[float], cut: int, random: object) -> None:
    other = list(values)
    random.shuffle(other)  # type: ignore[attr-defined]
    one, two = draw(values), draw(other[:cut], other[cut:])
    assert one is not None
    assert two is not None
    assert (one.edges, one.counts.tolist()) == (two.edges, two.counts.tolist())


def test_counts_are_numpys_where_no_value_lies_at_an_edge() -> None:
    values = np.random.default_rng(0).normal(50, 10, 20_000).astype(np.float32)
    drawn = draw(values)
    assert drawn is not None
    inside = values[(values >= drawn.edges[0]) & (values < drawn.edges[-1])]
    expected = np.histogram(inside, drawn.edges)[0]
    expected[0] += drawn.below
    expected[-1] += drawn.above
    assert expected.tolist() == drawn.counts.tolist()


@pytest.mark.parametrize("bound", [100.0, 0.2, 5.0, 37.5])
def test_a_bar_begins_at_the_bound_and_no_value_is_on_its_wrong_side(bound: float) -> None:
    values = np.random.default_rng(0).uniform(0, 2 * bound, 5000)
    drawn = draw(values, bounds=(bound, None))
    assert drawn is not None
    at = next(n for n, edge in enumerate(drawn.edges) if edge == pytest.approx(bound))
    assert drawn.counts[:at].sum() == (values < bound).sum()


def test_far_outliers_do_not_take_the_axis() -> None:
    drawn = draw(np.append(np.random.default_rng(0).uniform(0, 1, 10_000), [1e12, -1e12, -2e12]))
    assert drawn is not None
    assert (drawn.below, drawn.above, drawn.total) == (2, 1, 10_003)
    assert -0.5 < drawn.edges[0] <= 0 < 1 <= drawn.edges[-1] < 1.5


def test_bounds_are_on_the_axis_unless_they_are_far_away() -> None:
    values = np.linspace(0, 0.2, 100)
    near, far = (draw(values, bounds=(None, bound)) for bound in (0.5, 1e6))
    assert near is not None
    assert far is not None
    assert near.edges[0] <= 0
    assert near.edges[-1] >= 0.5
    assert far.edges[-1] < 1


@pytest.mark.parametrize("value", [0.0, -0.0, 7.0, -3.5, 1e-30, 1e300])
def test_one_value(value: float) -> None:
    drawn = draw([value, value])
    assert drawn is not None
    assert drawn.counts.sum() == drawn.counts.max() == 2


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_values_of_any_size_have_bars(values: list[float]) -> None:
    drawn = draw(values)
    assert drawn is not None
    assert drawn.total == len(values)


def test_nearly_equal_values_are_one_bar() -> None:
    drawn = draw(0.5 + np.random.default_rng(0).uniform(0, 1e-6, 100))
    assert drawn is not None
    assert drawn.counts.max() == 100
    assert 0.04 < drawn.edges[-1] - drawn.edges[0] < 0.06


def test_the_range_of_many_values_is_found_in_a_sample() -> None:
    values = np.append(np.random.default_rng(0).normal(50, 10, 200_000), [1e9, -1e9])
    whole, some = draw(values), draw(values, rows=20_000)
    assert whole is not None
    assert some is not None
    assert some.edges[1] - some.edges[0] == whole.edges[1] - whole.edges[0]
    assert abs(np.subtract(some.edges, whole.edges[: len(some.edges)])).max() < 3
    assert some.total == 200_002
    rare = draw([np.nan] * 100_000, [3.0, 4.0], rows=1)
    assert rare is not None
    assert rare.total == 2


def test_whole_numbers_beyond_the_floats_have_bars() -> None:
    drawn = draw(np.array([2**60, 2**60 + 1, 2**62, 2**63 - 1], np.int64))
    assert drawn is not None
    assert drawn.total == 4


def test_nothing_and_what_is_no_number() -> None:
    assert draw() is None
    assert draw([np.nan, np.inf, -np.inf]) is None
    drawn = draw([np.nan, np.inf, -np.inf, 1.0])
    assert drawn is not None
    assert (drawn.infinite, drawn.total) == (2, 1)

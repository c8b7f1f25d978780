"""`Filter`: who stays, and the reason of everybody else."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject
from curator_dali.errors import StageError
from curator_dali.stages import Filter


def batch(**columns: Any) -> ImageBatch:
    n = len(next(iter(columns.values())))
    return ImageBatch(data=[ImageObject(str(i), str(i)) for i in range(n)], columns=columns)


def is_even(values: np.ndarray) -> np.ndarray:
    return values % 2 == 0


@given(
    st.lists(st.floats(width=32), max_size=30),
    st.one_of(st.none(), st.floats(-10, 10, width=32)),
    st.one_of(st.none(), st.floats(-10, 10, width=32)),
    st.sampled_from(["drop", "keep"]),
)
def test_limits_keep_what_lies_between_and_name_what_does_not(
    values: list[float], low: float | None, high: float | None, missing: Any
) -> None:
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return
    stage = Filter("score", min=low, max=high, missing=missing)
    scores = np.array(values, np.float32)
    reasons = stage.judge(batch(score=scores))
    kept = stage(batch(score=scores))
    for value, reason in zip(scores.tolist(), reasons, strict=True):
        if value != value:
            assert (reason is None) == (missing == "keep")
            assert reason in (None, "score is missing")
            continue
        wanted = (low is None or value >= low) and (high is None or value <= high)
        assert (reason is None) == wanted
        if not wanted:
            told, sign, limit = re.fullmatch(r"score (\S+) ([<>]) (\S+)", reason).groups()
            assert float(told) == pytest.approx(value, rel=1e-5)
            assert (float(told) < float(limit)) if sign == "<" else (float(told) > float(limit))  # true as it is told
            assert stage.kind(reason) == reason.kind == f"score {sign} {limit}"
    assert [item.image_id for item in kept.data] == [str(i) for i, reason in enumerate(reasons) if reason is None]


def test_a_value_next_to_its_limit_is_told_apart_from_it() -> None:
    below = np.nextafter(np.float32(5), np.float32(0))
    (reason,) = Filter("score", min=5.0).judge(batch(score=np.array([below])))
    assert reason == "score 4.999999523162842 < 5.0"


def test_limits_include_themselves_in_the_columns_own_precision() -> None:
    scores = np.array([0.3, 0.7], np.float32)  # neither is its float64 namesake
    assert list(Filter("score", min=0.3, max=0.7).judge(batch(score=scores))) == [None, None]
    assert list(Filter("score", equals=0.3).judge(batch(score=scores))) == [None, "score 0.7 is not 0.3"]


def test_equals_takes_one_value_or_several() -> None:
    tags = np.array(["cat", "dog", None, "cow"], object)
    one = Filter("tag", equals="cat")
    assert list(one.judge(batch(tag=tags))) == [
        None,
        "tag 'dog' is not 'cat'",
        "tag is missing",
        "tag 'cow' is not 'cat'",
    ]
    assert one.judge(batch(tag=tags))[1].kind == "tag is not 'cat'"
    several = Filter("tag", equals=["cat", "dog"])
    assert [reason is None for reason in several.judge(batch(tag=tags))] == [True, True, False, False]
    flags = np.array([True, False])
    assert [reason is None for reason in Filter("flag", equals=True).judge(batch(flag=flags))] == [True, False]


def test_where_gets_the_values_that_are_there() -> None:
    numbers = np.array([1, 2, 3, 4])
    stage = Filter("number", where=is_even)
    assert list(stage.judge(batch(number=numbers))) == [
        "number 1 fails is_even()", None, "number 3 fails is_even()", None
    ]  # fmt: skip
    assert stage.judge(batch(number=numbers))[0].kind == "number fails is_even()"
    with pytest.raises(StageError, match="must give 4 booleans"):
        Filter("number", where=lambda values: values).judge(batch(number=numbers))
    with pytest.raises(StageError, match="must give 4 booleans"):
        Filter("number", where=lambda values: True).judge(batch(number=numbers))


def test_the_first_condition_that_fails_is_the_reason() -> None:
    stage = Filter("number", min=2, where=is_even)
    assert list(stage.judge(batch(number=np.array([1, 3])))) == ["number 1 < 2", "number 3 fails is_even()"]


def test_fields_of_the_metadata() -> None:
    data = [ImageObject(str(i), str(i), {"likes": likes}) for i, likes in enumerate([3, None, 9])]
    assert list(Filter("likes", min=5).judge(ImageBatch(data=data))) == ["likes 3 < 5", "likes is missing", None]
    with pytest.raises(StageError, match=r"compares with a number.*'many'"):
        Filter("likes", min=5).judge(ImageBatch(data=[ImageObject("a", "a", {"likes": "many"})]))
    with pytest.raises(KeyError, match="no image has a field 'hates'"):
        Filter("hates", min=5).judge(ImageBatch(data=data))


def test_missing_values_are_kept_where_that_is_asked_for() -> None:
    columns = {"score": np.array([np.nan, 0.5, np.nan], np.float32)}
    data = [ImageObject(str(i), str(i), {"score": score}) for i, score in enumerate([None, 0.5, "many"])]
    reasons = Filter("score", min=1, missing="keep").judge(ImageBatch(data=data, columns=columns))
    assert list(reasons) == [None, "score 0.5 < 1", None]
    stage = Filter("score", min=1)
    reasons = stage.judge(ImageBatch(data=data, columns=columns))
    assert reasons[0] == "score is missing"
    assert reasons[2] == "score is 'many', not a number"
    assert [stage.kind(reason) for reason in reasons[[0, 2]]] == ["score is missing", "score is not a number"]


def test_an_empty_batch_stays_empty() -> None:
    assert len(Filter("score", min=1)(batch(score=np.zeros(0, np.float32)))) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "has no condition"),
        ({"min": 3, "max": 2}, "keeps nothing: min=3 is above max=2"),
        ({"min": "5"}, "allowed: a number"),
        ({"max": float("nan")}, "allowed: a number"),
        ({"where": "even"}, "allowed: a function"),
        ({"min": 1, "missing": "ignore"}, 'allowed: "drop", "keep"'),
    ],
)
def test_settings_that_cannot_be_meant(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        Filter("score", **arguments)

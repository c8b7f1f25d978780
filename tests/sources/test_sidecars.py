"""Values that JSON does not have go into a sidecar as other tools expect them, and come out equal."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.sources.sidecars import SIDECARS, dump_fields, is_same, make_sidecars, parse_metadata, restore_types

BERLIN = ZoneInfo("Europe/Berlin")
SPELT: list[tuple[Any, Any, str]] = [
    (dt.datetime(2024, 2, 29, 12, 30, 0, 7), "2024-02-29T12:30:00.000007", "datetime"),
    (dt.datetime(2024, 2, 29, tzinfo=dt.timezone.utc), "2024-02-29T00:00:00+00:00", "datetime"),
    (dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN), "2024-10-27T02:30:00+02:00", "datetime[Europe/Berlin]"),
    (dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1), "2024-10-27T02:30:00+01:00", "datetime[Europe/Berlin]"),
    (dt.datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN), "2024-03-31T02:30:00+01:00", "datetime[Europe/Berlin]"),
    (dt.date(1, 1, 1), "0001-01-01", "date"),
    (dt.time(23, 59, 59, 999999), "23:59:59.999999", "time"),
    (dt.timedelta(days=-1, seconds=5, microseconds=3), "-1 day, 0:00:05.000003", "timedelta"),
    (Decimal("1.10"), "1.10", "decimal"),
    (Decimal("NaN"), "NaN", "decimal"),
    (b"\xff\x00", "/wA=", "bytes"),
    (b"", "", "bytes"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005", "uuid"),
    (math.nan, None, "nan"),
    (-math.inf, None, "-inf"),
    ((1, "a"), [1, "a"], "tuple"),
    (pd.Timestamp(1, unit="ns"), "1970-01-01T00:00:00.000000001", "pandas.Timestamp"),
    (pd.Timestamp("NaT"), "NaT", "pandas.Timestamp"),
    (pd.Timedelta(3, unit="ns"), "P0DT0H0M0.000000003S", "pandas.Timedelta"),
    (np.datetime64(1, "ns"), 1, "numpy.datetime64[ns]"),
    (np.datetime64("2024-05-01"), "2024-05-01", "numpy.datetime64[D]"),
    (np.timedelta64(5, "s"), "0:00:05", "numpy.timedelta64[s]"),
    (1 << 20_000, hex(1 << 20_000), "int"),
]  # fmt: skip


def parse(sidecars: dict[str, bytes]) -> dict[str, Any]:
    return parse_metadata(*(sidecars.get(name) for name in SIDECARS))


@pytest.mark.parametrize(("value", "spelt", "kind"), SPELT, ids=[kind for _, _, kind in SPELT])
def test_a_value_is_spelt_as_ever_and_read_back_equal(value: Any, spelt: Any, kind: str) -> None:
    made = make_sidecars({"x": value, "in~/": {"": [0, value]}})
    pointers = {"/x": kind, "/in~0~1//1": kind}
    assert json.loads(made["json"]) == {"x": spelt, "in~/": {"": [0, spelt]}, "__types__": pointers}
    found = parse(made)
    assert is_same(found, {"x": value, "in~/": {"": [0, value]}})
    assert type(found["x"]) is type(value)


def test_a_sidecar_of_values_that_json_has_is_as_ever() -> None:
    fields = {"a": [1, 2.5, None, True, "é\ud800"], "b": {"": {}}, "c": 10**400}
    assert make_sidecars(fields)["json"] == json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert make_sidecars({"a": {1: 2, None: 3}})["json"] == b'{"a": {"1": 2, "null": 3}}'


@pytest.mark.parametrize(
    "types",
    [
        1, "x", [], {}, {"/a": "dates"}, {"a": "date"}, {"/a": "date"}, {"/a": None}, {"/b/7": "date"}, {"": "date"},
        {"/b": "tuple", "/c": "date"}, {"/a": "nan"}, {"/a": "int"}, {"/a/0": "date"}, {"/a": "datetime[x]"},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_of_another_tool_stays(types: Any) -> None:
    foreign = {"a": "yesterday", "b": ["2020-01-01"], "__types__": types}
    assert parse({"json": json.dumps(foreign).encode()}) == foreign
    for own in ({"__types__": types}, foreign, {"__types__": foreign}, {"__types__": {"/a": b"x"}, "a": "2024-01-01"}):
        assert parse(make_sidecars(own)) == own


def test_a_deep_value_comes_back() -> None:
    value: Any = b"bottom"
    for number in range(300):
        value = [value] if number % 2 else {"in": value}
    assert parse(make_sidecars({"deep": value})) == {"deep": value}


def test_what_no_type_says_is_text() -> None:
    made = make_sidecars({"set": {1}, "path": 1j, "late": dt.datetime.max.replace(tzinfo=dt.timezone.utc)})
    assert parse(made) == {"set": "{1}", "path": "1j", "late": dt.datetime.max.replace(tzinfo=dt.timezone.utc)}
    assert parse(make_sidecars({"a": np.array([[1, 2]]), "b": np.float32("nan")}))["a"] == [[1, 2]]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]))
    | st.binary() | st.dates() | st.times() | st.datetimes(timezones=st.none() | st.timezones()) | st.timedeltas()
    | st.decimals(allow_nan=None) | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["caption", "label", "__types__", "json", "a/b~"]) | st.text(), VALUES))
def test_any_fields_come_back(fields: dict[str, Any]) -> None:
    found = parse(make_sidecars(fields))
    assert is_same(found, fields)
    assert is_same(restore_types(json.loads(dump_fields(fields, ascii=True))), fields)
    json.loads(make_sidecars(fields).get("json", b"{}"), parse_constant=pytest.fail)  # NaN is no JSON


def test_equality_of_numbers() -> None:
    assert not is_same(1, 1.0)
    assert is_same(1, 1.0, exact=False)
    assert not is_same(True, 1, exact=False)
    assert not is_same([True], [1])
    assert is_same(np.float32(0.5), 0.5)
    assert is_same({"a": [math.nan]}, {"a": [math.nan]})
    assert not is_same((1,), [1])
    assert not is_same("1", 1, exact=False)

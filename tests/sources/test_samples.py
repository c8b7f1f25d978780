"""Sidecars: what they mean, and metadata that goes into them and comes out equal."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.sources.sidecars import SIDECARS, add_sidecars, make_sidecars, parse_metadata

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(["caption", "label", "label_name", "json", "url"]) | st.text(), JSON, max_size=5
)


def parse(members: Any) -> dict[str, Any]:
    """The metadata of members as a reader of a tar finds it."""
    return parse_metadata(*(bytes(members[name]) if name in members else None for name in SIDECARS))


@given(FIELDS)
def test_metadata_goes_into_sidecars_and_comes_out_equal(metadata: dict[str, Any]) -> None:
    assert parse(make_sidecars(metadata)) == metadata


@given(FIELDS, FIELDS)
def test_a_field_kept_elsewhere_joins_the_sidecars(said: dict[str, Any], more: dict[str, Any]) -> None:
    members = {"jpg": memoryview(b"image"), "npy": memoryview(b"array")}
    members |= {extension: memoryview(data) for extension, data in make_sidecars(said).items()}
    found = add_sidecars(members, more | said)
    assert parse(found) == more | said
    assert {name: bytes(found[name]) for name in ("jpg", "npy")} == {"jpg": b"image", "npy": b"array"}


def test_sidecars_are_where_other_tools_look() -> None:
    made = make_sidecars({"caption": "a cat", "label": np.int64(3), "label_name": "cat", "score": np.float32(0.5)})
    assert made.keys() == {"txt", "cls", "json"}
    assert made["txt"] == b"a cat"
    assert made["cls"] == b"3"
    assert json.loads(made["json"]) == {"label_name": "cat", "score": 0.5}


def test_sidecars_that_say_everything_keep_their_bytes() -> None:
    members = {"jpg": memoryview(b"image"), "JSON": memoryview(b'{ "label" :1 }'), "txt": memoryview(b" a \n")}
    assert add_sidecars(members, {"label": 1, "caption": "a"}) is members


@pytest.mark.parametrize(
    "beside",
    [
        {"json": b"{broken"},
        {"cls": b"zz", "json": b'{"a": 1}'},
        {"txt": b"caf\xe9"},
        {"json": b"{", "cls": b"zz", "txt": b"b"},
    ],
    ids=lambda beside: "+".join(beside),
)
def test_a_sidecar_that_cannot_be_parsed_costs_no_field_and_no_byte(beside: dict[str, bytes]) -> None:
    metadata = parse_metadata(*(beside.get(name) for name in SIDECARS), defaults={"label": 2, "label_name": "dog"})
    assert "metadata_error" in metadata
    members = {"jpg": memoryview(b"image")} | {name: memoryview(data) for name, data in beside.items()}
    found = add_sidecars(members, metadata)
    assert parse(found) == metadata
    assert {bytes(data) for name, data in found.items() if name.endswith(".broken")} < set(beside.values()) | {b""}
    assert {bytes(data) for data in found.values()} >= set(beside.values()) - {b'{"a": 1}'}
    again = add_sidecars(found, parse(found))
    assert again is found


def test_bytes_are_no_text_of_python() -> None:
    made = json.loads(make_sidecars({"a": {"b": b"\xff\x00"}})["json"])
    assert made == {"a": {"b": "/wA="}, "__types__": {"/a/b": "bytes"}}
    assert json.loads(make_sidecars({"a": [{(1, 2): 3}]})["json"]) == {"a": [{"(1, 2)": 3}]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_any_unicode_encoding(encoding: str) -> None:
    found = parse_metadata('{"a": "é"}'.encode(encoding), "a café\n".encode(encoding), "7\r\n".encode(encoding))
    assert found == {"a": "é", "caption": "a café", "label": 7}

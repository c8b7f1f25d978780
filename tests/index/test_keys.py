"""Texts by their hashes: found where they are, nowhere else, in memory and in files, whatever the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.errors import SourceError
from curator_dali.index import KeyIndex, KeyList, hash_texts, keys

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=40)


def array(texts: Sequence[str | None]) -> Any:
    return pa.array(texts, pa.large_string())


@given(TEXTS, st.integers(0, 5))
def test_a_hash_depends_on_the_text_alone(texts: list[str], skipped: int) -> None:
    alone = [int(hash_texts(array([text]))[0]) for text in texts]
    assert hash_texts(array(texts)).tolist() == alone
    assert hash_texts(array(["before"] * skipped + texts).slice(skipped)).tolist() == alone
    assert hash_texts(pa.array(texts, pa.string())).tolist() == alone
    assert len({*alone}) == len({*texts})


def test_hashes_of_long_texts_and_of_many_blocks() -> None:
    texts = ["x" * 5000, "", "a\0", "a", "\0", "x" * 4096, *(f"{n}-{'y' * 300}" for n in range(10_000)), "x" * 5000]
    hashes = hash_texts(array(texts))
    assert hashes[0] == hashes[-1]
    assert len(np.unique(hashes)) == len(texts) - 1
    assert hash_texts(array(texts[5000:])).tolist() == hashes[5000:].tolist()
    assert hash_texts(array(["curator_dali"]))[0] == 11166047507155928682  # stored indexes rely on it


@given(TEXTS, TEXTS)
def test_match(have: list[str], wanted: list[str]) -> None:
    index = KeyIndex.build([hash_texts(array(have[:7])), hash_texts(array(have[7:]))])
    first, number = index.match(array([*wanted, None]), lambda rows: array(have).take(pa.array(rows)))
    assert first.tolist() == [*(have.index(text) if text in have else -1 for text in wanted), -1]
    assert number.tolist() == [*map(have.count, wanted), 0]


def test_equal_hashes_of_different_texts() -> None:
    have = ["a", "b", "a", "c"] + ["d"] * 40
    index = KeyIndex(np.zeros(len(have), np.uint64), np.arange(len(have)))
    zero = array(["b", "a", "e"])
    real, keys.hash_texts = keys.hash_texts, lambda texts: np.zeros(len(texts), np.uint64)  # type: ignore[assignment]
    try:
        first, _ = index.match(zero, lambda rows: array(have).take(pa.array(rows)))
    finally:
        keys.hash_texts = real  # type: ignore[assignment]
    assert first.tolist() == [1, 0, -1]


@pytest.mark.parametrize("at_once", [1 << 22, 1000])
def test_files_are_what_memory_is(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_SORTED_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    for count in (0, 1, 10_007):
        hashes = rng.integers(0, 2**64, count, np.uint64)
        hashes[count // 2 :] = hashes[: count - count // 2]
        KeyIndex.write(str(tmp_path / "keys"), np.array_split(hashes, 7))
        found, expected = KeyIndex.load(str(tmp_path / "keys")), KeyIndex.build([hashes])
        assert found.hashes.tolist() == expected.hashes.tolist()
        assert found.rows.tolist() == expected.rows.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_nothing_is_left_of_a_file_that_fails(tmp_path: Path) -> None:
    def blocks() -> Any:
        yield np.zeros(10, np.uint64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        KeyIndex.write(str(tmp_path / "keys"), blocks())
    assert not list(tmp_path.iterdir())


def test_lists_in_files_and_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "takedown.txt"
    path.write_bytes('\ufeffcats/1\r\n\r\n  dogs/2 \r\n"quoted", a\r\nümlaut\r\ncats/1'.encode())
    known = KeyList(path)
    assert len(known) == 5
    lines = known.find(["dogs/2", "cats/1", "nobody", "", None, '"quoted", a', "ümlaut"])
    assert lines.tolist() == [3, 1, 0, 0, 0, 4, 5]
    assert known.describe(3) == "takedown.txt, line 3"
    frame = pd.DataFrame({"uid": ["a", "b", None], "n": [1, 2, 3]})
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "list.parquet")
    frame.to_csv(tmp_path / "list.csv", index=False)
    for source in (frame, tmp_path / "list.parquet", tmp_path / "list.csv"):
        assert KeyList(source, "uid").find(["b", "c", "a"]).tolist() == [2, 0, 1]
        assert KeyList(source, "n").find(["3"]).tolist() == [3]
        with pytest.raises(SourceError, match="has the columns uid, n: call the one that is meant"):
            KeyList(source)
        with pytest.raises(SourceError, match="has no column 'id'; it has uid, n"):
            KeyList(source, "id")
    assert KeyList(["a", 7, "a"]).find(["7", "a", "b"]).tolist() == [2, 1, 0]
    assert KeyList(np.array([5, 6])).find(["6"]).tolist() == [2]
    assert KeyList(["ABC"], lower=True).find(["abc", "aBC"]).tolist() == [1, 1]
    assert KeyList(["ABC"]).find(["abc"]).tolist() == [0]
    for empty in (b"", b"\n\n"):
        path.write_bytes(empty)
        assert KeyList(path).find(["a", ""]).tolist() == [0, 0]
    with pytest.raises(SourceError, match=r"no table there: .*nowhere\.txt"):
        KeyList(tmp_path / "nowhere.txt")
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(SourceError, match=r"takedown\.txt is no UTF-8 text"):
        KeyList(path)
    path.write_text("cats/1\n", encoding="utf-16")
    assert KeyList(path).find(["cats/1"]).tolist() == [1]
    (tmp_path / "ids.csv").write_text("id1\nid2\n")  # entries alone, without a name of the column
    assert KeyList(tmp_path / "ids.csv").find(["id1", "id2"]).tolist() == [1, 2]
    assert KeyList(tmp_path / "ids.csv", default="id1").find(["id1", "id2"]).tolist() == [0, 1]
    (tmp_path / "list.json").write_text('["id1"]')
    with pytest.raises(SourceError, match=r"list\.json', which ends in '\.json'.*a list may be a text file, too"):
        KeyList(tmp_path / "list.json")

"""Paths in little memory: what lists of texts say, and in their order."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.sources import FolderSource, paths
from curator_dali.sources.listing import list_local, stem_of
from curator_dali.sources.paths import HashGroups, Names, Paths

NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]) | st.sampled_from("ab.-"), max_size=6
)


@given(texts=st.lists(NAMES | st.just("\udce9.jpg"), max_size=30), few=st.sampled_from([0, 100]), data=st.data())
def test_names_are_a_list(texts: list[str], few: int, data: st.DataObject) -> None:
    names = Names(texts)
    assert list(names) == texts
    assert [names[at] for at in range(len(texts))] == texts
    begin, end = data.draw(st.integers(-5, 35)), data.draw(st.integers(-5, 35))
    for step in (None, 2, -1):
        assert names[begin:end:step] == texts[begin:end:step]
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=10)) if texts else []
    assert list(names.take(np.array(rows, np.int64))) == [texts[row] for row in rows]
    before = paths._FEW_NAMES
    paths._FEW_NAMES = few
    try:
        assert list(names.sort()) == sorted(texts)
    finally:
        paths._FEW_NAMES = before


@given(texts=st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=30), data=st.data())
def test_paths_are_a_list(texts: list[str], data: st.DataObject) -> None:
    made = pickle.loads(pickle.dumps(Paths(texts)))
    assert list(made) == texts
    assert [made[at] for at in range(-len(texts), len(texts))] == texts + texts
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), bool)
    chosen = made.where(mask)
    assert list(chosen) == [text for text, is_chosen in zip(texts, mask, strict=True) if is_chosen]
    folders, numbers = chosen.folders
    assert [folders[number] for number in numbers] == [text[: text.rfind("/") + 1] for text in chosen]


@given(texts=st.lists(st.sampled_from("abcdefgh"), max_size=12), wanted=st.sampled_from("abcxyz"))
def test_rows_of_a_text_are_found(texts: list[str], wanted: str) -> None:
    groups = HashGroups(texts, len(texts))
    assert groups.find(wanted) == [row for row, text in enumerate(texts) if text == wanted]
    repeated = {text: [row for row, other in enumerate(texts) if other == text] for text in texts}
    assert sorted(groups.repeated()) == sorted(rows for rows in repeated.values() if len(rows) > 1)


FILES = st.sets(
    st.lists(st.sampled_from(["a", "a-b", "a0", "b", "B", "a.jpg", "é", "x.json"]), min_size=1, max_size=3).map(
        "/".join
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(files=FILES, ending=st.sampled_from([".jpg", ".png", ".jpg.jpg", ".json", ".JSON", ".txt", ""]))
def test_a_folder_is_listed_in_the_order_of_whole_paths(files: set[str], ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written: set[str] = set()
        for number, file in enumerate(sorted(files)):
            for name in {f"{file}{ending}", f"{file}.jpg" if number % 2 else f"{file}.png"}:
                path = Path(folder, name)
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"{}")
                except (FileExistsError, NotADirectoryError, IsADirectoryError):
                    continue
                written.add(name)
        assert list(list_local(folder)) == sorted(written)
        source = FolderSource(folder, label_from_folder=False)
        images = [name for name in sorted(written) if name.endswith((".jpg", ".png"))]
        stems = [stem_of(name) for name in images]
        ids = [name if stems.count(stem_of(name)) > 1 or stem_of(name) in images else stem_of(name) for name in images]
        assert source.read_ids(np.arange(len(source))).to_pylist() == ids
        assert len(set(ids)) == len(ids)
        beside = [f"{os.path.join(folder, stem)}.json" for stem in stems]
        found = [
            source._sidecar_urls(name, row).get("json") for name, row in zip(images, source._sidecars, strict=True)
        ]
        for url, upper in zip(beside, found, strict=True):
            assert (upper is not None) == (os.path.exists(url) or os.path.exists(f"{url[:-5]}.JSON"))

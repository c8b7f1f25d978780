"""An index of an output: what is found in it is what reading the output finds."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator_dali import OutputError, open_index, write_index
from curator_dali.cli import main
from curator_dali.index.earlier import Comparison, Matches, match_earlier
from curator_dali.similarity import TooManyPairs, bad_rows
from tests.index.outputs import Rows, made_up, write_output

SAME = Comparison("content_hash", "same", 0, "same bytes")
PIXELS = Comparison("pixel_hash", "same", 0, "same pixels")
NEAR = Comparison("phash", "near", 6, "pHash distance {}")
SIMILAR = Comparison("embedding", "similar", 0.9, "cosine {}")
ALL = (SAME, PIXELS, NEAR, SIMILAR)
HINT = "curator-dali index"


def match(folder: Path, ways: tuple[Comparison, ...], new: Rows, **options: Any) -> Matches:
    good = np.delete(np.arange(len(new["phash"])), bad_rows(new["embedding"]))
    columns = dict(new, embedding=new["embedding"][good])
    return match_earlier([str(folder)], ways, len(new["phash"]), columns, good, **options)


def told(matches: Matches, ways: tuple[Comparison, ...]) -> list[tuple[Any, ...] | None]:
    """(earlier image, reason) of every new row."""
    return [
        None if way < 0 else (key, folder, ways[way].reason(float(value)))
        for key, folder, way, value in zip(matches.key, matches.folder, matches.comparison, matches.value, strict=True)
    ]


@pytest.fixture(scope="module")
def rows() -> tuple[Rows, Rows]:
    return made_up(3000, 400, 24, 0.9)


@pytest.fixture
def out(rows: tuple[Rows, Rows], tmp_path: Path) -> Path:
    write_output(tmp_path / "old", rows[0], part=1000)
    return tmp_path / "old"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_finds_what_a_scan_finds(seed: int, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = made_up(2000 + 500 * seed, 600, 8 + 80 * seed, 0.9, seed=seed)
    rng = np.random.default_rng(seed)
    count = len(old["phash"])
    old["embedding"][rng.integers(0, count, 20)] = np.nan
    old["embedding"][rng.integers(0, count, 20)] = 0
    new["embedding"][rng.integers(0, 600, 5)] = 0
    status = rng.choice(["kept", "kept", "kept", "dropped", "failed"], count).tolist()
    embedded = rng.random(count) < 0.9
    write_output(tmp_path, old, dtype=dtype, status=status, embedded=embedded, part=700, older=seed == 1)
    sets = [(SAME,), (PIXELS, SAME), *((Comparison("dhash", "near", bits, "{}"),) for bits in (0, 3, 6, 9, 16))]
    sets += [(SIMILAR,), (Comparison("embedding", "similar", 0.92, "{}"),), ALL]
    scanned = [match(tmp_path, ways, new) for ways in sets]
    with caplog.at_level(logging.WARNING):
        index = write_index(tmp_path, similarity=0.9)
        found = [match(tmp_path, ways, new) for ways in sets]
    assert not caplog.records
    assert index.rows == status.count("kept")
    for ways, one, other in zip(sets, scanned, found, strict=True):
        a, b = told(one, ways), told(other, ways)
        assert sum(match is not None for match in a) > 2
        missed = [n for n in range(600) if a[n] != b[n]]
        if ways[-1].kind == "similar":
            lost = [n for n in missed if one.comparison[n] == len(ways) - 1]
            assert missed == lost
            assert len(lost) <= 0.01 * (one.comparison == len(ways) - 1).sum() + 1
        else:
            assert not missed


def test_deduplicate_says_the_same_with_an_index(tmp_path: Path) -> None:
    from curator_dali.stages import Deduplicate, Embed
    from tests import helpers
    from tests.curation.test_deduplicate import reasons, run
    from tests.stages.helpers import ColourEncoder

    colours = {f"{r}-{g}": (250 - r, 40 * g, 60) for r in (0, 4) for g in range(5)}
    images = {key: helpers.encode(np.full((20, 30, 3), rgb, np.uint8), "PNG") for key, rgb in colours.items()}
    old = {key: images[key] for key in list(images)[:4]}
    run(old, tmp_path / "old", Embed(ColourEncoder()), Deduplicate("bytes", near=0), embeddings=True)
    against = Deduplicate("bytes", similarity=0.999, keep="first", against=tmp_path / "old")
    before = reasons(run(images, tmp_path / "scanned", Embed(ColourEncoder()), against))
    write_index(tmp_path / "old", similarity=0.95)
    assert reasons(run(images, tmp_path / "looked up", Embed(ColourEncoder()), against)) == before
    assert any("cosine" in reason for reason in before.values())
    assert any("same bytes" in reason for reason in before.values())


def test_an_output_that_went_on_has_no_index_until_it_is_made_again(
    rows: tuple[Rows, Rows], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = rows
    write_output(tmp_path, old, part=1000, upto=2000)
    write_index(tmp_path)
    assert open_index(tmp_path) is not None
    write_output(tmp_path, old, part=1000)
    scanned = told(match(tmp_path, ALL, new), ALL)
    assert "was run again, or went on" in caplog.text
    assert f"{HINT} {tmp_path}" in caplog.text
    caplog.clear()
    assert write_index(tmp_path).rows == 3000
    assert [a == b for a, b in zip(scanned, told(match(tmp_path, ALL, new), ALL), strict=True)].count(False) <= 1
    assert not caplog.records
    assert len(list((tmp_path / "_index").iterdir())) == 2  # index.json, and the files of one build


def test_a_damaged_index_is_not_used(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_index(out)
    path = out / "_index" / "index.json"
    about = json.loads(path.read_text())
    files = out / "_index" / about["folder"]

    def unusable(match: str) -> None:
        caplog.clear()
        assert open_index(out) is None
        assert match in caplog.text
        assert f"{HINT} {out}" in caplog.text

    path.write_text(json.dumps(about | {"format": 99}))
    unusable("is of format 99")
    path.write_text("{")
    unusable("is damaged")
    path.write_text(json.dumps(about))
    vectors = files / "embedding.vectors.npy"
    with vectors.open("r+b") as file:
        file.truncate(5000)
    unusable("is damaged")
    vectors.unlink()
    unusable("lacks files")
    path.unlink()
    caplog.clear()
    assert open_index(out) is None
    assert not caplog.records


@pytest.mark.parametrize("names", [["content_hash"], ["phash"], ["embedding"], []])
def test_an_output_that_has_not_everything(names: list[str], rows: tuple[Rows, Rows], tmp_path: Path) -> None:
    old, new = rows
    write_output(tmp_path, {name: old[name] for name in names} or {"dhash": old["dhash"]})
    ways = tuple(way for way in ALL if way.column in names)
    scanned = told(match(tmp_path, ways, new), ways)
    index = write_index(tmp_path)
    assert index.columns == tuple(names or ["dhash"])
    assert index.threshold == (0.9 if "embedding" in names else 0)
    assert [a == b for a, b in zip(scanned, told(match(tmp_path, ways, new), ways), strict=True)].count(False) <= 1


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_none_one_and_two_images(kept: int, rows: tuple[Rows, Rows], tmp_path: Path) -> None:
    old = {name: values[1000:1003] for name, values in rows[0].items()}
    status = [*["kept"] * kept, *["dropped"] * (3 - kept)]
    write_output(tmp_path, old, status=status)
    assert write_index(tmp_path).rows == kept
    found = match(tmp_path, ALL, old)
    assert found.key.tolist() == [f"image-{n}" if n < kept else None for n in range(3)]
    assert match(tmp_path, (SIMILAR,), old).key.tolist() == found.key.tolist()
    none = {name: values[:0] for name, values in old.items()}
    assert match(tmp_path, ALL, none).key.tolist() == []


def test_embeddings_of_no_use_only(rows: tuple[Rows, Rows], tmp_path: Path) -> None:
    write_output(tmp_path, {"embedding": np.zeros((5, 24), np.float32)})
    assert write_index(tmp_path).rows == 5
    assert set(match(tmp_path, (SIMILAR,), rows[1]).comparison) == {-1}


def test_no_rows_at_all_and_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no output of a curation"):
        write_index(tmp_path)
    write_output(tmp_path, {"phash": np.empty(0, np.uint64)})
    with pytest.raises(OutputError, match="has no rows"):
        write_index(tmp_path)
    assert not (tmp_path / "_index").exists()
    with pytest.raises(OutputError, match="needs a local folder"):
        write_index("memory://bucket/out")
    with pytest.raises(ValueError, match="threshold is 0"):
        write_index(tmp_path, similarity=0)


def test_a_lower_cosine_than_the_index_is_for_is_read(
    out: Path, rows: tuple[Rows, Rows], caplog: pytest.LogCaptureFixture
) -> None:
    ways = (SAME, Comparison("embedding", "similar", 0.8, "cosine {}"))
    scanned = told(match(out, ways, rows[1]), ways)
    write_index(out, similarity=0.85)
    assert told(match(out, ways, rows[1]), ways) == scanned
    assert "is for cosines of 0.85 and more, not 0.8: its embeddings are all read" in caplog.text
    assert f"{HINT} {out} --similarity 0.8" in caplog.text
    index = open_index(out)
    assert index is not None
    with pytest.raises(ValueError, match=r"cosines of 0\.85 and more"):
        index.similar(rows[1]["embedding"], 0.8)


def test_reading_much_without_an_index_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    digests = np.array([f"{n:032x}" for n in range(100_000)], object)
    write_output(tmp_path, {"content_hash": digests})
    new = {"content_hash": np.array([digests[7], "f" * 32], object)}
    found = match_earlier([str(tmp_path)], (SAME,), 2, new, np.empty(0, np.int64))
    assert found.key.tolist() == ["image-7", None]
    assert len(caplog.records) == 1
    assert f"all of its 100,000 rows are read: {HINT} {tmp_path}" in caplog.text


@pytest.mark.parametrize("at", ["read", "divided", "stored"])
def test_an_interrupt_leaves_what_was_there(at: str, out: Path, rows: tuple[Rows, Rows]) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        assert 0 < done <= total
        if what == at:
            raise KeyboardInterrupt

    for there in (False, True):
        before = sorted(path.name for path in out.rglob("*"))
        with pytest.raises(KeyboardInterrupt):
            write_index(out, progress=interrupt)
        assert sorted(path.name for path in out.rglob("*")) == before
        assert (open_index(out) is not None) == there
        write_index(out)
    assert match(out, (SAME,), rows[1]).key.astype(bool).sum() > 20


def test_what_a_kill_leaves_is_cleared_away(out: Path) -> None:
    code = f"""
import os, signal
from curator_dali import write_index
def kill(what, done, total):
    if what == "stored":
        os.kill(os.getpid(), signal.SIGKILL)
write_index({str(out)!r}, progress=kill)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    left = list((out / "_index").iterdir())
    assert len(left) == 1
    assert open_index(out) is None
    write_index(out)
    assert not left[0].exists()
    assert open_index(out) is not None


def test_one_process_at_a_time(out: Path) -> None:
    def again(*_: object) -> None:
        write_index(out)

    with pytest.raises(OutputError, match="another process is indexing"):
        write_index(out, progress=again)
    assert not (out / "_index").exists()


def test_an_output_that_changes_meanwhile(rows: tuple[Rows, Rows], tmp_path: Path) -> None:
    write_output(tmp_path, rows[0], part=1000, upto=2000)

    def go_on(what: str, *_: int) -> None:
        if what == "divided":
            write_output(tmp_path, rows[0], part=1000)

    with pytest.raises(OutputError, match="changed while it was indexed"):
        write_index(tmp_path, progress=go_on)
    assert not (tmp_path / "_index").exists()


def test_the_command(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(out), "--similarity", "0.95", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    by = "content_hash, pixel_hash, phash, dhash, embedding (cosine 0.95 and more)"
    assert said.startswith(f"indexed 3,000 kept images of {out} by {by}: ")
    assert main(["index", str(out), "--json", "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["rows"], answer["threshold"]) == (3000, 0.9)
    size = sum(path.stat().st_size for path in (out / "_index").rglob("*") if path.suffix != ".json" and path.is_file())
    assert answer["nbytes"] == size
    assert main(["index", str(out / "nowhere")]) == 2
    assert "is no output of a curation" in capsys.readouterr().err
    assert main(["index", str(out), "--similarity", "2"]) == 2
    assert "at most 1" in capsys.readouterr().err


def test_ids_are_those_of_the_kept_rows(rows: tuple[Rows, Rows], tmp_path: Path) -> None:
    status = ["kept" if n % 3 else "dropped" for n in range(3000)]
    write_output(tmp_path, {"phash": rows[0]["phash"]}, status=status, part=450)
    index = write_index(tmp_path)
    kept = [f"image-{n}" for n in range(3000) if n % 3]
    order = np.random.default_rng(0).permutation(len(kept))
    assert index.ids(order).tolist() == [kept[n] for n in order]
    assert index.ids(order[:0]).tolist() == []


def test_many_new_rows_are_divided_where_there_is_no_index(out: Path, rows: tuple[Rows, Rows]) -> None:
    whole = told(match(out, (SIMILAR,), rows[1]), (SIMILAR,))
    divided = told(match(out, (SIMILAR,), rows[1], clustered=100), (SIMILAR,))
    assert sum(one is not None for one in whole) > 20
    assert [a == b for a, b in zip(whole, divided, strict=True)].count(False) <= 1


@pytest.mark.parametrize("indexed", [False, True])
def test_too_many_pairs_are_an_error(indexed: bool, out: Path, rows: tuple[Rows, Rows]) -> None:
    if indexed:
        write_index(out)
    for way in (Comparison("phash", "near", 16, "{}"), SIMILAR):
        with pytest.raises(TooManyPairs, match="more than 10 pairs"):
            match(out, (way,), rows[1], max_pairs=10)

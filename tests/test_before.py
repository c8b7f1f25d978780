"""What an earlier version of the package has written still loads; see `tests/before.py`."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curator_dali as cd
from curator_dali import models, transforms
from curator_dali.ray import find_killers
from curator_dali.similarity import group
from curator_dali.torch import pad_images
from tests import before

with zipfile.ZipFile(before.BEFORE) as archive:
    FACTS = json.loads(archive.read("facts.json"))
ROWS = FACTS["outputs"]["finished"]["rows"]
KEPT = [key for _, key, status, _ in ROWS if status == "kept"]
# A pickled function is the name of its module and its own; here are the modules of version 0.1.0.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "curation.rethresholding rethreshold": cd.rethreshold,
    "curation.rethresholding stages_of": cd.stages_of,
    "curation.run curate": cd.curate,
    "display.drawing contact_sheet": cd.contact_sheet,
    "duplicates duplicate_groups": cd.duplicate_groups,
    "duplicates leaks": cd.leaks,
    "errors write_errors": cd.write_errors,
    "indexing.index open_index": cd.open_index,
    "indexing.writing write_index": cd.write_index,
    "joining concat": cd.concat,
    "models.loading load_encoder": models.load_encoder,
    "padding pad_images": pad_images,
    "ray.actors find_killers": find_killers,
    "reporting.writing write_report": cd.write_report,
    "searching search": cd.search,
    "similarity.grouping group": group,
    "sources.opening open_source": cd.open_source,
    "transforms.applying apply": transforms.apply,
    "transforms.presets clip": transforms.clip,
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that was written, not to be written to."""
    return before.unpack_before(tmp_path_factory.mktemp("old"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Everything that was written, for one test alone."""
    return before.unpack_before(tmp_path)


@pytest.fixture(scope="module")
def fresh(old: Path) -> dict[str, Any]:
    """The pickled objects, made by the code of today."""
    return before.make_objects(old)


def find_kinds(value: Any) -> Iterator[type]:
    """Classes of a value and of what it holds."""
    yield type(value)
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = [*value, *value.values()]
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    elif is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value)]
    for part in parts:
        yield from find_kinds(part)


def stamp(folder: Path, *patterns: str) -> dict[str, tuple[int, int, bytes]]:
    """Files with what changes when one of them is written again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for pattern in patterns
        for path in folder.glob(pattern)
    }


@pytest.mark.parametrize("name", FACTS["objects"])
def test_pickle_says_what_it_said(old: Path, name: str) -> None:
    value = pickle.loads((old / "pickles" / f"{name}.pickle").read_bytes())
    assert before.tell_at(before.fill_up(old), value) == FACTS["objects"][name]


def test_pickles_hold_the_classes_of_today(old: Path, fresh: dict[str, Any]) -> None:
    assert fresh.keys() == FACTS["objects"].keys()
    for name, value in fresh.items():
        loaded = pickle.loads((old / "pickles" / f"{name}.pickle").read_bytes())
        again = pickle.loads(pickle.dumps(value))
        assert list(find_kinds(loaded)) == list(find_kinds(again)), name
        assert type(loaded) is type(value), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pickled_function_is_found(name: str) -> None:
    module, function = name.split()
    assert pickle.loads(f"ccurator_dali.{module}\n{function}\n.".encode()) is FUNCTIONS[name]


@pytest.mark.parametrize("name", ["json.image", "email.stats", "curator_dali.no_module", "curator_dali.batch.stats"])
def test_other_modules_are_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_folder_that_git_left_hides_no_old_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reporting" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(cd, "__path__", [*cd.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "curator_dali.reporting", raising=False)
    assert importlib.import_module("curator_dali.reporting").write_report is cd.write_report


@pytest.mark.parametrize("name", FACTS["states"])
def test_state_goes_on_with_the_same_samples(old: Path, name: str) -> None:
    facts = FACTS["states"][name]
    with before.make_torch_loader(old) if name == "torch" else before.make_loader(old, name) as loader:
        loader.load_state_dict(facts["state"])
        assert loader.state_dict() == facts["state"]
        assert before.take_ids(iter(loader)) == facts["rest"]
        loader.set_epoch(2)
        assert before.take_ids(iter(loader)) == facts["next"]


def test_finished_output_is_read(old: Path) -> None:
    out = old / "outputs" / "finished"
    report = cd.Report.load(out)
    assert report.as_dict() | {"out": ""} == FACTS["objects"]["report"][1] | {"out": ""}
    shown = str(report.kept.show())
    assert all(key in shown for key in KEPT)
    assert str(report.dropped("Deduplicate").show()).startswith("dropped by Deduplicate: 1 image")
    assert cd.search(out, id="000003", k=3).ids == FACTS["objects"]["found"][1]["ids"][1:]
    assert len(cd.search(out, id="000003", k=3).batch("cpu")) == 3
    assert [[member.image_id for member in group.members] for group in cd.duplicate_groups(out)] == [
        ["000002", "000005"]
    ]
    assert cd.stages_of(old / "outputs" / "global") == before.OUTPUTS["global"]["stages"][1:]
    with cd.ImageLoader(cd.open_source(out), device="cpu") as loader:
        assert sorted(item.image_id for batch in loader for item in batch) == KEPT


def test_finished_output_has_kinds_of_reasons(old: Path) -> None:
    """Its rows have no column `reason_kind`: the kinds are guessed."""
    report = cd.Report.load(old / "outputs" / "finished")
    counted = {kind: count for kinds in report.dropped.values() for kind, count in kinds.items()}
    assert len(counted) > 1
    assert {kind: report.dropped(kind).to_table().num_rows for kind in counted} == counted
    assert {kind: report.failed(kind).to_table().num_rows for kind in report.failed} == report.failed


def test_finished_output_is_decided_anew(own: Path) -> None:
    out = own / "outputs" / "finished"
    cd.rethreshold(out, own / "same", stages=before.DECIDED[2:], html=False)
    assert before.rows_of(own / "same") == ROWS
    report = cd.rethreshold(out, own / "less", stages=[cd.Filter("sharpness", max=0)], html=False)
    assert report.kept == 0
    assert Path(cd.write_report(out)).stat().st_size > 0


def test_index_is_looked_up(own: Path) -> None:
    out = own / "outputs" / "finished"
    index = cd.open_index(out)
    assert index is not None
    assert index.rows == len(KEPT)
    stages = [before.Thumbnail(), cd.Deduplicate(near=4, similarity=0.9999, against=out)]
    cd.curate(own / "shards", own / "new", stages=stages, device="cpu", html=False)
    assert not set(KEPT) & {key for _, key, status, _ in before.rows_of(own / "new") if status == "kept"}


@pytest.mark.parametrize("name", before.INTERRUPTED)
def test_interrupted_output_is_finished(own: Path, name: str) -> None:
    if name == "function" and FACTS["python"] != before.PYTHON:
        pytest.skip(f"a function's digest is of its bytecode, here of Python {FACTS['python']}")
    out, facts = own / "outputs" / name, FACTS["outputs"][name]
    there = stamp(out, "*.tar", "*.parquet")
    told: list[int] = []
    with cd.Curation(own / "shards", out, **before.settings_of(name)) as curation:
        done, total = curation.work
        assert done == facts["done"]
        assert curation.run(told.append).complete
    assert sum(told) == total - done
    assert there.items() <= stamp(out, "*.tar", "*.parquet").items()
    assert before.rows_of(out) == facts["rows"]


def test_function_of_another_python_is_refused_with_the_cause(own: Path) -> None:
    run = own / "outputs" / "function" / "_manifest" / "run.json"
    content = json.loads(run.read_text())
    (stage,) = content["settings"]["stages"]
    assert re.fullmatch(r"tests.before:is_wide [0-9a-f]{16}", stage["where"])
    stage["where"] = "tests.before:is_wide 0123456789abcdef"
    run.write_text(json.dumps(content))
    with pytest.raises(cd.OutputError, match=r"where was .* knew by its bytecode.*the Python of that run"):
        before.curate(own, "function", own / "outputs" / "function")


def check_indexes_serve(source: cd.TarSource, folder: Path, patterns: list[str]) -> None:
    """Check that files in a folder are all that a source needs, also of its images' headers."""
    kept = stamp(folder, *patterns)
    assert len(kept) == 4
    with cd.ImageLoader(source, device="cpu") as loader:
        known = source.headers(np.arange(before.SAMPLES))["codec"] != 0
        assert np.flatnonzero(~known).tolist() == [key for key, origin in before.FLAWED.items() if origin is None]
        assert sum(map(len, loader)) == before.SAMPLES - 1
    source.close()
    assert stamp(folder, *patterns) == kept


def test_tar_indexes_beside_the_tars_serve_on(own: Path) -> None:
    kept = stamp(own / "shards", "*.cdindex")
    source = before.open_beside(own)
    assert stamp(own / "shards", "*.cdindex") == kept
    check_indexes_serve(source, own / "shards", ["*.cdindex", "*.headers"])


def test_tar_indexes_in_the_cache_serve_on(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DALI_CACHE", str(own / "cache"))
    tars = sorted((own / "shards").glob("*.tar"))
    for tar in tars:
        digest = hashlib.blake2b(os.fsencode(tar), digest_size=16).hexdigest()
        folder = own / "cache" / "tar" / digest[:2]
        folder.mkdir(parents=True, exist_ok=True)
        for ending in ("cdindex", "headers"):
            (tar.parent / f"{tar.name}.{ending}").rename(folder / f"{digest}.{ending}")
    kept = stamp(own / "cache", "**/*.*")
    source = cd.TarSource(tars)
    assert stamp(own / "cache", "**/*.*") == kept
    check_indexes_serve(source, own / "cache", ["**/*.*"])

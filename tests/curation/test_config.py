"""A curation as a file says the same as one in Python, and nothing that cannot be meant."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator_dali.cli.curate import add_arguments
from curator_dali.curation import Settings, Write, curate
from curator_dali.curation.config import OPTIONS, ConfigError, make_stage, read_config
from curator_dali.errors import StageError
from curator_dali.io import Cache
from curator_dali.stages import STAGES, Embed, Filter, Quality, ZeroShotTags


def is_even(values: np.ndarray) -> np.ndarray:
    return values % 2 == 0


TOML = """
source = ["a.tar", "b.tar"]
out = "curated"
embeddings = "float16"
batch_size = 32

[[stages]]
type = "Embed"
model = "efficientnet-lite0"

[[stages]]
type = "ZeroShotTags"
tags = ["cat", "dog"]

[[stages]]
type = "Quality"

[[stages]]
type = "Filter"
field = "number"
where = "tests.curation.test_config:is_even"

[[stages]]
type = "Filter"
field = "tag"
equals = ["cat", "dog"]
"""
YAML = """
source: [a.tar, b.tar]
out: curated
embeddings: float16
batch_size: 32
stages:
  - {type: Embed, model: efficientnet-lite0}
  - {type: ZeroShotTags, tags: [cat, dog]}
  - type: Quality
  - {type: Filter, field: number, where: "tests.curation.test_config:is_even"}
  - {type: Filter, field: tag, equals: [cat, dog]}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.YML", YAML)])
def test_both_formats_say_what_python_says(name: str, text: str, tmp_path: Path) -> None:
    stages = [
        Embed("efficientnet-lite0"),
        ZeroShotTags(["cat", "dog"]),
        Quality(),
        Filter("number", where=is_even),
        Filter("tag", equals=("cat", "dog")),
    ]
    found = read_config(write(tmp_path / name, text))
    where = found["stages"][3].where  # another object than ours where pytest imports this file under another name
    assert where.__qualname__ == "is_even"
    found["stages"][3] = Filter("number", where=is_even)
    assert found == {
        "source": ["a.tar", "b.tar"], "out": "curated", "embeddings": "float16", "batch_size": 32, "stages": stages
    }  # fmt: skip


def test_every_argument_of_curate_is_allowed() -> None:
    assert [*OPTIONS, "progress"] == list(inspect.signature(curate).parameters)
    arguments = inspect.signature(curate).parameters
    defaults = {field.name: (field.type, field.default) for field in fields(Settings)}
    assert defaults == {name: (arguments[name].annotation, arguments[name].default) for name in defaults}
    flags = argparse.ArgumentParser()
    add_arguments(flags)
    without_flag, known = {"prefetch", "max_pixels", "write"}, {action.dest for action in flags._actions}
    assert {*defaults} - known == without_flag
    assert {field.name for field in fields(Write)} - {"quality"} <= known
    assert "write_quality" in known
    assert set(STAGES) >= {"Embed", "Aesthetic", "NSFW", "CLIPScore", "ZeroShotTags", "Quality", "Filter"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", r"there is no 'batchsize' \(did you mean 'batch_size'\?\); allowed: source, out, stages"),
        (
            "[[stages]]\ntype = 'Filtr'",
            r"stages\[0\]: there is no stage 'Filtr' \(did you mean 'Filter'\?\); allowed: Embed",
        ),
        ("[[stages]]\nfield = 'width'", "give its type and its settings"),
        ("[[stages]]\ntype = 'Filter'\nfeld = 'width'", r"\(Filter\): there is no 'feld'.*allowed: field, min"),
        ("[[stages]]\ntype = 'Filter'\nmin = 3", r"stages\[0\]: Filter needs field"),
        ("[[stages]]\ntype = 'Filter'\nfield = 'x'", "Filter.'x'. has no condition"),
        ("[[stages]]\ntype = 'Filter'\nfield = 'x'\nwhere = 'nowhere:f'", "cannot be imported"),
        ("[[stages]]\ntype = 'Filter'\nfield = 'x'\nwhere = 'json:nothing'", "cannot be imported"),
        ("stages = 3", "stages is a int; give a list"),
        ("cache = '/nvme'", r"cache is '/nvme'; give a table, as cache = \{folder"),
        ("[cache]\nfolder = 'x'\nsize = 3", "cache: there is no 'size'; allowed: folder, limit"),
        ("out = ", "is no TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, StageError), match=message):
        read_config(write(tmp_path / "a.toml", text))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in .toml, .yaml or .yml"):
        read_config(write(tmp_path / "a.json", "{}"))
    with pytest.raises(ConfigError, match="is no YAML"):
        read_config(write(tmp_path / "a.yaml", "a: [1"))
    with pytest.raises(ConfigError, match="holds a list"):
        read_config(write(tmp_path / "b.yaml", "- 1"))
    assert read_config(write(tmp_path / "c.yaml", "")) == {}
    with pytest.raises(OSError, match=r"none\.toml"):
        read_config(tmp_path / "none.toml")


def test_a_stage_of_ones_own() -> None:
    made = make_stage({"type": "tests.curation.helpers:FirstOfItsLabel", "field": "photo"}, "here")
    assert made.settings == {"type": "FirstOfItsLabel", "field": "photo"}
    for name in ("tests.curation.helpers:nothing", "json:loads"):
        with pytest.raises(ConfigError, match=r"cannot be imported|no kind of stage"):
            make_stage({"type": name}, "here")


@pytest.mark.parametrize("settings", [Filter("a", min=1).settings, Quality().settings, Embed("x").settings])
def test_settings_of_a_stage_make_it_again(settings: dict[str, Any]) -> None:
    assert make_stage(settings, "here").settings == settings


def test_a_cache(tmp_path: Path) -> None:
    found = read_config(write(tmp_path / "a.toml", '[cache]\nfolder = "/nvme/cache"\nlimit = "2TB"'))
    assert found == {"cache": Cache("/nvme/cache", "2TB")}

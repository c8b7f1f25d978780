"""A wrong order is refused before work starts, and says what to do."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from curator_dali.batch.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.stages import (
    NSFW,
    STAGES,
    Aesthetic,
    CLIPScore,
    Embed,
    Filter,
    Quality,
    Stage,
    ZeroShotTags,
    make_plan,
)
from tests.stages.helpers import BlindEncoder, ColourEncoder, batch_of, flat

KNOWN = list(STAGES.values())


class Doubling(Stage):
    """Writes what it is told to."""

    kind = "float32"

    @property
    def writes(self) -> Mapping[str, str]:
        return {"double": self.kind}

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        return batch


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [Embed(ColourEncoder()), Filter("aesthetic_score", min=5)],
            r"Filter\(aesthetic_score\) reads 'aesthetic_score', which no earlier stage writes; "
            r"stages before it write: the loader: "
            r"index, image_id, image_path, width, height; Embed: embeddings; put Aesthetic before it",
        ),
        ([Filter("nsfw_score", max=1), NSFW()], "put NSFW, which comes later, before it"),
        ([Aesthetic("x")], "Aesthetic reads 'embeddings'.*put Embed before it"),
        ([CLIPScore()], "CLIPScore reads 'caption'.*put a stage that writes it before it"),
        ([Filter("sharpnes", min=1)], "did you mean 'sharpness'"),
        ([Filter("status", equals="kept")], "known only at the end"),
        ([Quality(), Quality()], "Quality #2 writes '.*', which Quality writes already"),
        ([Filter("width", min=3), "Quality"], r"stages\[1\] is 'Quality'; give stages"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(stages: list[Stage], message: str) -> None:
    with pytest.raises(StageError, match=message):
        make_plan(stages, known=KNOWN)


def test_a_field_of_the_metadata_becomes_a_column() -> None:
    plan = make_plan(
        [Filter("likes", min=3), Embed(ColourEncoder()), CLIPScore()], {"likes": "int64", "caption": "string"}
    )
    assert plan.metadata == ("likes", "caption")
    assert list(plan.columns) == [
        "index", "image_id", "image_path", "width", "height", "likes", "caption", "clip_score"
    ]  # fmt: skip
    assert plan.embeds


def test_labels_are_unique_and_views_are_shared() -> None:
    stages = [Quality(), Filter("width", min=2), Filter("width", max=9), Doubling(), Filter("width", min=1)]
    plan = make_plan(stages)
    assert plan.labels == ("Quality", "Filter(width)", "Filter(width) #2", "Doubling", "Filter(width) #3")
    assert plan.views == (Quality.VIEW,)
    assert plan.rows()[0] == ("Quality", "height, width", ", ".join(Quality().writes))


def test_columns_have_a_type_that_can_be_written() -> None:
    class Odd(Doubling):
        kind = "complex"

    with pytest.raises(StageError, match=r"Odd writes 'double' as 'complex'; allowed: bool"):
        make_plan([Odd()])


def test_no_stages_is_a_plan() -> None:
    assert make_plan([]).labels == ()


class Seeing(Stage):
    """Notes which views a batch still has."""

    settings: ClassVar[dict[str, str]] = {"type": "Seeing"}

    def __init__(self, seen: list[tuple[int, int]]) -> None:
        object.__setattr__(self, "seen", seen)

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        self.__dict__["seen"].append((len(batch), len(batch.views)))
        return batch


def test_a_batch_goes_through_and_who_is_left_out_is_told() -> None:
    """The view goes behind its last user, nobody works on nothing, and every stage's seconds are told."""
    seen: list[tuple[int, int]] = []
    encoder = ColourEncoder()
    see = Seeing(seen)
    plan = make_plan([see, Embed(encoder), see, Filter("index", min=2), see, Filter("index", min=9), see])
    plan.setup("cpu")
    batch = batch_of(encoder.view, flat("red", "green", "blue", "red"))
    told, spent = [], []

    def drop(number: int, judged: ImageBatch, goes: Any, reasons: Any) -> None:
        told.append((plan.labels[number], len(judged), goes.tolist(), reasons.tolist()))

    left = plan.run(batch, drop, lambda label, seconds: spent.append(label))
    assert len(left) == 0
    assert seen == [(4, 1), (4, 0), (2, 0)]
    assert told == [
        ("Filter(index)", 4, [True, True, False, False], ["index 0 < 2", "index 1 < 2", None, None]),
        ("Filter(index) #2", 2, [True, True], ["index 2 < 9", "index 3 < 9"]),
    ]
    assert spent == list(plan.labels[:-1])


class Counting(Stage):
    """Knows what was asked of it."""

    settings: ClassVar[dict[str, str]] = {"type": "Counting"}

    def __init__(self) -> None:
        self.calls: list[str]
        object.__setattr__(self, "calls", [])

    def setup(self, device: str) -> None:
        self.calls.append(f"setup {device}")

    def connect(self, before: Sequence[Stage]) -> None:
        self.calls.append(f"connect behind {len(before)}")

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        return batch


def test_a_plan_is_set_up_once_for_a_device_and_again_where_it_travelled() -> None:
    counting = Counting()
    plan = make_plan([Quality(), counting])
    for _ in range(2):
        plan.setup("cpu")
    assert counting.calls == ["setup cpu", "connect behind 1"]
    plan.setup("meta")
    assert counting.calls[2:] == ["setup meta", "connect behind 1"]
    travelled = pickle.loads(pickle.dumps(plan))
    assert travelled == plan
    travelled.stages[1].calls.clear()
    travelled.setup("meta")
    assert travelled.stages[1].calls == ["setup meta", "connect behind 1"]


def test_a_plan_that_could_not_be_set_up_is_not() -> None:
    plan = make_plan([Embed(BlindEncoder()), ZeroShotTags(["red", "blue"])])
    for _ in range(2):
        with pytest.raises(StageError, match="embeds images only"):
            plan.setup("cpu")


def test_a_stage_is_its_settings() -> None:
    stage = Filter("tag", equals=["a", "b"])
    assert stage == Filter("tag", equals=("a", "b"))
    assert stage.settings == {
        "type": "Filter", "field": "tag", "min": None, "max": None, "equals": ["a", "b"], "where": None,
        "missing": "drop",
    }  # fmt: skip
    where = Filter("tag", where=make_plan).settings["where"]
    assert re.fullmatch(r"curator_dali.stages.plan:make_plan source [0-9a-f]{16}", where)
    assert Filter("tag", where=len).settings["where"] == "builtins:len"
    assert json.loads(json.dumps(stage.settings)) == stage.settings
    assert Embed(ColourEncoder()).settings["model"] == "colours"


def test_a_function_that_was_changed_is_another_setting() -> None:
    def said(text: str) -> str:
        code = f"from curator_dali.stages import Filter; print(Filter('a', where={text}).settings['where'])"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    one = "lambda values: [value in {'a', 'b', 'c'} for value in values]"
    assert said(one) == said(one)  # in processes whose sets are in another order
    assert len({said(one), said(one.replace("'c'", "'d'")), said("lambda values: values > 3")}) == 3


def test_a_function_is_its_source_but_for_comments_and_blank_lines(tmp_path: Path) -> None:
    body = "    def within(values):\n        return values > 3\n"
    texts = [
        body,
        body.replace("return", "# why\n\n        return").replace("3", "3  # at least"),
        body.replace("    ", "  "),
        body.replace("3", "4"),
        body.replace("return values", 'return "#" and values'),
        body.replace("within", "inside"),
    ]
    names = []
    for number, text in enumerate(texts):
        path = tmp_path / str(number) / "functions.py"
        path.parent.mkdir()
        path.write_text(f"if True:\n{text}")
        found = runpy.run_path(str(path), run_name="functions")
        function = found.get("within") or found["inside"]
        sys.modules.pop("functions", None)
        names.append(Filter("a", where=function).settings["where"])
    assert all(re.fullmatch(r"functions:(within|inside) source [0-9a-f]{16}", name) for name in names)
    assert names[0] == names[1]
    assert len({*names}) == 4 + (names[0] != names[2])  # indentation inside a function counts


def test_a_function_without_source_is_its_bytecode() -> None:
    code = "from curator_dali.stages import Filter\ndef f(values): return values > 3\n"
    code += "print(Filter('a', where=f).settings['where'])"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"__main__:f [0-9a-f]{16}\n", told)
    assert re.search(r"<lambda> [0-9a-f]{16}$", Filter("a", where=lambda values: values > 3).settings["where"])


@dataclass(frozen=True)
class Ready(Stage):
    """A user's own stage, whose state is a tuple that begins with the device."""

    scale: float = 2.0

    def setup(self, device: str) -> None:
        if not self._is_set_up(device):
            self._keep((device, object()))

    def __call__(self, batch: ImageBatch) -> ImageBatch:
        return batch


def test_the_state_of_a_stage_is_no_setting_and_stays_behind() -> None:
    stage = Ready()
    with pytest.raises(StageError, match="Ready is not set up"):
        _ = stage.state
    stage.setup("cpu")
    first = stage.state
    stage.setup("cpu")
    assert stage.state is first
    stage.setup("meta")
    assert stage.state[0] == "meta"
    assert (stage, asdict(stage), repr(stage)) == (Ready(), {"scale": 2.0}, "Ready(scale=2.0)")
    with pytest.raises(StageError, match="not set up"):
        _ = pickle.loads(pickle.dumps(stage)).state

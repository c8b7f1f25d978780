"""What came beside an image comes back from the tars of an output, whatever the source kept it in."""

from __future__ import annotations

import json
import string
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curator_dali as cd
from curator_dali.outputs import Manifest
from curator_dali.sources import MemorySource, Source, open_source
from curator_dali.torch import TargetError, TorchImageLoader
from tests import helpers
from tests.curation.helpers import FirstOfItsLabel, read_members

OPTIONS: dict[str, Any] = {"device": "cpu", "html": False}
CLASSES = ["cats", "dogs", "empty cups"]


@cache
def make_images() -> list[bytes]:
    return [helpers.encode(crop) for _, crop in helpers.crops(helpers.load_photos(), 12, shortest=32, longest=48)]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return make_images()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Path:
    """Class folders; some images have sidecars."""
    root = tmp_path_factory.mktemp("classes") / "train"
    for number, data in enumerate(images):
        path = root / CLASSES[number % 3] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if number % 2:
            path.with_suffix(".txt").write_text(f"Nr. {number}: grün\n")
        if number % 4 == 1:
            path.with_suffix(".json").write_text(json.dumps({"score": number / 2, "tags": ["a", None]}))
    return root


def metadata_of(source: Any) -> list[dict[str, Any]]:
    opened = open_source(source)
    assert isinstance(opened, Source)
    return [dict(item.metadata) for item in opened.read(np.arange(len(opened))).objects]


def curated(source: Any, out: Path, **options: Any) -> list[dict[str, Any]]:
    cd.curate(source, out, stages=[], **OPTIONS, **options)
    return metadata_of(str(out / "*.tar"))


def parquet_of(path: Path, images: list[bytes], **columns: Any) -> str:
    keys = [f"k{number}" for number in range(len(images))]
    pq.write_table(pa.table({"key": keys, "jpg": images, **columns}), path)
    return str(path)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(string.ascii_letters + "_ äß", min_size=1, max_size=8).filter(
    lambda name: name not in ("label", "caption")
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
METADATA = st.fixed_dictionaries({}, optional={"caption": TEXT, "label": st.integers(0, 2**31)}).flatmap(
    lambda known: st.dictionaries(NAMES, VALUES, max_size=4).map(lambda more: {**more, **known})
)
RUNS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@RUNS
@given(st.lists(METADATA, min_size=1, max_size=5))
def test_tars(tmp_path_factory: pytest.TempPathFactory, given: list[dict[str, Any]]) -> None:
    folder, images = tmp_path_factory.mktemp("tars"), make_images()
    members = []
    for number, fields in enumerate(given):
        members += [(f"{number}.jpg", images[number]), (f"{number}.json", json.dumps(fields).encode())]
        if number % 2 and fields.get("caption"):
            members.append((f"{number}.txt", fields["caption"].encode()))
    source = str(helpers.write_tar(folder / "a.tar", members))
    assert curated(source, folder / "out") == metadata_of(source)
    assert [{k: v for k, v in row.items() if k != "caption"} for row in metadata_of(source)] == [
        {k: v for k, v in fields.items() if k != "caption"} for fields in given
    ]


@RUNS
@given(st.lists(METADATA, min_size=1, max_size=5))
def test_memory(tmp_path_factory: pytest.TempPathFactory, given: list[dict[str, Any]]) -> None:
    folder, images = tmp_path_factory.mktemp("memory"), make_images()
    assert curated(MemorySource(images[: len(given)], given), folder / "out") == given


def test_class_folders(folders: Path, tmp_path: Path) -> None:
    before = metadata_of(str(folders))
    assert {"label", "label_name"} <= before[0].keys()
    assert curated(str(folders), tmp_path / "out") == before
    cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[cd.Filter("width", min=1)], html=False)
    assert metadata_of(str(tmp_path / "new" / "*.tar")) == before
    kept = cd.curate(str(folders), tmp_path / "few", stages=[FirstOfItsLabel()], **OPTIONS)
    assert kept.kept == 3
    assert [row["label_name"] for row in metadata_of(str(tmp_path / "few" / "*.tar"))] == CLASSES


def test_columns_of_parquet(images: list[bytes], tmp_path: Path) -> None:
    columns = {
        "caption": [f"number {n}: grün" for n in range(11)] + [None],
        "label": [n % 3 for n in range(12)],
        "score": [n / 3 for n in range(12)],
        "tags": [["a"] * (n % 3) for n in range(12)],
    }
    source = parquet_of(tmp_path / "a.parquet", images, **columns)
    found = curated(source, tmp_path / "out")
    for name, values in columns.items():
        assert [row.get(name) for row in found] == values
    assert found == metadata_of(source)


def test_sources_of_a_mixture(images: list[bytes], folders: Path, tmp_path: Path) -> None:
    parts = {
        "folders": str(folders),
        "tables": parquet_of(tmp_path / "a.parquet", images, caption=[f"number {n}" for n in range(12)]),
        "memory": MemorySource(images, [{"n": n} for n in range(12)]),
    }
    before = metadata_of(cd.Mixture(parts))
    assert {row["source"] for row in before} == set(parts)
    assert curated(cd.Mixture(parts), tmp_path / "out") == before
    assert curated(cd.Subset(cd.Mixture(parts), slice(3, 30)), tmp_path / "some") == before[3:30]


def test_the_bytes_of_members_stay(folders: Path, tmp_path: Path) -> None:
    """What says all of the metadata already is written as it is."""
    data = (folders / "cats" / "00.jpg").read_bytes()
    members = {"a.jpg": data, "a.txt": b" spaces  ", "a.JSON": b'{ "x" : 1.50 }', "a.other": b"any", "a.cls": b"07\n"}
    source = str(helpers.write_tar(tmp_path / "a.tar", list(members.items())))
    cd.curate(source, tmp_path / "out", stages=[], **OPTIONS)
    (written,) = read_members(tmp_path / "out").values()
    del written["curation.json"]
    assert written == {name.partition(".")[2]: data for name, data in members.items()}


@pytest.mark.parametrize("stages", [[], [FirstOfItsLabel()]], ids=["streaming", "global"])
def test_class_names_are_in_the_manifest(folders: Path, stages: list[Any], tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    cd.curate(str(folders), out, stages=stages, **OPTIONS)
    cd.rethreshold(out, new, stages=[cd.Filter("width", min=1)], tars=False, html=False)
    for folder in (out, new):
        assert Manifest.load(str(folder)).run["class_names"] == CLASSES
    path = out / "_manifest" / "run.json"  # of a version that did not know them
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "class_names"}))
    assert cd.curate(str(folders), out, stages=stages, **OPTIONS).earlier == 12
    cd.rethreshold(out, tmp_path / "again", stages=[cd.Filter("width", min=1)], html=False)
    assert Manifest.load(str(tmp_path / "again")).run["class_names"] == CLASSES
    cd.curate(MemorySource([b"x"]), tmp_path / "none", stages=[], **OPTIONS)
    assert "class_names" not in Manifest.load(str(tmp_path / "none")).run


def test_training_on_curated_class_folders(folders: Path, tmp_path: Path) -> None:
    """The same numbers and the same names, also of a class of which nothing was kept first."""
    cd.curate(str(folders), tmp_path / "out", stages=[cd.Filter("label", min=1)], **OPTIONS)
    names, labels = [], []
    for source in (str(folders), str(tmp_path / "out" / "*.tar"), str(tmp_path / "out")):
        loader = TorchImageLoader(
            cd.ImageLoader(source, batch_size=4, transforms=cd.transforms.Resize((16, 16)), device="cpu")
        )
        with loader:
            names.append(loader.class_names)
            labels.append([int(label) for _, targets in loader for label in targets])
    assert names == [CLASSES] * 3
    assert labels == [[0] * 4 + [1] * 4 + [2] * 4, *([[1] * 4 + [2] * 4] * 2)]


def test_labels_of_two_numberings_are_not_mixed_without_a_word(
    images: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`dog` is 1 in one data set and 0 in the other: refused for training, by whatever way both come in."""
    for name, classes in (("a", ("cat", "dog")), ("b", ("dog", "eel"))):
        for number, folder in enumerate(classes):
            (tmp_path / name / folder).mkdir(parents=True)
            (tmp_path / name / folder / "1.jpg").write_bytes(images[number])
        cd.curate(str(tmp_path / name), tmp_path / "out" / name, stages=[], **OPTIONS)
    mixture = cd.Mixture({"a": str(tmp_path / "a"), "b": str(tmp_path / "b")})
    cd.curate(mixture, tmp_path / "mixed", stages=[], **OPTIONS)
    assert "number different classes, so that one label means several" in caplog.text
    outputs = [str(tmp_path / "out" / name) for name in "ab"]
    cd.curate(outputs, tmp_path / "joined", stages=[], **OPTIONS)
    curated = [str(tmp_path / "mixed"), str(tmp_path / "joined")]
    for source in (mixture, cd.Subset(mixture, [0, 3]), outputs, str(tmp_path / "out" / "?" / "*.tar"), *curated):
        with pytest.raises(TargetError, match=r"number different classes.*give target='label_name'"):
            TorchImageLoader(source, device="cpu")
    names = ["cat", "dog", "eel"]
    size = cd.transforms.Resize((16, 16))
    for source in (outputs, *curated):
        with TorchImageLoader(source, target="label_name", classes=names, transforms=size, device="cpu") as loader:
            assert [targets.tolist() for _, targets in loader] == [[0, 1, 1, 2]]

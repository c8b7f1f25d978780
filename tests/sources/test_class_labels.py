"""Names of classes in the schema of Parquet files, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator_dali as cd
from curator_dali.sources import Mixture, ParquetSource
from curator_dali.stages import Filter
from tests.helpers import encode

PHOTO = encode(np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8))
CLASS = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def write(path: Path, features: Any, labels: list[Any] | pa.Array, **columns: list[Any]) -> str:
    table = pa.table({"jpg": [PHOTO] * len(labels), "label": labels, **columns})
    about = features if isinstance(features, bytes) else json.dumps({"info": {"features": features}}).encode()
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), path)
    return str(path)


def read(source: cd.Source) -> list[dict[str, Any]]:
    """The metadata of all samples, which must be the same with their members and without."""
    indices = np.arange(len(source))
    found = [dict(item.metadata) for item in source.read(indices).objects]
    assert [dict(item.metadata) for item in source.read(indices, members=True).objects] == found
    return found


def test_a_data_set_that_datasets_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": PHOTO, "path": None}] * 3, "label": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    source = cd.open_source(str(tmp_path / "a.parquet"))
    assert [(row["label"], row["label_name"]) for row in read(source)] == [(1, "dog"), (0, "cat"), (1, "dog")]
    assert source.class_names == ["cat", "dog"]
    assert source.fields == {"label": "int64", "label_name": "string"}
    out = tmp_path / "out"
    cd.curate(source, out, stages=[Filter("label_name", where=lambda name: name == "dog")], device="cpu", html=False)
    with cd.ImageLoader(str(out), device="cpu") as loader:
        assert loader.source.class_names == ["cat", "dog"]
        items = [item for batch in loader for item in batch.data]
    assert [(item.metadata["label"], item.metadata["label_name"]) for item in items] == [(1, "dog")] * 2


def test_labels_that_name_no_class(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": CLASS}, pa.array([0, -1, 2, None, 1], pa.int64()))
    assert [row.get("label_name") for row in read(ParquetSource(path))] == ["cat", None, None, None, "dog"]


def test_other_columns_with_classes_and_a_name_that_is_there(tmp_path: Path) -> None:
    fine = {"names": ["tabby", "poodle"], "_type": "ClassLabel"}
    features = {"label": CLASS, "fine_label": fine, "jpg": {"_type": "Image"}, "tags": [fine], "gone": CLASS}
    path = write(tmp_path / "a.parquet", features, [1, 0], fine_label=[0, 1], label_name=["mine", "mine"])
    source = pickle.loads(pickle.dumps(ParquetSource(path)))
    assert read(source) == [
        {"label": 1, "label_name": "mine", "fine_label": 0, "fine_label_name": "tabby"},
        {"label": 0, "label_name": "mine", "fine_label": 1, "fine_label_name": "poodle"},
    ]
    assert source.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    "features",
    [
        b"",
        b"no JSON",
        b"\xff",
        b"[]",
        b"[" * 20_000,
        b'{"info": null}',
        b'{"info": {"features": [1]}}',
        {"label": 1},
        {"label": {"_type": "ClassLabel"}},
        {"label": {"_type": "ClassLabel", "names": "cat"}},
        {"label": {"_type": "ClassLabel", "names": [1]}},
        {"label": {"_type": "Value", "names": ["cat"]}},
        {"jpg": CLASS},
    ],
)
def test_metadata_that_is_broken_or_absent_costs_nothing(tmp_path: Path, features: Any) -> None:
    source = ParquetSource(write(tmp_path / "a.parquet", features, [0, 1]))
    assert read(source) == [{"label": 0}, {"label": 1}]
    assert source.class_names == []
    assert source.fields == {"label": "int64"}


def test_files_that_number_different_classes(tmp_path: Path) -> None:
    swapped = {**CLASS, "names": ["dog", "cat"]}
    paths = [write(tmp_path / f"{n}.parquet", {"label": kind}, [0]) for n, kind in enumerate((CLASS, swapped))]
    source = ParquetSource(paths)
    assert source.class_names == []
    assert source.class_lists == {paths[0]: ["cat", "dog"], paths[1]: ["dog", "cat"]}
    assert [row["label_name"] for row in read(source)] == ["cat", "dog"]
    same = ParquetSource([paths[0], write(tmp_path / "2.parquet", {"label": CLASS}, [1])], name="same")
    assert same.class_lists == {"same": ["cat", "dog"]}
    assert Mixture({"a": same, "b": ParquetSource(paths[0])}).class_names == ["cat", "dog"]
    assert ParquetSource([]).class_names == []

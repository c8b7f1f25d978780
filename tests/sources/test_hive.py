"""Fields that the folders of partitioned files say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dali.sources import Source, open_source
from curator_dali.sources.annotations import partition_fields


@pytest.mark.parametrize(
    ("urls", "fields"),
    [
        (["/d/run=7/set/k=1/x.pq", "/d/run=7/set/k=2/x.pq"], [{"k": 1}, {"k": 2}]),
        (["/d/run=7/set/x.pq"], [{}]),
        (["/d/run=7/k=1/x.pq", "/d/run=7/k=2/x.pq"], [{"run": 7, "k": 1}, {"run": 7, "k": 2}]),
        (["/d/a=1/set/b=2/c=x/0.pq", "/d/a=1/set/b=2/c=x/1.pq"], [{"b": 2, "c": "x"}] * 2),
        (["/a=1/0.pq"], [{"a": 1}]),
        (["/d/what?/k=1/x.pq", "/d/what?/k=2/x.pq"], [{"k": 1}, {"k": 2}]),
        (["/d/k=why?/x.pq"], [{"k": "why?"}]),
        (["https://b/run=7/s/k=1/x.pq?sig=a/b=c", "https://b/run=7/s/k=12/x.pq?sig=b"], [{"k": 1}, {"k": 12}]),
        (["s3://b/k=1/x.pq"], [{"k": 1}]),
        (["/d/k=1/x.pq", "s3://b/k=2/x.pq"], [{"k": 1}, {"k": 2}]),
        ([], []),
    ],
)
def test_fields_come_from_below_the_common_folder_and_from_its_end(
    urls: list[str], fields: list[dict[str, Any]]
) -> None:
    assert partition_fields(urls) == fields


def metadata(source: Source) -> list[dict[str, Any]]:
    return [item.metadata for item in source.read(np.arange(len(source))).objects]


def test_a_copy_in_a_folder_named_like_a_partition_is_the_same_data_set(tmp_path: Path) -> None:
    for k in (1, 2):
        (tmp_path / "a" / f"k={k}").mkdir(parents=True)
        pq.write_table(pa.table({"jpg": [b"%d" % k]}), tmp_path / "a" / f"k={k}" / "0.parquet")
    shutil.copytree(tmp_path / "a", tmp_path / "run=7" / "why?")
    first, copy = open_source(tmp_path / "a"), open_source(tmp_path / "run=7" / "why?")
    assert metadata(first) == metadata(copy) == [{"k": 1}, {"k": 2}]
    assert first.fingerprint == copy.fingerprint
    assert metadata(open_source(tmp_path / "run=7" / "why?" / "k=2")) == [{"k": 2}]

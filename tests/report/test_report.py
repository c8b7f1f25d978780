"""The report: numbers that add up, as an object, as JSON and as a table."""

from __future__ import annotations

import json

from curator_dali.report.report import Report, add_up

PARTS = [
    {
        "counts": {"kept": 5, "dropped": 3, "failed": 2},
        "info": {
            "dropped": {"Filter(width)": {"width < 9": 2}, "Filter(tag)": {"tag is missing": 1}},
            "failed": {"decode": {"truncated": 2}},
            "seconds": {"decode": 1.0, "Quality": 0.5, "write": 0.25},
        },
    },
    {
        "counts": {"kept": 0, "dropped": 1, "failed": 0},
        "info": {
            "dropped": {"Filter(width)": {"width < 9": 1}},
            "failed": {},
            "seconds": {"Quality": 0.5, "decode": 1},
        },
    },
]
LABELS = ["Filter(width)", "Quality", "Filter(tag)"]


def report(**more: object) -> Report:
    return Report("flickr", "out", "cpu", **{**add_up(PARTS, LABELS), **more})


def test_parts_add_up() -> None:
    found = report(earlier=1, seconds=2.5)
    assert (found.samples, found.kept, found.num_dropped, found.num_failed, found.parts) == (11, 5, 4, 2, 2)
    assert found.kept + found.num_dropped + found.num_failed == found.samples
    assert found.dropped == {"Filter(width)": {"width < 9": 3}, "Filter(tag)": {"tag is missing": 1}}
    assert found.failed == {"truncated": 2}
    assert list(found.stages.items()) == [("decode", 2.0), ("Quality", 1.0), ("write", 0.25)]
    assert found.images_per_second == 4  # of the ten that this run did


def test_as_json() -> None:
    found = json.loads(json.dumps(report().as_dict()))
    assert found["num_dropped"] == 4
    assert found["dropped"]["Filter(tag)"] == {"tag is missing": 1}


def test_as_a_table() -> None:
    assert report(earlier=1, seconds=2.5).rows() == [
        ("in", "11", "100.0%", "flickr, cpu"),
        ("Filter(width)", "-3", "27.3%", "width < 9"),
        ("Filter(tag)", "-1", "9.1%", "tag is missing"),
        ("failed", "-2", "18.2%", "truncated"),
        ("kept", "5", "45.5%", "out"),
    ]
    text = str(report(earlier=1, seconds=2.5))
    assert "kept            5   45.5%  out" in text
    assert "this run  10 images in 2.50 s: 4 a second" in text


def test_of_nothing() -> None:
    nothing = Report("flickr", "out", "cpu", **add_up([], LABELS))
    assert (nothing.samples, nothing.images_per_second) == (0, 0)
    assert "this run  nothing" in str(nothing)

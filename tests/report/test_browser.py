"""`report.html` in headless Chromium: what a reader sees of it at phone and desk width, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import curator_dali as cd
from tests.view.conftest import EVIL, Frame

PROBE = """(() => {
  const images = [...document.querySelectorAll('img')]
  images.forEach(image => image.loading = 'eager')
  const wide = [...document.querySelectorAll('section *')].filter(one => {
    if (one.closest('table.cd-table, .cd-id')) return false // scrolls in itself, or is cut off
    const box = one.getBoundingClientRect(); return box.width && box.right > innerWidth + 1 })
  return {
    tiles: [...document.querySelectorAll('.cd-tiles dd')].map(one => parseInt(one.textContent)),
    images: images.length, broken: images.filter(one => one.complete && !one.naturalWidth).length,
    width: document.documentElement.scrollWidth, seen: innerWidth, wide: wide.length,
    scripts: document.querySelectorAll('body script, [onerror], [onload]').length,
    sections: [...document.querySelectorAll('section')].map(one => one.id),
    charts: document.querySelectorAll('figure svg').length, thresholds: document.querySelectorAll('.cd-t').length,
    small: Math.min(...[...document.querySelectorAll('figure svg text')].map(one =>
      one.getBoundingClientRect().height)),
    dark: getComputedStyle(document.body).backgroundColor !== 'rgb(255, 255, 255)',
  } })()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_what_is_on_it(browse: Callable[..., Any], hostile: Path, dark: bool) -> None:
    page = (hostile / "report.html").read_text("utf-8")
    # without the policy: markup must do nothing even where scripts may run
    start = page.index('<meta http-equiv="Content-Security-Policy"')
    page = page[:start] + page[page.index(">", start) + 1 :]
    report = cd.Report.load(hostile)
    for found, width in zip(
        browse(Frame(page, 390, PROBE), Frame(page, 1280, PROBE), dark=dark), (390, 1280), strict=True
    ):
        seen = found["probe"]
        assert found["title"] != "hit"
        assert found["title"].startswith(f"Curation of {EVIL[:10]}")
        assert seen["tiles"] == [25, int(report.kept), report.num_dropped, 2]
        assert seen["images"] == int(report.kept) + report.num_dropped + 6  # and two of each of the three groups
        assert seen["broken"] == 0
        assert seen["width"] <= seen["seen"] == width
        assert seen["wide"] == 0
        assert seen["scripts"] == 0
        assert seen["sections"] == [
            "flow", "scores", "kept", "dropped", "duplicates", "failed", "throughput", "lineage"
        ]  # fmt: skip
        assert (seen["charts"], seen["thresholds"]) == (8, 1)
        assert seen["small"] > 9
        assert seen["dark"] is dark

"""Displays in headless Chromium, where it is installed: markup does nothing, nothing overflows, themes read well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from curator_dali.batch.batch import ImageBatch
from curator_dali.errors import ImageError
from curator_dali.loader.results import ErrorList
from curator_dali.view import html
from tests.view.conftest import EVIL, Frame
from tests.view.test_html import part

# Widest line of the page, images that did not load, rows of unequal height, and the contrast of faint text.
PROBE = """(() => {
  const images = [...document.querySelectorAll('.cd-sheet img')], rows = {}
  for (const image of images) {
    const box = image.getBoundingClientRect(); (rows[Math.round(box.top)] ||= []).push(box.height)
  }
  const rgb = text => { // through a canvas, which knows every notation
    const pen = document.createElement('canvas').getContext('2d'); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1)
    return [...pen.getImageData(0, 0, 1, 1).data] }
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0)
  const ground = rgb(getComputedStyle(document.body).backgroundColor)
  const contrast = what => { const [r, g, b, a] = rgb(getComputedStyle(document.querySelector(what)).color)
    const over = [r, g, b].map((v, n) => v * a / 255 + ground[n] * (1 - a / 255))
    const [x, y] = [light(over), light(ground)].sort((m, n) => n - m); return (x + .05) / (y + .05) }
  return {
    width: document.documentElement.scrollWidth, seen: innerWidth, pictures: images.length,
    broken: images.filter(image => !image.naturalWidth).length, rows: Object.keys(rows).length,
    uneven: Object.values(rows).filter(all => Math.max(...all) - Math.min(...all) > 1.5).length,
    scripts: document.querySelectorAll('.cd script, .cd [onerror]').length,
    ink: contrast('.cd-id'), faint: contrast('.cd-note'), dark: light(ground) < .2,
  } })()"""


@pytest.fixture
def page(batch: ImageBatch) -> str:
    errors = ErrorList([ImageError(EVIL, EVIL, EVIL, EVIL)])
    parts = [
        *batch.show(11).parts,
        *batch.show(4, group_by="label").parts,
        batch.to_host()[0]._repr_html_(),
        errors._repr_html_(),
        part("bars", {EVIL: 3}, 10),
        part("histogram", [1, 2, 3], [0, 1, 2, 3], EVIL, (1.0, None)),
        part("table", ["a"] * 12, [["long text " * 5] * 12]),
    ]
    # without the policy that `page` adds: markup must do nothing even where scripts may run
    text = html.page("quiet", parts)
    start = text.index('<meta http-equiv="Content-Security-Policy"')
    return text[:start] + text[text.index(">", start) + 1 :]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_looks_right_on_phone_and_desk(browse: Callable[..., Any], page: str, dark: bool) -> None:
    phone, desk = browse(Frame(page, 390, PROBE), Frame(page, 1280, PROBE), dark=dark)
    for found, width, fewest in ((phone, 390, 6), (desk, 1280, 3)):
        seen = found["probe"]
        assert found["title"] == "quiet"
        assert seen["scripts"] == 0
        assert seen["pictures"] == 15
        assert seen["broken"] == 0
        assert seen["width"] <= seen["seen"] == width
        assert seen["rows"] >= fewest
        assert seen["uneven"] == 0
        assert seen["dark"] is dark
        assert seen["ink"] > 7
        assert seen["faint"] > 4.5  # WCAG AA


def test_notebooks_themes_are_taken_over_and_working_markup_would_be_seen(
    browse: Callable[..., Any], batch: ImageBatch
) -> None:
    shown = batch.show(2)._repr_html_()
    probe = "getComputedStyle(document.querySelector('.cd-id')).color"
    themes = ["--jp-content-font-color1", "--vscode-editor-foreground", "color"]
    pages = [f"<!DOCTYPE html><html><body style='{theme}:rgb(1,2,3)'>{shown}</body></html>" for theme in themes]
    evil = Frame(f"<!DOCTYPE html><html><head><title>quiet</title></head><body>{EVIL}</body></html>")
    *found, hit = browse(*(Frame(page, 600, probe) for page in pages), evil)
    assert [one["probe"] for one in found] == ["rgb(1, 2, 3)"] * 3
    assert [one["title"] for one in found] == [""] * 3
    assert hit["title"] == "hit"

"""The HTML parts: everything is escaped, nothing but thumbnails is loaded, and odd values have an outcome."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_dali.view import html
from tests.view.conftest import EVIL

VOID = {"img", "meta"}
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h3", "h4", "p", "div", "span", "bdi", "img"}
TAGS |= {"h2", "section", "nav", "ul", "li", "a", "dl", "dt", "dd", "figure", "figcaption"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td", "svg", "rect", "line", "text"}


class Reader(HTMLParser):
    """Tags, attributes and text; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def harmless(text: str) -> Reader:
    """Assert that HTML has only the tags and attributes that the package writes."""
    read = Reader(text)
    for tag, attributes in read.tags:
        assert tag in TAGS
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert str(value).startswith("#"), value
            if name == "src":
                assert str(value).startswith("data:image/jpeg;base64,"), value
    return read


def part(name: str, *values: object, **more: object) -> str:
    """What a macro of `parts.html` makes."""
    return getattr(html.macros(), name)(*values, **more)  # type: ignore[no-any-return]


def everything(text: str) -> str:
    cards = [html.Card(text, 3, 2, [text, text], text, text, text), html.Card(text, 3, 2, source=html.data_uri(b"x"))]
    one = {"card": cards[1], "facts": {text: text}}
    return html.block(
        part("note", text),
        part("sheet", cards),
        part("group", text, cards, text),
        html.render("image.html", **one),
        html.render("image.html", **{**one, "card": cards[0]}),
        html.render("rows.html", head=text, header=[text, "b"], rows=[[text, 1], [None, 2]], rest=text),
        html.render("loader.html", about={text: text}, passed={f"name {text}": text, "empty": "", "none": None}),
        part("bars", {text: 3}, 10),
        part("flow", 10, {text: {text: 1}}, {text: 2}, 7),
        part("histogram", [1, 2], [0, 1, 2], text, (0.5, None)),
    )


@given(
    st.text(min_size=1)
    | st.sampled_from([EVIL, "<!--", "]]>", "<style>", "</table>", "javascript:x", "&lt;script&gt;"])
)
def test_any_text_is_only_text(text: str) -> None:
    plain, marked = Reader(everything("a")), harmless(everything(text))
    assert [tag for tag, _ in marked.tags] == [tag for tag, _ in plain.tags]
    harmless(html.page(text, [part("note", text)]))


def test_text_comes_through_as_it_is() -> None:
    read = harmless(part("note", "a < b & \"c\" 'd' naïve 日本 $x$"))
    assert "".join(read.texts) == "a < b & \"c\" 'd' naïve 日本 $x$"


def test_control_characters_are_replaced_and_long_texts_lose_their_middle() -> None:
    assert html.escape("a\0b\x1bc\u202ed") == "a\ufffdb\ufffdc\ufffdd"
    long = html.escape("a" * 1000 + "end")
    assert len(long) == 400
    assert long.endswith("end")
    assert "…" in long


def test_a_notebook_reads_no_mathematics_into_captions() -> None:
    assert {"mathjax_ignore", "tex2jax_ignore"} <= set(str(Reader(html.block()).tags[0][1]["class"]).split())


@pytest.mark.parametrize("source", ["javascript:alert(1)", "http://x/y.jpg", "data:text/html,x", "file:///etc/passwd"])
def test_images_come_from_the_page_itself(source: str) -> None:
    with pytest.raises(ValueError, match=re.escape(source)):
        html.Card("a", source=source)
    html.Card("a", source="thumbs/a:b.jpg")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (float("nan"), ""),
        (np.float32("nan"), ""),
        (True, "yes"),
        (np.bool_(False), "no"),
        (0.123456, "0.123"),
        (np.float32(5.0), "5"),
        (123456.7, "123,457"),
        (float("inf"), "inf"),
        (7, "7"),
        (np.int64(7), "7"),
        ("x", "x"),
    ],
)
def test_numbers_for_people(value: object, expected: str) -> None:
    assert html.number(value) == expected


def test_rows_without_styles_stay_within_a_page() -> None:
    cards = [
        html.Card("a", width, 100, source=html.data_uri(b"x")) for width in (50, 300, 100, 240, 150, 90, 1000, 100)
    ]
    rows = re.findall(r"(?s)<tr.*?</tr>", part("sheet", cards))
    assert len(rows) > 1
    for row in rows:
        assert sum(map(int, re.findall(r' width="(\d+)"', row))) <= 640


@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (100_000, 1), (0, 0), (5, 5)])
def test_extreme_shapes_have_a_card_of_a_usable_shape(width: int, height: int) -> None:
    (aspect,) = re.findall(r"--a:([\d.]+)", part("sheet", [html.Card("a", width, height)]))
    assert 0.8 <= float(aspect) <= 2.4


def test_nothing_to_show_is_nothing() -> None:
    assert part("sheet", []) == ""
    assert "<tr>" not in part("bars", {})
    assert "width:0.00%" in part("bars", {"a": 0})
    with pytest.raises(ValueError, match="one edge more"):
        part("histogram", [1, 2], [0, 1], "a")


def test_flow_counts_down_to_what_was_kept() -> None:
    text = part("flow", 1000, {"Filter": {"score < 5": 30, "size": 200}, "none": {}}, {"truncated": 1}, 769)
    numbers = re.findall(r'cd-num">([^<%]*)</td><td class="cd-num">([\d,]+)<', text)
    assert numbers == [("", "1,000"), ("−1", "999"), ("−200", "799"), ("−30", "769"), ("", "769")]
    assert "0.0%" in part("flow", 0, {}, {}, 0)


def test_flow_of_very_many_reasons_adds_the_small_ones_up() -> None:
    text = part("flow", 1000, {"Own": {f"reason {n}": n for n in range(1, 41)}}, {}, 180)
    assert len(re.findall("<tr>", text)) == 12 + 1 + 2
    assert "28 other reasons" in text
    assert "−406" in text  # 1 + 2 + ... + 28
    assert "other reasons" not in part("flow", 91, {"Own": {f"reason {n}": n for n in range(1, 14)}}, {}, 0)


def test_a_bar_that_a_bound_goes_through_has_both_colours() -> None:
    kinds = re.findall(r'rect class="(cd-.)" x="([\d.]+)"', part("histogram", [5, 5], [0, 1, 2], "a", (0.5, None)))
    assert kinds == [("cd-o", "0.0"), ("cd-b", "130.0"), ("cd-b", "260.0")]


def test_histogram_draws_what_is_kept_in_colour() -> None:
    read = harmless(part("histogram", [1, 4, 2, 0], [0, 1, 2, 3, 4], "score", (2.0, None)))
    kinds = [attributes["class"] for tag, attributes in read.tags if tag == "rect"]
    assert kinds == ["cd-o", "cd-o", "cd-b", "cd-b"]
    heights = [float(str(attributes["height"])) for tag, attributes in read.tags if tag == "rect"]
    assert heights == [30, 120, 60, 0]
    assert [attributes["class"] for tag, attributes in read.tags if tag == "line" and "class" in attributes] == ["cd-t"]

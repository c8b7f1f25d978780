"""Patterns: the paths, URLs and globs that a user's text stands for."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from curator_dali.io.ranges import filesystem, strip_query
from curator_dali.io.remote import is_http, is_remote

__all__ = ["Pattern", "expand_braces", "read_patterns"]

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_MAGIC = re.compile(r"[*?\[]")


class Pattern(NamedTuple):
    """A path, a URL or a glob of either."""

    url: str
    is_glob: bool

    @property
    def head(self) -> str:
        """The folder that stands before the wildcards of a glob."""
        head = _MAGIC.split(self.url, maxsplit=1)[0].rpartition("/")[0]
        return head if is_remote(self.url) else os.path.abspath(head or ("/" if self.url[0] == "/" else "."))


def read_patterns(text: str) -> list[Pattern]:
    """Find the paths, URLs and globs that a text stands for.

    A file or folder of the very name that a text, or a part of a brace list, spells goes before a glob. In the URL of a
    web server a `?` begins the query; elsewhere it is a wildcard, or a part of a name.
    """
    text = text if is_remote(text) else os.path.expanduser(text)
    urls = expand_braces(text)
    if urls != [text] and _is_there(text):
        return [Pattern(text, False)]
    return [Pattern(url, bool(_MAGIC.search(strip_query(url))) and not _is_there(url)) for url in urls]


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{000..099}` (and `{0..8..2}`) as a shell does; other braces stand for themselves."""
    for match in _BRACES.finditer(pattern):
        body = match[1]
        if numbers := _RANGE.fullmatch(body):
            begin, end, step = int(numbers[1]), int(numbers[2]), abs(int(numbers[3] or 1)) or 1
            padded = any(len(text) > 1 and text.lstrip("-").startswith("0") for text in (numbers[1], numbers[2]))
            width = max(len(numbers[1]), len(numbers[2])) if padded else 0
            step = step if end >= begin else -step
            choices = [f"{value:0{width}d}" for value in range(begin, end + (1 if step > 0 else -1), step)]
        elif "," in body:
            choices = body.split(",")
        else:
            continue
        head, tail = pattern[: match.start()], pattern[match.end() :]
        return [url for choice in choices for url in expand_braces(f"{head}{choice}{tail}")]
    return [pattern]


def _is_there(url: str) -> bool:
    """Whether a file or folder has a name that reads like a glob or a brace list. Web servers may answer to any."""
    if not is_remote(url) or os.path.exists(url):  # "a::b.jpg" may be a file
        return os.path.exists(url)
    if is_http(url) and ("*" in url or not _MAGIC.search(strip_query(url))):
        return False
    fs, path = filesystem(url)
    try:
        return bool(fs.exists(path))
    except Exception:  # the reader of the glob meets the reason
        return False

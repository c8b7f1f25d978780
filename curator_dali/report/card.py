"""The dataset card of an output, by which Hugging Face's `datasets` knows what to load."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from curator_dali.errors import OutputError
from curator_dali.io import store
from curator_dali.io.files import IMAGE_EXTENSIONS, write_file
from curator_dali.io.store import explained, join
from curator_dali.outputs.manifest import Manifest, Part
from curator_dali.outputs.tar import CURATION

__all__ = ["CARD", "leave_card"]

CARD = "README.md"

# One configuration: `datasets` reads all that a card names with the reader of the first one's files.
_TEXT = """\
---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: "*{ending}"
{info}---

# An output of curator_dali

`load_dataset("parquet", data_files="PATH/*.parquet")` reads a row for every sample: what became of it, why, and its
scores. `load_dataset("PATH")` reads {about}.
"""
_CONFIGS = {
    ".tar": ("samples", "the samples that were kept, from the tars"),
    ".parquet": ("rows", "these rows, too"),
}
_MARK = "\n<!-- as written: {digest} -->\n"  # a card that was changed since is the user's own

# Types of the members that `datasets` decodes by their extensions. A JSON member is `json`, since fields of samples
# differ; an extension that is neither here nor an image's leaves all types to `datasets`.
_TYPES = {"txt": "string", "text": "string", "cls": "int64", "json": "json"}


def leave_card(manifest: Manifest) -> None:
    """Write `README.md` into an output with files in it. Another one, of the user's own, stays as it is.

    Raises:
        OutputError: It cannot be written.
    """
    parts = manifest.parts()
    names = [file.name for part in parts for file in part.files]
    ending = next((ending for ending in _CONFIGS if any(name.endswith(ending) for name in names)), None)
    url = join(manifest.folder, CARD)
    if ending is None:
        return
    card = _make_card(ending, _features(parts) if ending == ".tar" else {})
    if CARD in store.names(manifest.folder) and ((there := _read(url)) == card or not _is_ours(there)):
        return
    with explained(url):
        write_file(url, card)


def _make_card(ending: str, features: Mapping[str, str]) -> bytes:
    """The card of an output with tars, or with Parquet files alone; `features` are column -> type."""
    config, about = _CONFIGS[ending]
    lines = [f"  - name: {json.dumps(name)}\n    dtype: {kind}\n" for name, kind in features.items()]
    info = "".join([f"dataset_info:\n  config_name: {config}\n  features:\n", *lines]) if features else ""
    text = _TEXT.format(config=config, ending=ending, info=info, about=about)
    return (text + (_MARK.format(digest=_digest(text)) if info else "")).encode()


def _features(parts: Sequence[Part]) -> dict[str, str]:
    """The columns that `datasets` makes of the tars, with their types; none where it finds these itself, or must.

    `datasets` goes by the first five samples. Where others have other members, it leaves images of another format out
    without a word, and fails where only some samples have a caption.
    """
    with_tars = [part for part in parts if any(file.name.endswith(".tar") for file in part.files)]
    if not all("members" in part.info for part in with_tars):  # of an earlier version
        return {}
    counts: Counter[str] = Counter()
    for part in with_tars:
        counts.update(part.info["members"])
    if set(counts.values()) <= {sum(part.counts.get("kept", 0) for part in with_tars)}:
        return {}
    kinds = {name: _type_of(name) for name in sorted(counts, key=_place)}
    return {**kinds, "__key__": "string", "__url__": "string"} if all(kinds.values()) else {}


def _type_of(name: str) -> str:
    """The type of the members with an extension; empty for an unknown one."""
    ending = name.rpartition(".")[2].lower()
    return "image" if ending in IMAGE_EXTENSIONS else _TYPES.get(ending, "")


def _place(name: str) -> tuple[int, str]:
    """Images come first, what the curation wrote comes last."""
    return 2 if name == CURATION else 0 if _type_of(name) == "image" else 1, name


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read(url: str) -> bytes:
    """The content of a card; nothing of a folder, or of a file that may not be read."""
    try:
        return store.read(url) or b""
    except OutputError:
        return b""


def _is_ours(card: bytes) -> bool:
    """Whether a card is as it was written here, so that nothing of the user's is lost with it."""
    if card in [_make_card(ending, {}) for ending in _CONFIGS]:
        return True
    text = card.decode("utf-8", "replace")
    body, mark, _ = text.rpartition(_MARK.partition("{")[0])
    return bool(mark) and text == body + _MARK.format(digest=_digest(body))

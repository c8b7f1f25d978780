"""The dataset card of an output, by which Hugging Face's `datasets` knows what to load."""

from __future__ import annotations

from curator_dali.errors import OutputError
from curator_dali.files import write_file
from curator_dali.sinks import store
from curator_dali.sinks.explain import explained, join
from curator_dali.sinks.manifest import Manifest

__all__ = ["CARD", "leave_card"]

CARD = "README.md"

# One configuration: `datasets` reads all that a card names with the reader of the first one's files.
_TEXT = """\
---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: "{pattern}"
---

# An output of curator_dali

`load_dataset("parquet", data_files="PATH/*.parquet")` reads a row for every sample: what became of it, why, and its
scores. `load_dataset("PATH")` reads {about}.
"""
_CARDS = {
    "*.tar": _TEXT.format(config="samples", pattern="*.tar", about="the samples that were kept, from the tars"),
    "*.parquet": _TEXT.format(config="rows", pattern="*.parquet", about="these rows, too"),
}


def leave_card(manifest: Manifest) -> None:
    """Write `README.md` into an output with files in it. Another one, of the user's own, stays as it is.

    Raises:
        OutputError: It cannot be written.
    """
    names = [file.name for part in manifest.parts() for file in part.files]
    pattern = next((pattern for pattern in _CARDS if any(name.endswith(pattern[1:]) for name in names)), None)
    url = join(manifest.folder, CARD)
    if pattern is None or (CARD in store.names(manifest.folder) and not _is_ours(url)):
        return
    with explained(url):
        write_file(url, _CARDS[pattern].encode())


def _is_ours(url: str) -> bool:
    """Whether a card is as it was written here, so that nothing of the user's is lost with it."""
    try:
        return store.read(url) in [card.encode() for card in _CARDS.values()]
    except OutputError:  # a folder, or one that may not be read
        return False

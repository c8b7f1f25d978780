"""An index of an output: its kept images, stored so that new images are looked up without reading all of it.

`write_index` makes one beside an output, `open_index` finds it. `Deduplicate(against=...)` and `leaks` look new images
up in it; the cost goes with the new images.
"""

from __future__ import annotations

from curator_dali.index.earlier import Comparison, Matches, check_earlier, embedder_lineage, match_earlier
from curator_dali.index.index import Index, open_index, write_index
from curator_dali.index.keys import KeyIndex, KeyList, hash_texts
from curator_dali.index.lookup import HashIndex

__all__ = [
    "Comparison",
    "HashIndex",
    "Index",
    "KeyIndex",
    "KeyList",
    "Matches",
    "check_earlier",
    "embedder_lineage",
    "hash_texts",
    "match_earlier",
    "open_index",
    "write_index",
]

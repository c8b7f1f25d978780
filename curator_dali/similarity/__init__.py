"""What is alike: hashes and digests, near hashes, cosines of embeddings, groups. Pure functions on arrays.

Exact duplicates are `same_digests` of `content_hash` or `pixel_hash`; near ones are `near_pairs` of `phash` or `dhash`;
semantic ones are `similar_pairs` of embeddings. `group` makes groups of pairs and says what to keep, `combine`
does so for several ways of being alike at once. `pairs_between`,
`near_between` and `nearest` compare one set with another and never a set with itself.
"""

from curator_dali.similarity.clusters import Clusters, divide, few, pairs_between, similar_pairs
from curator_dali.similarity.cosine import nearest
from curator_dali.similarity.groups import Combined, Groups, Keep, Likeness, Linkage, combine, group, keep_order
from curator_dali.similarity.hamming import near_between, near_pairs
from curator_dali.similarity.hashes import (
    CONSTANT_HASHES,
    content_hash,
    dhash,
    find_comparable,
    from_hex,
    grey,
    hash_images,
    phash,
    pixel_hash,
    same_digests,
    to_hex,
)
from curator_dali.similarity.pairs import MAX_PAIRS, Pairs, TooManyPairs, bad_rows

__all__ = [
    "CONSTANT_HASHES",
    "MAX_PAIRS",
    "Clusters",
    "Combined",
    "Groups",
    "Keep",
    "Likeness",
    "Linkage",
    "Pairs",
    "TooManyPairs",
    "bad_rows",
    "combine",
    "content_hash",
    "dhash",
    "divide",
    "few",
    "find_comparable",
    "from_hex",
    "grey",
    "group",
    "hash_images",
    "keep_order",
    "near_between",
    "near_pairs",
    "nearest",
    "pairs_between",
    "phash",
    "pixel_hash",
    "same_digests",
    "similar_pairs",
    "to_hex",
]

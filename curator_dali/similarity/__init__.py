"""Images that are alike: hashes and digests, near hashes, cosines of embeddings, groups. Pure functions on arrays.

Exact duplicates are `same_digests` of `content_hash` or `pixel_hash`; near ones are `near_pairs` of `phash` or `dhash`;
semantic ones are `similar_pairs` of embeddings. `group` makes groups of pairs and says which rows to keep,
`combine` does so for several comparisons at once. `pairs_between`, `near_between` and `nearest` compare one set with
another and never a set with itself.
"""

from __future__ import annotations

from curator_dali.similarity.clusters import (
    Clusters,
    assign,
    assign_blocks,
    assign_rows,
    divide,
    drawn_rows,
    few,
    find_clusters,
    join_cluster,
    kmeans,
    must_join_all,
    pairs_between,
    similar_pairs,
    split_limit,
)
from curator_dali.similarity.cosine import block_rows, collect, join, join_self, nearest
from curator_dali.similarity.groups import Grouping, Keep, Linkage, MatchSet, combine, group, keep_order
from curator_dali.similarity.hamming import compare, near_between, near_pairs
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
from curator_dali.similarity.pairs import (
    MAX_PAIRS,
    Collector,
    Pairs,
    Picked,
    TooManyPairs,
    Vectors,
    as_vectors,
    bad_rows,
    blocks,
    check_threshold,
    sort_by_label,
)

__all__ = [
    "CONSTANT_HASHES",
    "MAX_PAIRS",
    "Clusters",
    "Collector",
    "Grouping",
    "Keep",
    "Linkage",
    "MatchSet",
    "Pairs",
    "Picked",
    "TooManyPairs",
    "Vectors",
    "as_vectors",
    "assign",
    "assign_blocks",
    "assign_rows",
    "bad_rows",
    "block_rows",
    "blocks",
    "check_threshold",
    "collect",
    "combine",
    "compare",
    "content_hash",
    "dhash",
    "divide",
    "drawn_rows",
    "few",
    "find_clusters",
    "find_comparable",
    "from_hex",
    "grey",
    "group",
    "hash_images",
    "join",
    "join_cluster",
    "join_self",
    "keep_order",
    "kmeans",
    "must_join_all",
    "near_between",
    "near_pairs",
    "nearest",
    "pairs_between",
    "phash",
    "pixel_hash",
    "same_digests",
    "similar_pairs",
    "sort_by_label",
    "split_limit",
    "to_hex",
]

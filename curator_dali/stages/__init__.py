"""Stages of a curation: `ImageBatch` to `ImageBatch`. They know no source and no decoder."""

from __future__ import annotations

from curator_dali.stages.base import GlobalSelector, Reason, ScoredRows, Selector, Stage, View, Workers
from curator_dali.stages.deduplicate import Deduplicate, embeddings_of
from curator_dali.stages.embed import NSFW, Aesthetic, CLIPScore, Embed, ZeroShotTags
from curator_dali.stages.file_info import FileInfo
from curator_dali.stages.filter import Filter
from curator_dali.stages.lists import Exclude, Include
from curator_dali.stages.plan import HEADER_FIELDS, Plan, check_type, make_plan, written
from curator_dali.stages.quality import Quality

__all__ = [
    "HEADER_FIELDS",
    "NSFW",
    "STAGES",
    "Aesthetic",
    "CLIPScore",
    "Deduplicate",
    "Embed",
    "Exclude",
    "FileInfo",
    "Filter",
    "GlobalSelector",
    "Include",
    "Plan",
    "Quality",
    "Reason",
    "Scored",
    "ScoredRows",
    "Selector",
    "Stage",
    "View",
    "Workers",
    "ZeroShotTags",
    "check_type",
    "embeddings_of",
    "make_plan",
    "written",
]

Scored = ScoredRows
"""The earlier name of `ScoredRows`."""

STAGES: dict[str, type[Stage]] = {
    kind.__name__: kind
    for kind in (
        Embed,
        Aesthetic,
        NSFW,
        CLIPScore,
        ZeroShotTags,
        Quality,
        FileInfo,
        Filter,
        Exclude,
        Include,
        Deduplicate,
    )
}
"""Name -> kind of stage, as configuration files have them."""

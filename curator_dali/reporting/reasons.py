"""What kind of reason a reason is, by the stages that an output's settings name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curator_dali.errors import StageError, kind_of_failure
from curator_dali.sinks.manifest import labels_of
from curator_dali.stages import STAGES, GlobalSelector, Selector, Stage

__all__ = ["Kinds", "Threshold", "thresholds"]

logger = logging.getLogger(__name__)

Threshold = tuple[float | None, float | None]


class Kinds:
    """Tells what kind of reason a row's reason is, as the counts of the output have it.

    Args:
        settings: Of the output's manifest.
        counted: Stage -> kinds of reasons that occur, for stages that cannot be made again from their settings.
    """

    def __init__(self, settings: Mapping[str, Any], counted: Mapping[str, Mapping[str, int]]) -> None:
        self._counted = {stage: list(kinds) for stage, kinds in counted.items()}
        self._makers: dict[str, Callable[[str], str]] = {}
        stages = settings.get("stages", [])
        made = [_made(stage) for stage in stages]
        names = [_name(known) if stage is None else stage.name for known, stage in zip(stages, made, strict=True)]
        for label, stage in zip(labels_of(names), made, strict=True):
            if isinstance(stage, (Selector, GlobalSelector)):
                self._makers[label] = stage.kind

    def __call__(self, status: str, stage: str, reason: str) -> str:
        """The kind; the reason itself where nothing is known of it."""
        if status == "failed":
            return kind_of_failure(reason)
        known = self._counted.get(stage, [])
        if len(known) == 1:
            return known[0]
        if maker := self._makers.get(stage):
            return maker(reason)
        words = reason.split()
        return max((kind for kind in known if _within(kind.split(), words)), key=len, default=reason)


def thresholds(settings: Mapping[str, Any]) -> dict[str, Threshold]:
    """Field -> the least and the largest value that its filters keep, as an output's settings have them."""
    found: dict[str, Threshold] = {}
    for stage in settings.get("stages", []):
        if stage.get("type") == "Filter":
            low, high = found.get(stage["field"], (None, None))
            lows = [bound for bound in (low, stage.get("min")) if bound is not None]
            highs = [bound for bound in (high, stage.get("max")) if bound is not None]
            found[stage["field"]] = (max(lows, default=None), min(highs, default=None))
    return found


def _made(settings: Mapping[str, Any]) -> Stage | None:
    """The stage, if it can be made again from its settings; nothing is loaded for it."""
    kind = STAGES.get(settings.get("type", ""))
    try:
        if kind is not None:
            return kind(**{name: value for name, value in settings.items() if name != "type"})
    except (StageError, TypeError, ValueError) as error:  # a function is recorded by its name only
        logger.debug("%s is not made again: %s", settings.get("type"), error)
    return None


def _name(settings: Mapping[str, Any]) -> str:
    """The name of a stage that cannot be made again, unless its class calls itself otherwise."""
    kind = settings.get("type", "")
    return f"Filter({settings.get('field')})" if kind == "Filter" else kind


def _within(some: Sequence[str], words: Sequence[str]) -> bool:
    """Whether all of some words are among others, in their order."""
    rest = iter(words)
    return all(word in rest for word in some)

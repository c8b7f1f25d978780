"""The numbers of a `Report` that can be looked at: how many were kept, dropped or failed, and which these are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Count", "Counts"]


class _Selectable:
    """A number of samples of an output, or numbers by reason. Like `viewing`, it calls what lies above it."""

    _out = ""
    _status = ""
    _stages: tuple[str, ...] = ()

    def of(self, out: str, status: str, stages: tuple[str, ...] = ()) -> Any:
        """Say which output and which status it counts; returns itself."""
        self._out, self._status, self._stages = out, status, stages
        return self

    def __call__(self, which: str | None = None, *, source: Any = None) -> Any:
        """The samples, a `reporting.Selection` to look at or to load: `report.dropped("nsfw_score").show()`.

        Args:
            which: Of what was dropped: a stage ("Filter(nsfw_score)"), the field that it looks at ("nsfw_score"), or a
                reason ("nsfw_score > 0.2"). Of what failed: a reason ("truncated"). None: all.
            source: The data set, where the output does not say how to open it, or it has moved.

        Raises:
            KeyError: No stage, field or reason is called that; names those that are.
        """
        from curator_dali.reporting.selection import select

        counts: Mapping[str, Any] = self if isinstance(self, dict) else {}
        total = int(self) if isinstance(self, int) else None
        return select(self._out, self._status, which, counts, self._stages, total, source)

    def show(self, n: int = 24, *, sort_by: str | None = None, descending: bool = False) -> Any:
        """A contact sheet of all of them; see `Selection.show`."""
        return self().show(n, sort_by=sort_by, descending=descending)


class Count(_Selectable, int):
    """A number, as any other, that can be looked at."""


class Counts(_Selectable, dict[str, Any]):
    """Numbers by reason, or by stage and reason, that can be looked at."""

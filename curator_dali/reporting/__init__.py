"""A curation's report: `report.html`, and what a `Report` shows in a notebook."""

from __future__ import annotations

from curator_dali.reporting.selection import Selection
from curator_dali.reporting.writing import leave_report, load_report, write_report

__all__ = ["Selection", "leave_report", "load_report", "write_report"]

"""A finished output, looked at: its report, selections of its samples, searches and duplicates."""

from __future__ import annotations

from curator_dali.report.matches import DuplicateGroup, Found, Leak, duplicate_groups, leaks, search
from curator_dali.report.page import leave_report, write_report
from curator_dali.report.report import Report, count_parts
from curator_dali.report.scan import find_kinds

__all__ = [
    "DuplicateGroup",
    "Found",
    "Leak",
    "Report",
    "count_parts",
    "duplicate_groups",
    "find_kinds",
    "leaks",
    "leave_report",
    "search",
    "write_report",
]

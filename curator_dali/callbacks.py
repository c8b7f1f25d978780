"""What is called where nobody listens."""

from __future__ import annotations

__all__ = ["ignore"]


def ignore(*_: object) -> None:
    """Do nothing."""

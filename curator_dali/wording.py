"""Plain text for people, in a terminal as in a browser."""

from __future__ import annotations

__all__ = ["count", "terminal_safe"]


def count(number: int, word: str, plural: str = "s") -> str:
    """`1 image`, `1,234 images`."""
    return f"{number:,} {word}{'' if number == 1 else plural}"


def terminal_safe(text: str) -> str:
    """A line in which control characters are question marks: a name must not steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)

"""Exceptions, the record of one bad image (`ImageError`), and the wording of messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_PASS_ENDED = (
    "this pass was ended by another iter(), set_epoch(), load_state_dict() or close() of its loader, which has one "
    "pass at a time. Give each loop a loader of its own; peek() shows images in the middle of a pass"
)


class CuratorDaliError(Exception):
    """Base of every exception that curator_dali raises on its own account."""


class SourceError(CuratorDaliError):
    """A source cannot be opened or read at all (not: one bad image in it)."""


class OutputError(CuratorDaliError):
    """An output cannot be written, or an earlier one cannot be read or does not fit what is to be done with it."""


class StageError(CuratorDaliError, ValueError):
    """Stages that do not fit together, or a setting that a stage cannot take; raised before work starts."""


class PassEndedError(CuratorDaliError):
    """An iterator of a loader was asked for a batch after its pass had been ended from outside."""

    def __init__(self, message: str = _PASS_ENDED) -> None:
        super().__init__(message)


class TooManyErrors(CuratorDaliError):
    """The share of bad images passed `max_error_rate`."""


@dataclass(eq=True)
class ImageError(CuratorDaliError):
    """One bad image: which one, where it lies, and why it could not be used.

    With `on_error="skip"` the loader collects these in `loader.errors`; with `"raise"` the first is raised.

    Attributes:
        image_id: The sample's key, as in `ImageObject.image_id`.
        image_path: URL of the member, as in `ImageObject.image_path`.
        shard: The file that holds it (a tar, a Parquet file), or the folder.
        reason: Why, in one line.
        index: The sample's index in its source; -1 as long as tars before the sample's are not indexed.
        unread: Whether the image could not be read now, so that nothing is known of it (a file that is gone or changed,
            a store that does not answer).
    """

    image_id: str
    image_path: str
    shard: str
    reason: str
    index: int = -1
    unread: bool = False

    def __str__(self) -> str:
        return f"image {self.image_id!r} ({self.image_path}): {self.reason}"

    def __reduce__(self) -> tuple[type[ImageError], tuple[Any, ...]]:
        return ImageError, (self.image_id, self.image_path, self.shard, self.reason, self.index, self.unread)

    __hash__ = CuratorDaliError.__hash__


def kind_of_failure(reason: str) -> str:
    """Why a sample failed, without what is particular to it: "cannot be decoded: ..." is "cannot be decoded"."""
    return reason.partition(":")[0]


def count(number: int, word: str, plural: str = "s") -> str:
    """`1 image`, `1,234 images`."""
    return f"{number:,} {word}{'' if number == 1 else plural}"


def terminal_safe(text: str) -> str:
    """A line in which control characters are question marks: a name must not steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)

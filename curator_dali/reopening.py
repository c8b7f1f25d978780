"""The data set that an output is of, opened again."""

from __future__ import annotations

from typing import Any

from curator_dali.errors import SourceError
from curator_dali.sinks import Manifest
from curator_dali.sources import Source, open_source, reopen

__all__ = ["reopen_source"]


def reopen_source(manifest: Manifest, source: Any = None) -> Source:
    """The data set that an output is of.

    Args:
        manifest: The output's.
        source: The data set, where it is known better than recorded.

    Raises:
        SourceError: It is not recorded how to open it, it is gone, or it is another one by now.
    """
    origin = manifest.run.get("origin")
    if source is None and origin is None:
        raise SourceError(
            f"{manifest.folder} does not say how its data set is opened again (it was given as an object): give source="
        )
    try:
        opened = reopen(origin) if source is None and origin is not None else open_source(source)
    except SourceError as error:
        hint = "" if source is not None else " If it has moved, give source="
        raise SourceError(f"the data set of {manifest.folder} cannot be opened again: {error}.{hint}") from error
    if opened.fingerprint != manifest.run["source"]:
        name, samples = opened.name, len(opened)
        if opened is not source:
            opened.close()
        raise SourceError(
            f"{name!r} ({samples:,} samples) is not the data set that {manifest.folder} ({manifest.samples:,} samples) "
            "was made of, was changed, or was curated by an earlier version, whose fingerprints are others: give the "
            "same data set as source=, or curate again"
        )
    return opened

"""Where a model's files lie: a folder, NeMo Curator's layout, or the Hugging Face hub and its cache."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from pathlib import Path

from curator_dali.errors import CuratorDaliError
from curator_dali.models.weights import FILE_ENDINGS

__all__ = ["MODELS_VARIABLE", "WeightsNotFoundError", "find_directory", "find_file", "is_hub_id", "weight_files"]

logger = logging.getLogger(__name__)

MODELS_VARIABLE = "CURATOR_DALI_MODELS"
"""Environment variable: a folder of models, laid out as NeMo Curator's model_dir: OWNER/NAME/files."""

_EXAMPLE = "openai/clip-vit-large-patch14"


class WeightsNotFoundError(CuratorDaliError, FileNotFoundError):
    """No weights in any of the places that were looked in."""


def find_directory(
    spec: str | Path, *, marker: str = "config.json", default: str = "", revision: str | None = None, how: str = ""
) -> Path:
    """The folder of a model, from a folder or a hub id.

    Looked in, in this order: `spec` as a folder; below it, `default` in NeMo Curator's layout; for a hub id also
    $CURATOR_DALI_MODELS/OWNER/NAME, then the Hugging Face hub (its cache, where the network cannot be reached).

    Args:
        spec: A folder with the model's files, a folder of models (`MODEL_DIR/OWNER/NAME`), or `OWNER/NAME`.
        marker: A file that makes a folder a model's; a pattern.
        default: The `OWNER/NAME` that is meant where `spec` is a folder of models.
        revision: Of the hub's repository: a commit, tag or branch.
        how: How to get it, where it is on no hub.

    Raises:
        WeightsNotFoundError: Nowhere; says every place, and how to get it.
    """
    folder = Path(spec).expanduser()
    places = [folder, *([folder / default] if default else [])]
    models = os.environ.get(MODELS_VARIABLE)
    hub_id = str(spec) if is_hub_id(spec) else ""
    if hub_id and models:
        places.append(Path(models).expanduser() / hub_id)
    for place in places:
        if place.is_dir() and any(place.glob(marker)):
            return place
    tried = [f"{place}/{marker} ({_why_not(place)})" for place in places]
    if hub_id:
        if not models:
            tried.append(f"${MODELS_VARIABLE}/{hub_id} (the variable is not set)")
        found, why = _from_hub(hub_id, marker, revision)
        if found:
            return found
        tried.append(f"the Hugging Face hub, {hub_id} ({why})")
    if not how:
        get = hub_id or default
        how = _download(get) if get else f"Give a folder that holds it, or a hub id, as {_EXAMPLE}"
    raise WeightsNotFoundError(f"no model at {str(spec)!r}. Looked in: {'; '.join(tried)}. {how}")


def find_file(spec: str | Path, default: str, filename: str, *, how: str = "") -> Path:
    """One file of weights, from the file, its folder, a folder of models or a hub id.

    Args:
        spec: The file (.safetensors, .pth, .pt, .bin), or as for `find_directory`.
        default: The `OWNER/NAME` that the file belongs to.
        filename: Its name there.
        how: How to get it, where it is on no hub.

    Raises:
        WeightsNotFoundError: Nowhere; says every place, and how to get it.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    if path.suffix in FILE_ENDINGS and not path.is_dir():
        raise WeightsNotFoundError(f"no weights at {str(path)!r}: there is no such file. {how or _download(default)}")
    return find_directory(spec, marker=filename, default=default, how=how) / filename


def _download(hub_id: str) -> str:
    folder = f"MODELS/{hub_id}"
    return f"Get it where there is a network: hf download {hub_id} --local-dir {folder}, and give that folder"


def is_hub_id(spec: str | Path) -> bool:
    """Whether a text has the form OWNER/NAME."""
    return isinstance(spec, str) and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", spec))


def _why_not(place: Path) -> str:
    if not place.exists():
        return "no such folder"
    return "the folder has no such file" if place.is_dir() else "a file, not a folder"


def _from_hub(hub_id: str, marker: str, revision: str | None) -> tuple[Path | None, str]:
    """The folder that the hub's client has, after downloading what is missing; or why there is none."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None, "huggingface_hub is not installed: pip install 'curator-dali[curate]'"
    texts = ["*.json", "*.txt", "*.model"]
    try:
        # no weights in formats that nobody here reads, and not the folders of ONNX and the like
        for patterns in ([*texts, "*.safetensors"], [*texts, "pytorch_model*.bin", marker]):
            folder = Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
            )
            if any(folder.glob(marker)) and weight_files(folder):
                return folder, ""
        return None, f"it has no {marker} with weights"
    except Exception as error:  # each cause has its own class: no network, no such repository, gated, disk full
        logger.debug("the hub did not give %s", hub_id, exc_info=True)
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a model's folder: safetensors, or where there are none PyTorch's."""
    names = sorted(path for path in folder.iterdir() if path.is_file())
    safe = [path for path in names if path.suffix == ".safetensors"]
    return safe or [path for path in names if fnmatch.fnmatch(path.name, "pytorch_model*.bin")]

"""Weights: found in a folder or on the hub, read without running code, and recorded."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.errors import CuratorDaliError
from curator_dali.transforms import Transform

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MODELS_VARIABLE = "CURATOR_DALI_MODELS"
"""Environment variable: a folder of models, laid out as NeMo Curator's model_dir: OWNER/NAME/files."""

_EXAMPLE = "openai/clip-vit-large-patch14"
_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")  # of a model's folder
_FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
_HASH_BLOCK = 4 << 20  # bytes read at a time


class WeightsError(CuratorDaliError, ValueError):
    """A file of weights is not what the model needs."""


class WeightsNotFoundError(CuratorDaliError, FileNotFoundError):
    """No weights in any of the places that were looked in."""


def need(module: str, package: str | None = None) -> ImportError:
    """The error for an optional library that does not import, with the fix."""
    return ImportError(
        f"this model needs {package or module}, which does not import here; "
        f"install it with: pip install 'curator-dali[curate]'",
        name=module,
    )


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
    tried = []
    for place in places:
        why = "the folder has no such file" if place.is_dir() else "a file, not a folder"
        tried.append(f"{place}/{marker} ({why if place.exists() else 'no such folder'})")
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
    if path.suffix in _FILE_ENDINGS and not path.is_dir():
        raise WeightsNotFoundError(f"no weights at {str(path)!r}: there is no such file. {how or _download(default)}")
    return find_directory(spec, marker=filename, default=default, how=how) / filename


def _download(hub_id: str) -> str:
    folder = f"MODELS/{hub_id}"
    return f"Get it where there is a network: hf download {hub_id} --local-dir {folder}, and give that folder"


def is_hub_id(spec: str | Path) -> bool:
    """Whether a text has the form OWNER/NAME."""
    return isinstance(spec, str) and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", spec))


def _from_hub(hub_id: str, marker: str, revision: str | None) -> tuple[Path | None, str]:
    """The folder that the hub's client has, after downloading what is missing; or why there is none."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None, "huggingface_hub is not installed: pip install 'curator-dali[curate]'"
    texts, (safe, other) = ["*.json", "*.txt", "*.model"], _WEIGHT_PATTERNS
    try:
        # no weights in formats that nobody here reads, and not the folders of ONNX and the like
        for patterns in ([*texts, safe], [*texts, other, marker]):
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
    kinds = (sorted(path for path in folder.glob(kind) if path.is_file()) for kind in _WEIGHT_PATTERNS)
    return next(filter(None, kinds), [])


def load_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file under their names, on the host. Runs no code from the file.

    Raises:
        WeightsError: The file is damaged, holds something else than tensors, or is of another kind.
        ImportError: It is a .safetensors file and safetensors is not installed.
    """
    import torch

    path = Path(path)
    if path.suffix not in _FILE_ENDINGS:
        raise WeightsError(
            f"{path}: cannot read weights from a {path.suffix or 'file without ending'}; "
            f"known are {', '.join(_FILE_ENDINGS)}"
        )
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError:
                raise need("safetensors") from None
            return dict(load_file(path, device="cpu"))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ImportError):
        raise
    except Exception as error:  # UnpicklingError, SafetensorError, RuntimeError, EOFError, ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} is damaged or holds something else than tensors: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds {type(state).__name__}, not tensors under names; give a state_dict")
    return state


def check_state(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, torch.Tensor]:
    """Exactly the tensors that a model needs, of these shapes, in float32; `what` names the model in the error.

    Raises:
        WeightsError: Names are missing or unknown, or shapes differ.
    """
    import torch

    wrong = [f"{name} is missing" for name in shapes if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in shapes]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if wrong:
        raise WeightsError(f"these are no weights of {what}: {'; '.join(wrong[:5])}{'; ...' if len(wrong) > 5 else ''}")
    return {name: state[name].detach().to(torch.float32) for name in shapes}


_hashes: dict[tuple[str, int, int], str] = {}
_hashing = threading.Lock()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex; read once a process as long as its size and time of change stay."""
    real = os.path.realpath(path)
    stat = os.stat(real)
    key = (real, stat.st_size, stat.st_mtime_ns)
    with _hashing:  # two stages on the same weights read them once
        if key not in _hashes:
            digest = hashlib.sha256()
            with open(real, "rb") as file:
                while block := file.read(_HASH_BLOCK):
                    digest.update(block)
            _hashes[key] = digest.hexdigest()
        return _hashes[key]


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors under their names, whatever file they came from: names, dtypes, shapes and values."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def lineage_of(
    model: str,
    hashes: Mapping[str, str],
    *,
    dtype: str,
    view: Sequence[Transform] = (),
    libraries: Sequence[str] = ("torch",),
) -> dict[str, Any]:
    """Describe a model for the records of an output, as plain JSON. `hashes` are those of its files of weights."""
    versions = {"curator-dali": _version("curator-dali")} | {name: _version(name) for name in libraries}
    found: dict[str, Any] = {"model": model, "weights": dict(hashes), "dtype": dtype, "versions": versions}
    return found | ({"view": repr(tuple(view))} if view else {})


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

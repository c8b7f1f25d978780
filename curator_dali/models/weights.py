"""How weights are read, never by running code from a file, and what records say of them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.errors import CuratorDaliError
from curator_dali.transforms.base import Transform

if TYPE_CHECKING:
    import torch

__all__ = ["FILE_ENDINGS", "WeightsError", "check_state", "lineage_of", "load_state", "need", "sha256", "state_sha256"]

_BLOCK = 4 << 20  # bytes read at a time
FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


class WeightsError(CuratorDaliError, ValueError):
    """A file of weights is not what the model needs."""


def need(module: str, package: str | None = None) -> ImportError:
    """The error for an optional library that does not import, with the fix."""
    return ImportError(
        f"this model needs {package or module}, which does not import here; "
        f"install it with: pip install 'curator-dali[curate]'",
        name=module,
    )


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
            with open(real, "rb", buffering=0) as file:
                buffer = bytearray(_BLOCK)
                view = memoryview(buffer)
                while count := file.readinto(buffer):
                    digest.update(view[:count])
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


def load_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file under their names, on the host. Runs no code from the file.

    Raises:
        WeightsError: The file is damaged, holds something else than tensors, or is of another kind.
        ImportError: It is a .safetensors file and safetensors is not installed.
    """
    import torch

    path = Path(path)
    if path.suffix not in FILE_ENDINGS:
        raise WeightsError(
            f"{path}: cannot read weights from a {path.suffix or 'file without ending'}; "
            f"known are {', '.join(FILE_ENDINGS)}"
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
    """Exactly the tensors that a model needs, in float32.

    Args:
        state: Name -> tensor.
        shapes: Name -> shape that it must have.
        what: Whose weights, for the error.

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


def lineage_of(
    model: str,
    hashes: Mapping[str, str],
    *,
    dtype: str,
    view: Sequence[Transform] = (),
    libraries: Sequence[str] = ("torch",),
) -> dict[str, Any]:
    """What an output's records say of a model, as plain JSON.

    Args:
        model: Its name or where it was loaded from.
        hashes: File -> SHA-256 of its weights.
        dtype: What it computes in.
        view: The transforms before it.
        libraries: Distributions whose releases matter.
    """
    versions = {"curator-dali": _version("curator-dali")} | {name: _version(name) for name in libraries}
    found: dict[str, Any] = {"model": model, "weights": dict(hashes), "dtype": dtype, "versions": versions}
    return found | ({"view": repr(tuple(view))} if view else {})


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

"""Reading and hashing files of weights."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curator_dali.models import weights
from curator_dali.models.weights import WeightsError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


class Evil:
    """What a file of weights must not be able to do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin"])
def test_every_kind_of_file_gives_the_tensors(tmp_path: Path, name: str) -> None:
    if name.endswith("safetensors"):
        save_file(STATE, tmp_path / name)
    else:
        torch.save(STATE, tmp_path / name)
    read = weights.load_state(tmp_path / name)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in STATE.items())


def test_no_code_is_run_from_a_file(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"a": Evil(mark)}, tmp_path / "evil.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Evil(mark), protocol=2))
    for name in ("evil.pth", "plain.bin"):
        with pytest.raises(WeightsError, match=f"{name} is damaged or holds something else than tensors"):
            weights.load_state(tmp_path / name)
    assert not mark.exists()
    pickle.loads((tmp_path / "plain.bin").read_bytes())  # and it would have
    assert mark.exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(WeightsError, match=f"{name} is damaged"):
            weights.load_state(path)
        path.write_bytes(b"")
        with pytest.raises(WeightsError, match=f"{name} is damaged"):
            weights.load_state(path)


def test_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds list, not tensors under names"):
        weights.load_state(tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"known are \.safetensors, \.pth, \.pt, \.bin"):
        weights.load_state(tmp_path / "w.h5")
    with pytest.raises(FileNotFoundError):
        weights.load_state(tmp_path / "none.pth")


def test_sha256_is_hashlibs(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(os.urandom((4 << 20) * 2 + 17))  # more than one block, and a rest
    assert weights.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "empty").touch()
    assert weights.sha256(tmp_path / "empty") == hashlib.sha256().hexdigest()


def test_sha256_reads_again_only_what_changed(tmp_path: Path) -> None:
    path, link = tmp_path / "w", tmp_path / "link"
    path.write_bytes(b"one")
    link.symlink_to(path)
    first = weights.sha256(path)
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time: taken as unchanged
    assert weights.sha256(path) == weights.sha256(link) == first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert weights.sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_state_sha256_tells_values_names_and_shapes_apart() -> None:
    same = dict(reversed(STATE.items()))
    others = [
        {**STATE, "b": STATE["b"] + 1},
        {**STATE, "b": STATE["b"].float()},
        {**STATE, "a.weight": STATE["a.weight"].reshape(3, 2)},
        {"a.bias": STATE["a.weight"], "b": STATE["b"]},
    ]
    assert weights.state_sha256(same) == weights.state_sha256(STATE)
    assert len({weights.state_sha256(state) for state in [STATE, *others]}) == 5
    turned = {"a": torch.arange(6.0).reshape(2, 3).T}
    assert weights.state_sha256(turned) == weights.state_sha256({"a": turned["a"].contiguous()})


def test_check_state_names_what_is_wrong() -> None:
    shapes = {"a.weight": (2, 3), "b": (2,)}
    assert weights.check_state(STATE, shapes, "it")["b"].dtype == torch.float32
    with pytest.raises(WeightsError, match=r"no weights of it: b is missing; c is unknown; a.weight is \(2,\) instead"):
        weights.check_state({"a.weight": torch.ones(2), "c": torch.ones(1)}, shapes, "it")


def test_lineage_names_releases() -> None:
    import curator_dali

    found = weights.lineage_of("m", {"w.pth": "ab"}, dtype="float32", libraries=("torch", "no-such-library"))
    assert found["weights"] == {"w.pth": "ab"}
    assert found["versions"]["curator-dali"] == curator_dali.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["no-such-library"] is None
    assert "view" not in found

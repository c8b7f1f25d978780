"""Real processes: torchrun with gloo, killed with SIGKILL, started again with as many ranks and with others."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.training.run_ranks import make

ROOT = Path(__file__).parents[2]


def torchrun(
    ranks: int, folder: Path, out: Path, *more: str, script: str = "run_ranks.py"
) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    path = str(Path(__file__).with_name(script))
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", path]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, str(folder), str(out), *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


def steps(out: Path) -> dict[int, list[dict[str, Any]]]:
    """Step -> what each rank wrote of it last."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for path in sorted(out.glob("rank-*.jsonl")):
        for line in path.read_text().splitlines():
            one = json.loads(line)
            found.setdefault(one["step"], {})[path.name] = one
    return {step: list(ranks.values()) for step, ranks in found.items()}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epoch of two ranks that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    done = torchrun(2, folder, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def killed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, killed in its fourth step."""
    out = tmp_path_factory.mktemp("killed")
    done = torchrun(2, folder, out, "--kill", "4")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert json.loads((out / "state.json").read_text())["step"] == 3
    return out


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.slow
def test_killed_and_resumed_with_as_many_ranks_nothing_differs(
    folder: Path, whole: Path, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "resumed")
    done = torchrun(2, folder, out)
    assert done.returncode == 0, done.stderr
    assert steps(out) == steps(whole)  # digests of the tensors too
    assert len(steps(whole)) == 7


@pytest.mark.slow
def test_killed_and_resumed_with_more_ranks_every_sample_is_seen_once(
    folder: Path, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "resumed")
    for path in out.glob("rank-*.jsonl"):  # the killed step was never saved: the model has not learnt from it
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= 3]
        path.write_text("".join(line + "\n" for line in kept))
    done = torchrun(3, folder, out)
    assert done.returncode == 0, done.stderr
    seen = Counter(key for ranks in steps(out).values() for one in ranks for key in one["ids"])
    assert set(seen) == {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.jpg")}
    assert seen.total() == 42  # 41 are not divisible by 2 or, from the 18th on, by 3: (41 - 18 + 1) + 18
    assert [len(ranks) for ranks in steps(out).values()] == [2, 2, 2, 3, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mixture", "buckets"])
def test_mixtures_and_buckets_too(folder: Path, tmp_path: Path, case: str) -> None:
    out = tmp_path / case
    assert torchrun(2, folder, out, "--case", case, "--kill", "3").returncode != 0
    before = {step: [one["ids"] for one in ranks] for step, ranks in steps(out).items() if step < 3}
    for path in out.glob("rank-*.jsonl"):
        path.unlink()
    done = torchrun(3, folder, out, "--case", case)
    assert done.returncode == 0, done.stderr
    rest = {step: [one["ids"] for one in ranks] for step, ranks in steps(out).items()}
    assert min(rest) == 3
    seen = Counter(key for part in (before, rest) for ranks in part.values() for ids in ranks for key in ids)
    with make(case, str(folder), shard=None) as alone:
        expected = Counter(key for batch in alone for key in batch["ids"])
    assert not expected - seen
    assert (seen - expected).total() <= (2 * 3 if case == "buckets" else 2)  # of three ranks, where none are left


@pytest.mark.slow
def test_under_accelerate_the_loader_stays_as_it_is(folder: Path, whole: Path, tmp_path: Path) -> None:
    """`prepare` leaves it alone (it divides only a `DataLoader`'s samples), and save_state keeps where it stands."""
    pytest.importorskip("accelerate")
    done = torchrun(2, folder, tmp_path / "out", script="run_accelerate.py")
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"out/rank-{rank}.json").read_text()) for rank in range(2)]
    expected = steps(whole)
    for rank, report in enumerate(reports):
        assert (report["same"], report["processes"]) == (True, 2)
        assert report["whole"] == [expected[step][rank]["ids"] for step in sorted(expected)]
        assert report["rest"] == report["whole"][3:]


@pytest.mark.slow
def test_a_world_that_is_not_torchs_is_refused(tmp_path: Path, folder: Path) -> None:
    code = (
        "import sys, torch.distributed as d; d.init_process_group('gloo'); import curator_dali as cd; "
        "from curator_dali.torch import TorchImageLoader; "
        "TorchImageLoader(sys.argv[1], shard=cd.Shard(0, 2), device='cpu')"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=env, capture_output=True, text=True, timeout=120
    )
    assert "the loader is rank 0 of 2, this process rank 0 of 1 in torch.distributed" in done.stderr


@pytest.mark.slow
def test_a_loader_made_before_the_process_group_is_refused(tmp_path: Path, folder: Path) -> None:
    """Alone, "torch" is rank 0 of 1; two processes that join later would both see everything."""
    code = (
        "import os, sys, torch.distributed as d; from curator_dali.torch import TorchImageLoader; "
        "loader = TorchImageLoader(sys.argv[1], shard='torch', device='cpu', batch_size=8); "
        "print(loader.loader.shard); "
        "d.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=int(sys.argv[3]), world_size=2); "
        "iter(loader)"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(tmp_path / "store"), str(rank)],
            env=env | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, done in enumerate(runs):
        out, error = done.communicate(timeout=120)
        assert out == "Shard(rank=0, world_size=1)\n"
        assert f"the loader is rank 0 of 1, this process rank {rank} of 2 in torch.distributed" in error
        assert "make the loader after init_process_group" in error

"""One epoch over four real processes, whoever starts them: every sample once, in the order of one process."""

import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests import helpers
from tests.test_snippets import SNIPPETS
from tests.training.conftest import CLASSES
from tests.training.run_ranks import make
from tests.training.test_ranks import ROOT, steps, torchrun

RANKS = 4


@pytest.fixture(scope="module")
def shards(encoded: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 samples in tars of 10: four ranks and steps of three divide them."""
    out = tmp_path_factory.mktemp("shards")
    samples = [(key, {"jpg": encoded[key], "cls": str(i % len(CLASSES)).encode()}) for i, key in enumerate(encoded)]
    helpers.write_shards(out, samples[:36], per_shard=10)
    return out / "*.tar"


def assert_each_once(out: Path, shards: Path) -> None:
    """Each rank wrote what it saw: dealt out in turn, it is one process's epoch."""
    found = steps(out)
    assert [len(ranks) for ranks in found.values()] == [RANKS] * 3
    dealt = [zip(*(one["ids"] for one in ranks), strict=True) for ranks in found.values()]
    with make("plain", str(shards), shard=None) as alone:
        expected = [key for batch in alone for key in batch["ids"]]
    assert list(chain.from_iterable(chain.from_iterable(dealt))) == expected
    assert len(set(expected)) == 36


@pytest.mark.slow
def test_torchrun(shards: Path, tmp_path: Path) -> None:
    done = torchrun(RANKS, shards, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert_each_once(tmp_path / "out", shards)


@pytest.mark.slow
def test_torchrun_on_two_machines(shards: Path, tmp_path: Path) -> None:
    """Two agents that meet over TCP, as on two machines: ranks count on, local ranks do not."""
    out = tmp_path / "out"
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=epoch"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", *rendezvous]
    command += ["--local-addr=127.0.0.1", str(Path(__file__).with_name("run_ranks.py")), str(shards), str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    agents = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for agent in agents:
            _, err = agent.communicate(timeout=240)
            assert agent.returncode == 0, err
    finally:
        for agent in agents:
            agent.kill()
    assert_each_once(out, shards)


@pytest.fixture
def ray_train() -> None:
    pytest.importorskip(
        "ray.train.torch", reason="Ray Train does not import: pip install 'ray[train]'", exc_type=ImportError
    )


def run(*command: str, home: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)}  # Ray Train leaves its results in ~/ray_results
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("ray_train")
def test_ray_train(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run(str(Path(__file__).with_name("run_ray.py")), str(shards), str(out), str(RANKS), home=tmp_path)
    assert_each_once(out, shards)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_train")
def test_the_snippet_for_ray_train_runs(shards: Path, tmp_path: Path) -> None:
    (code,) = [snippet.code for snippet in SNIPPETS if "ray.train" in snippet.code]
    small = {"/shared/train/": str(shards), "num_workers=16, use_gpu=True": "num_workers=2", "224": "32"}
    for old, new in small.items():
        assert old in code
        code = code.replace(old, new)
    start = "import ray\n\nray.init('local', num_cpus=2, object_store_memory=100 << 20, include_dashboard=False)\n"
    script = tmp_path / "script.py"
    script.write_text(start + code)
    run(str(script), home=tmp_path)

"""A Ray cluster whose memory monitor kills whatever works: a death as any other, which Ray reports in another way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from curator_dali.sources import EncodedBatch, TarSource

pytest.importorskip("ray", reason="needs Ray: pip install 'curator-dali[ray]'")

ROOT = Path(__file__).parents[2]

# in a process of its own: when Ray starts it reads how much memory is too much
DRIVER = """
import ray
import curator_dali as cd
from curator_dali.ray import RayExecutor, find_killers
from curator_dali.outputs import Manifest
from tests.curation.test_ray_memory import Waiting

ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
source, executor = Waiting({shards}), RayExecutor(max_deaths=1)
with cd.Curation(source, {out!r}, stages=[], device="cpu", part_size=2, executor=executor) as curation:
    with Manifest.open({out!r}, source=source.fingerprint, samples=len(source), settings=curation.settings) as manifest:
        print(sorted(find_killers(curation.worker(manifest), (4, 6), executor.resources("cpu"))))
    try:
        curation.run()
    except cd.CuratorDaliError as error:
        print(error)
"""


class Waiting(TarSource):
    """Takes so long to read that whoever does it is killed meanwhile."""

    def read(self, indices: np.ndarray, *, members: bool = False) -> EncodedBatch:
        time.sleep(60)
        raise AssertionError("nobody was killed")


@pytest.mark.slow
def test_a_kill_for_memory_is_a_death(shards: list[Path], tmp_path: Path) -> None:
    code = DRIVER.format(shards=[str(path) for path in shards], out=str(tmp_path / "out"))
    monitor = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    env = {**os.environ, **monitor, "PYTHONPATH": str(ROOT)}
    driver = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert driver.returncode == 0, driver.stderr[-2000:]
    found, message = driver.stdout.splitlines()[-2:]
    assert found == "[4, 5]"
    assert "ended 2 workers" in message or "workers die while they start" in message

"""What a worker does in the test under Ray Train: OUT/rank-R.jsonl says what it saw, as `run_ranks` writes it.

python run_ray.py FOLDER OUT WORKERS
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
import torch
from ray.train import ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

from tests.training.run_ranks import make


def train(config: dict[str, Any]) -> None:
    """An epoch on one worker; `DistributedDataParallel` hangs where workers make different numbers of steps."""
    torch.set_num_threads(1)
    model = prepare_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3)))
    rank = get_context().get_world_rank()
    with make("plain", config["folder"]) as loader, open(f"{config['out']}/rank-{rank}.jsonl", "w") as log:
        for step, batch in enumerate(loader, 1):
            torch.nn.functional.cross_entropy(model(batch["images"]), batch["targets"]).backward()
            log.write(json.dumps({"step": step, "ids": batch["ids"]}) + "\n")


def main(folder: str, out: str, workers: int) -> None:
    ray.init("local", num_cpus=workers, object_store_memory=100 << 20, include_dashboard=False)
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": folder, "out": out},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="gloo"),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

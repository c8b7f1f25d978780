"""What a rank does in the tests that torchrun starts: a loop with a model of one number, saved at every step.

    torchrun ... run_ranks.py FOLDER OUT [--kill STEP] [--case NAME]

Writes OUT/rank-R.jsonl, a line a step: {"step", "ids", "digest"}; rank 0 saves OUT/state.json after each step, by
rename, when all ranks are through it. `--kill` has every rank kill itself with SIGKILL after that many steps, before
they are saved.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from curator_dali import transforms
from curator_dali.sampling import Buckets
from curator_dali.sources import Mixture, open_source
from curator_dali.torch import TorchImageLoader

AUGMENTED = [transforms.RandomResizedCrop(16), transforms.HorizontalFlip(), transforms.Normalize()]


def make(case: str, folder: str, shard: Any = "torch") -> TorchImageLoader:
    options = {"shard": shard, "batch_size": 3, "shuffle": 5, "device": "cpu", "num_threads": 1, "as_dict": True}
    if case == "buckets":
        sizes = Buckets([(16, 16), (16, 24), (24, 16)])
        return TorchImageLoader(folder, buckets=sizes, transforms=AUGMENTED[1:], **options)
    if case == "mixture":
        halves = {name: open_source(folder, name=name) for name in ("a", "b")}
        return TorchImageLoader(Mixture(halves, {"a": 0.75, "b": 0.25}, samples=40), transforms=AUGMENTED, **options)
    return TorchImageLoader(folder, transforms=AUGMENTED, **options)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kill", type=int, default=-1)
    parser.add_argument("--case", default="plain")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    saved = args.out / "state.json"
    weight = torch.nn.Parameter(torch.zeros(1))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.ParameterList([weight]))
    step = 0
    with make(args.case, args.folder) as loader, (args.out / f"rank-{rank}.jsonl").open("a") as log:
        if saved.exists():
            checkpoint = json.loads(saved.read_text())
            loader.load_state_dict(checkpoint["loader"])
            step = checkpoint["step"]
        for batch in loader:
            loss = (batch["images"].float().mean() * model.module[0]).sum()
            loss.backward()
            torch.distributed.all_reduce(weight.grad)  # hangs where ranks make different numbers of steps
            step += 1
            digest = hashlib.sha256(batch["images"].numpy().tobytes() + batch["targets"].numpy().tobytes()).hexdigest()
            log.write(json.dumps({"step": step, "ids": batch["ids"], "digest": digest}) + "\n")
            log.flush()
            if step == args.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.distributed.barrier()
            if rank == 0:
                partial = saved.with_suffix(".partial")
                partial.write_text(json.dumps({"step": step, "loader": loader.state_dict()}))
                partial.replace(saved)
            torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""What a rank does in the test under accelerate: OUT/rank-R.json says what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from tests.training.run_ranks import make


def main(folder: str, out: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    loader = make("plain", folder)
    model, optimiser, prepared = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    accelerator.register_for_checkpointing(prepared)

    def train(stop: int = 1000) -> list[list[str]]:
        seen = []
        for step, batch in enumerate(prepared):
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(batch["images"]), batch["targets"])
                accelerator.backward(loss)
                optimiser.step()
                optimiser.zero_grad()
            seen.append(batch["ids"])
            if step + 1 == stop:
                accelerator.save_state(str(out / "checkpoint"))
        return seen

    whole = train(stop=3)
    accelerator.load_state(str(out / "checkpoint"))
    rest = train()
    report = {"whole": whole, "rest": rest, "same": prepared is loader, "processes": accelerator.num_processes}
    (out / f"rank-{accelerator.process_index}.json").write_text(json.dumps(report))
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))

"""A curation in a process of its own, to be killed: `python -m tests.curation.run_curation SOURCE OUT [global]`."""

from __future__ import annotations

import sys

import torch

import curator_dali as cd
from curator_dali.stages import Stage
from tests.curation.helpers import FirstOfItsLabel, cheap_stages


def stages_for(kind: str) -> list[Stage]:
    return [*cheap_stages(), *([FirstOfItsLabel("number")] if kind == "global" else [])]


def main(source: str, out: str, kind: str = "") -> None:
    torch.set_num_threads(1)
    with cd.Curation(
        source, out, stages=stages_for(kind), device="cpu", batch_size=8, part_size=24, num_threads=1
    ) as curation:
        print("running", flush=True)
        report = curation.run()
    print(f"kept {report.kept}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

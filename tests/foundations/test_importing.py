"""An import that is interrupted is whole afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from curator_dali.threads import import_whole

CODE = """
import signal, sys
import numpy as np
import curator_dali as cd
from curator_dali.threads import import_whole
from curator_dali.similarity import phash, similar_pairs
from curator_dali.stages.plan import make_plan

def interrupt(*_):
    raise KeyboardInterrupt

def needs_torch():
    {statement}

signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.2)  # where a plain `import torch` dies of it, or is left in halves
try:
    needs_torch()
except KeyboardInterrupt:
    print("interrupted")
needs_torch()
import torch
print(torch.zeros(3).sum().item(), torch.distributed.is_available())
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import_whole('torch')",
        "make_plan([cd.Quality()]).setup('cpu')",
        "phash([np.zeros((40, 50, 3), np.uint8)])",
        "similar_pairs(np.eye(4, dtype=np.float32), 0.9)",
    ],
    ids=["by name", "a curation", "hashes", "embeddings"],
)
def test_torch_survives_an_interrupt_of_its_import(statement: str) -> None:
    code = CODE.format(statement=statement)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == ["interrupted", "0.0 True"]


def test_what_an_import_raises_is_raised() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_whole("no_such_module")
    import_whole("json")

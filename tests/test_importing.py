"""An import that is interrupted is whole afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from curator_dali.importing import import_whole

CODE = """
import signal, sys
from curator_dali.importing import import_whole

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.2)  # where a plain `import torch` dies of it, or is left in halves
try:
    import_whole("torch")
except KeyboardInterrupt:
    print("interrupted")
import_whole("torch")
import torch
print(torch.zeros(3).sum().item(), torch.distributed.is_available())
"""


def test_torch_survives_an_interrupt_of_its_import() -> None:
    answer = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == ["interrupted", "0.0 True"]


def test_what_an_import_raises_is_raised() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_whole("no_such_module")
    import_whole("json")

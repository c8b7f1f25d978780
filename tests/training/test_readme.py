"""The README's training loop, interrupted and run again, as it stands there but for the paths and sizes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


def test_the_training_loop_of_the_readme_runs_and_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "TorchImageLoader" in block)
    small = {"curator-dali-demo/shards/*.tar": str(folder), "=64": "=8, num_threads=1, device='cpu'", "224)": "16)"}
    for old, new in small.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    shapes: list[tuple[int, ...]] = []
    loss: Callable[..., torch.Tensor] = torch.nn.functional.cross_entropy

    def count(scores: torch.Tensor, targets: torch.Tensor) -> Any:
        shapes.append(tuple(scores.shape))
        if len(shapes) == 9:
            raise KeyboardInterrupt
        return loss(scores, targets)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", count)
    with pytest.raises(KeyboardInterrupt):
        exec(code, {})
    exec(code, {})
    # three epochs of six steps; the one that was interrupted was not saved, and so comes again
    assert len(shapes) == 3 * 6 + 1
    assert shapes.count((8, 8)) == 3 * 5 + 1

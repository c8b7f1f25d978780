"""The README's training loop, as it stands there but for the paths and sizes."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_training_loop_of_the_readme_runs_and_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "TorchImageLoader" in block)
    small = {"train/": str(folder), "=256": "=8, num_threads=1, device='cpu'", "90)": "3)", "224)": "16)"}
    for old, new in small.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    shapes: list[tuple[int, ...]] = []

    def step(images: Any, targets: Any) -> None:
        shapes.append(tuple(images.shape))
        assert len(images) == len(targets)
        if len(shapes) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exec(code, {"resume": False, "step": step})
    exec(code, {"resume": True, "step": step})
    # three epochs of six steps; the one that was interrupted was not saved, and so comes again
    assert len(shapes) == 3 * 6 + 1
    assert shapes.count((8, 3, 16, 16)) == 3 * 5 + 1

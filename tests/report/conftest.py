"""The browser of the displays' tests, and an output whose every text is markup."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.report import makers
from tests.view.conftest import browse

__all__ = ["browse"]


@pytest.fixture(scope="session")
def hostile(photos: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    out = tmp_path_factory.mktemp("hostile") / "out"
    makers.hostile(photos, out)
    return out

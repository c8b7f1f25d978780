"""What `make gpu-check` writes down, where the answer is no matter of opinion."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu_check import handover, hostile
from tests.gpu_check.settings import Settings

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings("cuda:0", rehearse=True, work=Path(tmp_path_factory.mktemp("check")))


@pytest.mark.slow
def test_no_file_ends_the_process_or_costs_another_image(settings: Settings) -> None:
    assert hostile.section(settings)["failures"] == []


def test_pixels_are_near_the_cpus(settings: Settings) -> None:
    found = handover.pixels(settings)
    assert max(one["mean"] for one in found["decoded"].values()) < 0.5
    assert found["CLIP's view against transformers"]["mean"] < 0.5
    cosine = found["embeddings' lowest cosine, EfficientNet-Lite0"]
    assert isinstance(cosine, str) or cosine > 0.99  # a text says why there is none


def test_batches_stay_as_they_were(settings: Settings) -> None:
    assert handover.ownership(settings)["failures"] == []


def test_a_full_device_is_no_bad_image(settings: Settings) -> None:
    found = handover.full_memory(settings)
    assert found["failures"] == []
    assert found["afterwards"] == 6

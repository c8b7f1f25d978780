"""What processors and data configs say, in our transforms."""

from typing import Any

import numpy as np
import pytest

from curator_dali import transforms
from curator_dali.models.base import Preprocessing
from curator_dali.transforms import CenterCrop, Resize

DINO = {
    "input_size": (3, 518, 518),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def clip_processor(**options: Any) -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**options)


def test_clip_is_the_preset() -> None:
    """The same value, so that a model and whoever asks for `transforms.clip` share one decode."""
    found = Preprocessing.of(clip_processor())
    assert found.view == transforms.clip(224)
    assert found.mean == pytest.approx(transforms.CLIP_MEAN)
    assert found.std == pytest.approx(transforms.CLIP_STD)


def test_siglip_is_squashed() -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    found = Preprocessing.of(SiglipImageProcessorPil(size={"height": 384, "width": 384}))
    assert found == Preprocessing((Resize((384, 384)),), (0.5,) * 3, (0.5,) * 3)


def test_other_values_are_followed() -> None:
    found = Preprocessing.of(
        clip_processor(
            size={"shortest_edge": 40},
            crop_size={"height": 32, "width": 36},
            resample=2,
            rescale_factor=1 / 127.5,
            image_mean=[1.0, 1.0, 1.0],
            image_std=[1.0, 2.0, 1.0],
        )
    )
    assert found.view == (Resize(40, "linear"), CenterCrop((32, 36)))
    # pixel / 127.5 - 1 = (pixel / 255 - 0.5) / 0.5
    assert found.mean == pytest.approx((0.5, 0.5, 0.5))
    assert found.std == pytest.approx((0.5, 1.0, 0.5))
    bare = Preprocessing.of(clip_processor(do_normalize=False))
    assert (bare.mean, bare.std) == (pytest.approx((0, 0, 0)), pytest.approx((1, 1, 1)))
    pixels = Preprocessing.of(clip_processor(do_normalize=False, do_rescale=False))
    assert pixels.view == transforms.clip(224)
    assert (pixels.mean, pixels.std) == ((0, 0, 0), (1 / 255,) * 3)  # what comes out is 0 to 255


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": {"longest_edge": 224, "shortest_edge": 100}}, "only shortest_edge, or height and width"),
        ({"resample": 5}, "resample is 5"),
        ({"do_center_crop": False}, "images of different sizes"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Preprocessing.of(clip_processor(**options))


def test_timm_center() -> None:
    view = (Resize(518), CenterCrop(518, rounding="even"))
    assert Preprocessing.of(DINO) == Preprocessing(view, DINO["mean"], DINO["std"])  # type: ignore[arg-type]
    other = DINO | {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bilinear"}
    # timm rounds 248.9 down
    assert Preprocessing.of(other).view == (Resize(248, "linear"), CenterCrop(224, rounding="even"))
    assert Preprocessing.of(DINO | {"interpolation": "nearest"}).view[0] == Resize(518, "nearest")


def test_timm_crops_as_torchvision_where_the_room_is_odd() -> None:
    """One side has three pixels more than the crop, the other one: half of that is rounded to even, as timm has it."""
    view = Preprocessing.of(DINO | {"input_size": (3, 20, 20), "crop_pct": 20 / 21}).view
    image = np.random.default_rng(1).integers(0, 256, (21, 23, 3), np.uint8)  # 21 is its shorter side already
    assert np.array_equal(transforms.apply([image], view)[0], image[0:20, 2:22])


def test_timm_squash() -> None:
    view = (Resize((518, 518)), CenterCrop(518, rounding="even"))
    assert Preprocessing.of(DINO | {"crop_mode": "squash"}).view == view


@pytest.mark.parametrize(
    "change",
    [{"crop_mode": "border"}, {"input_size": (1, 28, 28)}, {"interpolation": "random"}, {"input_size": (3, 32, 64)}],
)
def test_timm_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"data_config's {next(iter(change))} is"):
        Preprocessing.of(DINO | change)


def test_three_channels() -> None:
    with pytest.raises(ValueError, match="three means and positive stds"):
        Preprocessing((Resize((4, 4)),), (0.5,), (0.5,))

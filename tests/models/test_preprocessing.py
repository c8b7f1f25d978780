"""What processors and data configs say, in our transforms."""

from typing import Any

import pytest

from curator_dali import transforms
from curator_dali.models.preprocessing import Preprocessing, from_processor, from_timm
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
    found = from_processor(clip_processor())
    assert found.view == transforms.clip(224)
    assert found.mean == pytest.approx(transforms.CLIP_MEAN)
    assert found.std == pytest.approx(transforms.CLIP_STD)


def test_siglip_is_squashed() -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    found = from_processor(SiglipImageProcessorPil(size={"height": 384, "width": 384}))
    assert found == Preprocessing((Resize((384, 384)),), (0.5,) * 3, (0.5,) * 3)


def test_other_values_are_followed() -> None:
    found = from_processor(
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
    bare = from_processor(clip_processor(do_normalize=False))
    assert (bare.mean, bare.std) == (pytest.approx((0, 0, 0)), pytest.approx((1, 1, 1)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": {"longest_edge": 224, "shortest_edge": 100}}, "known are a number, shortest_edge, or height and"),
        ({"resample": 5}, "resamples with 5"),
        ({"do_center_crop": False}, "images of different sizes"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_processor(clip_processor(**options))


def test_timm_center() -> None:
    assert from_timm(DINO) == Preprocessing((Resize(518), CenterCrop(518)), DINO["mean"], DINO["std"])  # type: ignore[arg-type]
    other = DINO | {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bilinear"}
    assert from_timm(other).view == (Resize(248, "linear"), CenterCrop(224))  # timm rounds 248.9 down


def test_timm_squash() -> None:
    assert from_timm(DINO | {"crop_mode": "squash"}).view == (Resize((518, 518)), CenterCrop(518))


@pytest.mark.parametrize(
    "change",
    [{"crop_mode": "border"}, {"input_size": (1, 28, 28)}, {"interpolation": "random"}, {"input_size": (3, 32, 64)}],
)
def test_timm_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="known"):
        from_timm(DINO | change)


def test_three_channels() -> None:
    with pytest.raises(ValueError, match="three means and positive stds"):
        Preprocessing((Resize((4, 4)),), (0.5,), (0.5,))

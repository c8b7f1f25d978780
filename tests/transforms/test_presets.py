"""Presets against transformers' own processors, and against Pillow where torchvision and timm are what is matched."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from curator_dali import transforms
from tests import helpers


@pytest.fixture(scope="module")
def crops(photos: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Real photographs in all shapes, smaller and larger than what comes out, and three whole ones."""
    found = [np.ascontiguousarray(c) for _, c in helpers.crops(photos, 12, shortest=60, longest=500)]
    return [*found, *list(photos.values())[:3]]


def compare(ours: NDArray[np.generic], expected: NDArray[np.generic], std: tuple[float, ...]) -> NDArray[np.float64]:
    assert ours.shape == expected.shape
    assert ours.dtype == np.float32
    return np.abs(ours.astype(float) - expected) * 255 * np.array(std)[:, None, None]


def within(difference: NDArray[np.float64]) -> None:
    """2/255 for all but 1 value in 1,000, which lie along the border, and 0.06 in the mean."""
    assert (difference > 2.01).mean() < 1e-3
    assert difference.max() < 16
    assert difference.mean() < 0.06


def processors() -> dict[str, Any]:
    import transformers as tf

    return {
        "clip": tf.CLIPImageProcessor(),
        "clip 336": tf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        "siglip": tf.SiglipImageProcessor(size={"height": 256, "width": 256}),
        "vit": tf.ViTImageProcessor(),
        "dinov2": tf.BitImageProcessor(
            size={"shortest_edge": 256}, image_mean=transforms.IMAGENET_MEAN, image_std=transforms.IMAGENET_STD
        ),
        "resnet": tf.ConvNextImageProcessor(size={"shortest_edge": 224}),
        "convnext": tf.ConvNextImageProcessor(size={"shortest_edge": 384}),
        "deit": tf.DeiTImageProcessor(),
        "no normalization": tf.ViTImageProcessor(do_normalize=False),
        "no rescaling": tf.ViTImageProcessor(do_rescale=False),
        "to -1..1": tf.ViTImageProcessor(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
        "crop beyond the image": tf.CLIPImageProcessor(
            size={"shortest_edge": 150}, crop_size={"height": 171, "width": 120}
        ),
    }


@pytest.mark.parametrize("name", list(processors()))
def test_for_model_equals_transformers(crops: list[NDArray[np.uint8]], name: str) -> None:
    processor = processors()[name]
    sequence = transforms.for_model(processor)
    scale = 1 / (255 * processor.rescale_factor) if processor.do_rescale else 1 / 255
    std = [scale * s for s in (processor.image_std if processor.do_normalize else (1, 1, 1))]
    differences = []
    for crop, ours in zip(crops, transforms.apply(crops, sequence), strict=True):
        expected = processor(Image.fromarray(crop), return_tensors="np")["pixel_values"][0]
        differences.append(compare(ours, expected, tuple(std)).ravel())
    within(np.concatenate(differences))


def test_for_model_without_normalize_gives_pixels() -> None:
    sequence = transforms.for_model(processors()["siglip"], normalize=False)
    assert sequence == (transforms.Resize((256, 256)),)
    assert transforms.output_size(sequence) == (256, 256)


def torchvision_eval(image: NDArray[np.uint8], resize: int, crop: int, kernel: Image.Resampling) -> NDArray[np.uint8]:
    """`Resize(resize)` and `CenterCrop(crop)` on a Pillow image, as torchvision documents and computes them."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    new = (resize, int(resize * long / short))
    size = (new[0], new[1]) if width <= height else (new[1], new[0])  # (width, height)
    resized = Image.fromarray(image).resize(size, kernel)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)  # round() is to even
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


@pytest.mark.parametrize(
    ("sequence", "resize", "crop", "kernel"),
    [
        (transforms.imagenet_eval(224), 256, 224, Image.Resampling.BILINEAR),
        (
            transforms.for_model(
                {
                    "input_size": (3, 160, 160),
                    "interpolation": "bicubic",
                    "mean": transforms.IMAGENET_MEAN,
                    "std": transforms.IMAGENET_STD,
                    "crop_pct": 0.95,
                    "crop_mode": "center",
                    "num_classes": 10,
                }
            ),
            168,
            160,
            Image.Resampling.BICUBIC,
        ),
    ],
    ids=["imagenet_eval", "timm"],
)
def test_torchvisions_eval(
    crops: list[NDArray[np.uint8]], sequence: Any, resize: int, crop: int, kernel: Image.Resampling
) -> None:
    mean, std = np.array(transforms.IMAGENET_MEAN), np.array(transforms.IMAGENET_STD)
    differences = []
    for image, ours in zip(crops, transforms.apply(crops, sequence), strict=True):
        expected = (torchvision_eval(image, resize, crop, kernel) / 255 - mean) / std
        differences.append(compare(ours, expected.transpose(2, 0, 1), transforms.IMAGENET_STD))
    within(np.stack(differences))


@pytest.mark.parametrize("side", range(8, 17))
def test_center_crop_rounds_to_even_as_torchvision(side: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (side, side + 1, 3), np.uint8)
    ours = transforms.apply([image], transforms.CenterCrop(8, rounding="even"))[0]
    top, left = round((side - 8) / 2), round((side + 1 - 8) / 2)
    assert np.array_equal(ours, image[top : top + 8, left : left + 8])


def test_center_crop_of_too_small_an_image_pads_as_torchvision() -> None:
    image = np.full((5, 9, 3), 7, np.uint8)
    ours = transforms.apply([image], transforms.CenterCrop(8, rounding="even"))[0]
    expected = np.zeros((8, 8, 3), np.uint8)
    expected[1:6] = 7  # (8 - 5) // 2 rows above, (8 - 5 + 1) // 2 below
    assert np.array_equal(ours, expected)


def test_imagenet_train_is_a_training_sequence() -> None:
    sequence = transforms.imagenet_train(64, dtype="float16")
    assert [type(t).__name__ for t in sequence] == ["RandomResizedCrop", "HorizontalFlip", "Normalize"]
    out = transforms.apply([np.full((90, 70, 3), 200, np.uint8)] * 3, sequence)
    assert out.shape == (3, 3, 64, 64)
    assert out.dtype == np.float16


TIMM = {"input_size": (3, 8, 8), "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"input_size": (3, 8, 8)}, "lacks interpolation, mean, std"),
        (TIMM | {"input_size": (1, 8, 8)}, "only \\(3, height, width\\)"),
        (TIMM | {"input_size": (3, 8, 9)}, "of squares only"),
        (TIMM | {"interpolation": "random"}, "allowed: lanczos, bilinear, bicubic, nearest"),
        (TIMM | {"crop_mode": "border"}, "allowed: center, squash"),
    ],
)
def test_what_timm_asks_and_we_cannot_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        transforms.for_model(config)


def test_what_a_processor_does_and_we_cannot_is_refused() -> None:
    import transformers as tf

    for processor, words in (
        (tf.CLIPImageProcessor(resample=0), "resample is .*allowed: LANCZOS, BILINEAR, BICUBIC"),
        (tf.CLIPImageProcessor(size={"longest_edge": 224}), "only shortest_edge, or height and width"),
        (tf.CLIPImageProcessor(size={"shortest_edge": 224, "longest_edge": 300}), "only shortest_edge"),
        (tf.ViTImageProcessor(do_pad=True), "do_pad set"),
        (tf.EfficientNetImageProcessor(), "its own way of"),
        (tf.Pix2StructImageProcessor(), "has its own way of|takes a transformers"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            transforms.for_model(processor)
    with pytest.raises(TypeError, match="for_model takes a transformers image processor or timm's data_config"):
        transforms.for_model("openai/clip-vit-large-patch14")


def test_an_older_processor_with_plain_dicts_is_read_too() -> None:
    old = SimpleNamespace(
        do_resize=True,
        size={"shortest_edge": 224},
        resample=3,
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(transforms.CLIP_MEAN),
        image_std=list(transforms.CLIP_STD),
    )
    assert transforms.for_model(old) == transforms.clip(224, normalize=True)
    assert transforms.for_model(SimpleNamespace(**{**vars(old), "size": 224, "crop_size": 224})) == transforms.clip(
        224, normalize=True
    )

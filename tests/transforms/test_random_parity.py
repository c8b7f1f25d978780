"""Random transforms against torchvision's documented definitions, written with numpy and Pillow."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from curator_dali import transforms as T
from curator_dali.sampling import uniforms

LUMA = np.array([0.299, 0.587, 0.114])
KEY = (3, 4)


@pytest.fixture(scope="module")
def images(photos: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [np.ascontiguousarray(photo[40:150, 60:190]) for photo in photos.values()]


def apply(images: list[NDArray[np.uint8]], transform: T.Transform) -> list[NDArray[Any]]:
    return list(T.apply(images, transform, key=KEY))


def drawn(images: list[Any], transform: T.RandomTransform) -> NDArray[np.float64]:
    """(draws, N): the uniform numbers of the first place."""
    return uniforms(KEY, np.arange(len(images)), np.arange(transform.draws))


def furthest(some: NDArray[Any], others: Any) -> int:
    return int(np.abs(some.astype(int) - np.asarray(others).astype(int)).max())


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("what", ["brightness", "contrast", "saturation"])
def test_one_colour_change_is_pillows(images: list[NDArray[np.uint8]], what: str, factor: float) -> None:
    """torchvision's on PIL images are these enhancers."""
    enhancer = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }[what]
    for image, ours in zip(images, apply(images, T.ColorJitter(**{what: (factor, factor)})), strict=True):  # type: ignore[arg-type]
        assert furthest(ours, enhancer(Image.fromarray(image)).enhance(factor)) <= 1


def test_colour_changes_follow_each_other_in_a_random_order(images: list[NDArray[np.uint8]]) -> None:
    transform = T.ColorJitter(0.3, (0.5, 1.2), 0.6)
    ranges = [(0.7, 1.3), (0.5, 1.2), (0.4, 1.6)]
    numbers = drawn(images, transform)
    orders = np.argsort(numbers[4:8], axis=0).T
    assert len({tuple(order) for order in orders.tolist()}) > 4
    for image, ours, own, order in zip(images, apply(images, transform), numbers.T, orders, strict=True):
        pixels = image.astype(float)
        for step in order:
            if step == 3:
                continue  # hue, by no angle
            low, high = ranges[step]
            factor = low + (high - low) * own[step]
            grey = (pixels @ LUMA)[..., None]
            other = (0.0, grey.mean(), grey)[step]
            pixels = factor * pixels + (1 - factor) * other
        assert furthest(ours, np.rint(np.clip(pixels, 0, 255))) <= 1


@pytest.mark.parametrize("turns", [-0.25, 0.1, 0.5])
def test_hue_turns_as_torchvisions_does_and_keeps_the_luma(turns: float) -> None:
    """A muted colour turned in YIQ and in HSV: the same direction, about the same angle."""
    import colorsys

    image = np.full((4, 4, 3), (150, 110, 110), np.uint8)
    (ours,) = apply([image], T.ColorJitter(hue=(turns, turns)))
    assert ours[0, 0] @ LUMA == pytest.approx(image[0, 0] @ LUMA, abs=1)
    before, after = (colorsys.rgb_to_hsv(*(colour / 255.0))[0] for colour in (image[0, 0], ours[0, 0]))
    assert abs((after - before - turns + 0.5) % 1 - 0.5) < 0.08


def test_no_change_is_no_change(images: list[NDArray[np.uint8]]) -> None:
    for transform in (T.ColorJitter(), T.ColorJitter(0.5, 0.5, 0.5, 0.1, p=0), T.RandomGrayscale(0), T.Rotate(0)):
        for image, ours in zip(images, apply(images, transform), strict=True):
            assert np.array_equal(image, ours)


def test_grey_is_pillows(images: list[NDArray[np.uint8]]) -> None:
    for image, ours in zip(images, apply(images, T.RandomGrayscale(1)), strict=True):
        assert furthest(ours, np.asarray(Image.fromarray(image).convert("L"))[..., None]) <= 1


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_is_torchvisions_formula(images: list[NDArray[np.uint8]], kernel_size: int) -> None:
    transform = T.GaussianBlur((0.5, 3.0), kernel_size)
    for image, ours, u in zip(images, apply(images, transform), drawn(images, transform)[0], strict=True):
        assert furthest(ours, blurred(image, 0.5 + 2.5 * u, kernel_size)) <= 1


def test_a_kernel_of_three_sigmas_is_enough(images: list[NDArray[np.uint8]]) -> None:
    for image, ours in zip(images, apply(images, T.GaussianBlur(2.0)), strict=True):
        assert furthest(ours, blurred(image, 2.0, 23)) <= 1


def blurred(image: NDArray[np.uint8], sigma: float, size: int) -> NDArray[np.float64]:
    """exp(-x^2 / 2 sigma^2), normalised, in both directions; the border reflected without repeating it."""
    x = np.arange(size) - size // 2
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    kernel /= kernel.sum()
    pixels = np.pad(image.astype(float), [(size // 2,) * 2, (size // 2,) * 2, (0, 0)], mode="reflect")
    height, width = image.shape[:2]
    pixels = sum(w * pixels[i : i + height] for i, w in enumerate(kernel))
    return np.asarray(np.rint(sum(w * pixels[:, i : i + width] for i, w in enumerate(kernel))))


@pytest.mark.parametrize("angle", [-120.0, 17.5, 90.0])
@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_rotation_is_pillows(images: list[NDArray[np.uint8]], angle: float, interpolation: Any) -> None:
    kernel = Image.Resampling.NEAREST if interpolation == "nearest" else Image.Resampling.BILINEAR
    transform = T.Rotate((angle, angle), interpolation, fill=77)
    for image, ours in zip(images, apply(images, transform), strict=True):
        theirs = np.asarray(Image.fromarray(image).rotate(angle, kernel, fillcolor=(77, 77, 77)))
        differs = np.abs(ours.astype(int) - theirs.astype(int)).max(axis=2) > 1
        assert differs.mean() < (0.002 if interpolation == "nearest" else 0.02)  # ties; the edge, which DALI blends


def test_the_window_of_a_random_resized_crop_is_torchvisions_first_that_fits(
    images: list[NDArray[np.uint8]],
) -> None:
    images = [*images, images[0][:, :20], images[0][:9, :]]  # too narrow and too low for any ratio
    images = [np.ascontiguousarray(image) for image in images]
    transform = T.RandomResizedCrop((40, 50), scale=(0.1, 1.0))
    for image, ours, own in zip(images, apply(images, transform), drawn(images, transform).T, strict=True):
        top, left, height, width = window(image.shape[0], image.shape[1], own, (0.1, 1.0), (3 / 4, 4 / 3))
        cut = Image.fromarray(image[top : top + height, left : left + width])
        theirs = np.asarray(cut.resize((50, 40), Image.Resampling.BILINEAR))
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        edge = 3
        assert difference[edge:-edge, edge:-edge].max() <= 2
        assert difference.mean() < 0.5


def window(
    height: int, width: int, own: NDArray[np.float64], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """torchvision's `RandomResizedCrop.get_params`, from the sample's own numbers."""
    low, high = np.log(ratio)
    for attempt in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * own[attempt])
        aspect = np.exp(low + (high - low) * own[10 + attempt])
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return int(own[20] * (height - h + 1)), int(own[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def test_erasing_is_torchvisions_first_rectangle_that_fits(images: list[NDArray[np.uint8]]) -> None:
    transform = T.RandomErasing(0.6, value=200)
    erased = 0
    for image, ours, own in zip(images, apply(images, transform), drawn(images, transform).T, strict=True):
        expected = image.copy()
        if own[-1] < 0.6:
            erased += 1
            height, width = image.shape[:2]
            for attempt in range(10):
                area = height * width * (0.02 + 0.31 * own[attempt])
                aspect = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * own[10 + attempt])
                h, w = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
                if h < height and w < width:
                    top, left = int(own[-3] * (height - h + 1)), int(own[-2] * (width - w + 1))
                    expected[top : top + h, left : left + w] = 200
                    break
        assert np.array_equal(ours, expected)
    assert 0 < erased < len(images)


def test_a_flip_mirrors_alone_and_within_normalize(images: list[NDArray[np.uint8]]) -> None:
    flip = T.HorizontalFlip()
    mirrored = drawn(images, flip)[0] < 0.5
    assert 0 < mirrored.sum() < len(images)
    expected = [image[:, ::-1] if yes else image for image, yes in zip(images, mirrored, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(apply(images, flip), expected, strict=True))
    mean, std = np.array(T.IMAGENET_MEAN), np.array(T.IMAGENET_STD)
    both = T.apply(images, (flip, T.Normalize(T.IMAGENET_MEAN, T.IMAGENET_STD)), key=KEY)
    for ours, image in zip(both, expected, strict=True):
        assert np.allclose(ours, ((image / 255 - mean) / std).transpose(2, 0, 1), atol=1e-5)


def test_mixup_is_the_weighted_sum_with_the_neighbour_before() -> None:
    torch.manual_seed(0)
    images, targets = torch.rand(5, 3, 8, 9), torch.tensor([0, 1, 2, 2, 1])
    kept = images.clone()
    mixed, shares = T.MixUp(3, alpha=0.8)(images, targets, (1, 2, 3))
    one_hot = torch.eye(3)[targets]
    share = float(shares[0, 0])  # sample 0 is the only one of class 0, and its neighbour is of class 1
    assert 0 < share < 1
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
    assert torch.allclose(shares, share * one_hot + (1 - share) * one_hot.roll(1, 0), atol=1e-6)
    assert torch.equal(images, kept)


def test_cutmix_pastes_one_rectangle_and_counts_its_area() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 20, 30).contiguous()
    areas = set()
    for step in range(30):
        mixed, shares = T.CutMix(4)(images, torch.arange(4), (1, 2, step))
        pasted = mixed[1, 0] == 0
        rows, columns = pasted.any(1), pasted.any(0)
        assert int(pasted.sum()) == int(rows.sum()) * int(columns.sum())  # a rectangle, the same in all images
        assert torch.equal(mixed[2, 1] == 1, pasted)
        assert float(shares[1, 0]) == pytest.approx(float(pasted.float().mean()), abs=1e-6)
        assert torch.allclose(shares.sum(1), torch.ones(4))
        areas.add(int(pasted.sum()))
    assert len(areas) > 10


@pytest.mark.parametrize("mix", [T.MixUp(4), T.CutMix(4)], ids=["MixUp", "CutMix"])
def test_mixing_follows_from_its_key(mix: Any) -> None:
    images, targets = torch.rand(6, 3, 64, 64), torch.tensor([0, 1, 2, 3, 0, 1])
    first = mix(images, targets, (5, 0, 7))
    torch.manual_seed(99)
    np.random.seed(99)
    again = mix(images, targets, (5, 0, 7))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    others = [mix(images, targets, key)[0] for key in [(6, 0, 7), (5, 1, 7), (5, 0, 8)]]
    assert not any(torch.equal(first[0], other) for other in others)
    twice = mix(*first, (5, 0, 8))  # shares may be mixed again
    assert torch.allclose(twice[1].sum(1), torch.ones(6))


@pytest.mark.parametrize(
    ("images", "targets", "kind", "words"),
    [
        (torch.rand(2, 3, 4, 4), torch.tensor([0, 4]), ValueError, "0..4; num_classes=4"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0]), ValueError, "do not fit"),
        (torch.rand(2, 3, 4, 4), torch.rand(2, 3), ValueError, r"give \(N,\) or \(N, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), TypeError, "behind Normalize"),
    ],
)
def test_what_cannot_be_mixed_is_refused(images: Any, targets: Any, kind: type[Exception], words: str) -> None:
    for mix in (T.MixUp(4), T.CutMix(4)):
        with pytest.raises(kind, match=words):
            mix(images, targets, (0,))


def test_views_of_larger_images_are_taken(photos: dict[str, NDArray[np.uint8]]) -> None:
    photo = next(iter(photos.values()))
    (ours,) = T.apply([photo[5:50, 7:60]], T.RandomGrayscale(0))
    assert np.array_equal(ours, photo[5:50, 7:60])

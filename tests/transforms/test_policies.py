"""AutoAugment, RandAugment and TrivialAugmentWide: each operation is Pillow's, and choices are torchvision's."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from curator_dali import transforms as T
from curator_dali.sampling import uniforms
from curator_dali.transforms.policies import OPERATIONS, SIGNED, lower_operation, number, operation

KEY = (8, 1)
POLICIES = [T.AutoAugment(), T.RandAugment(), T.TrivialAugmentWide()]


@dataclass(frozen=True)
class Only(T.RandomTransform):
    """One operation of one magnitude for every sample."""

    name: str = "Identity"
    magnitude: float = 0.0
    interpolation: Any = "nearest"

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return operation(np.full(len(sizes), number(self.name)), np.full(len(sizes), self.magnitude), sizes)

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:
        return lower_operation(images, parameters, self.interpolation, 9)


def warped(image: Image.Image, *matrix: float) -> Image.Image:
    how = Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
    return image.transform(image.size, *how, fillcolor=(9, 9, 9))


# torchvision's `_apply_op` on PIL images
PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, m: warped(image, 1, m, 0, 0, 1, 0),
    "ShearY": lambda image, m: warped(image, 1, 0, 0, m, 1, 0),
    "TranslateX": lambda image, m: warped(image, 1, 0, -int(m), 0, 1, 0),
    "TranslateY": lambda image, m: warped(image, 1, 0, 0, 0, 1, -int(m)),
    "Rotate": lambda image, m: image.rotate(m, fillcolor=(9, 9, 9)),
    "Brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m),
    "Color": lambda image, m: ImageEnhance.Color(image).enhance(1 + m),
    "Contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m),
    "Sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m),
    "Posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "Solarize": lambda image, m: ImageOps.solarize(image, m),  # type: ignore[arg-type]
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
}
MAGNITUDES = {
    "ShearX": [0.3, -0.93],
    "ShearY": [0.31, -0.23],
    "TranslateX": [20.7, -32.0],
    "TranslateY": [9.0, -40.2],
    "Rotate": [30.0, -101.3],
    "Posterize": [8.0, 4.0, 2.0],
    "Solarize": [255.0, 178.5, 0.0],
} | {name: [-0.99, -0.4, 0.9] for name in ("Brightness", "Color", "Contrast", "Sharpness")}
TOLERANCE = dict.fromkeys(("Brightness", "Color", "Sharpness", "AutoContrast"), 1) | {"Contrast": 2, "Equalize": 2}


@pytest.fixture(scope="module")
def images(photos: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [np.ascontiguousarray(photo[20:220, 30:254]) for photo in photos.values()]


@pytest.mark.parametrize(
    ("name", "magnitude"), [(name, magnitude) for name in OPERATIONS for magnitude in MAGNITUDES.get(name, [0.0])]
)
def test_an_operation_is_pillows(images: list[NDArray[np.uint8]], name: str, magnitude: float) -> None:
    for image, ours in zip(images, T.apply(images, Only(name, magnitude)), strict=True):
        theirs = np.asarray(PILLOW[name](Image.fromarray(image), magnitude))
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        if name in ("ShearX", "ShearY", "Rotate"):  # but for pixels that fall between two
            assert (difference > 0).mean() < 0.002
        else:
            assert difference.max() <= TOLERANCE.get(name, 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_tiny_and_flat_images_pass(name: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 3), (2, 9, 3), (9, 2, 3), (3, 40, 3)]
    images = [*(rng.integers(0, 256, shape, np.uint8) for shape in shapes), np.full((20, 21, 3), 100, np.uint8)]
    magnitude = MAGNITUDES.get(name, [0.0])[0]
    found = T.apply(images, Only(name, magnitude))
    assert [array.shape for array in found] == [image.shape for image in images]
    if name != "Equalize":  # Pillow does nothing to fewer than 255 pixels
        for image, ours in zip(images, found, strict=True):
            theirs = np.asarray(PILLOW[name](Image.fromarray(image), magnitude))
            assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_linear_warps_are_smooth(images: list[NDArray[np.uint8]]) -> None:
    (ours,) = T.apply(images[:1], Only("Rotate", 20.0, "linear"))
    theirs = np.asarray(Image.fromarray(images[0]).rotate(20, Image.Resampling.BILINEAR, fillcolor=(9, 9, 9)))
    assert (np.abs(ours.astype(int) - theirs.astype(int)) > 1).mean() < 0.02  # the edge, which DALI blends


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_sample_gets_the_operations_that_were_chosen(images: list[NDArray[np.uint8]], policy: Any) -> None:
    images = images * 4
    sizes = np.array([image.shape[:2] for image in images])
    rounds = policy.choose(uniforms(KEY, np.arange(len(images)), np.arange(policy.draws)), sizes)
    for i, ours in enumerate(T.apply(images, (policy,), key=KEY)):
        expected, exact = Image.fromarray(images[i]), True
        for which, magnitudes, signs in rounds:
            name = OPERATIONS[which[i]]
            magnitude = -magnitudes[i] if name in SIGNED and signs[i] < 0.5 else magnitudes[i]
            if name.startswith(("Translate", "Shear", "Rotate")):
                corner = (0, 0, 0)
                how = (Image.Transform.AFFINE, matrix(name, magnitude), Image.Resampling.NEAREST)
                expected = (
                    expected.rotate(magnitude, fillcolor=corner)
                    if name == "Rotate"
                    else expected.transform(expected.size, *how, fillcolor=corner)
                )
            else:
                expected = PILLOW[name](expected, magnitude)
            exact = exact and name not in TOLERANCE
        difference = np.abs(ours.astype(int) - np.asarray(expected).astype(int))
        if exact:
            assert (difference > 0).mean() < 0.002
        else:  # a small difference before equalize or posterize is a larger one behind it
            assert np.median(difference) <= 2
            assert (difference > 40).mean() < 0.02


def matrix(name: str, magnitude: float) -> tuple[float, ...]:
    x, y = (magnitude, 0.0) if name.endswith("X") else (0.0, magnitude)
    return (1, x, 0, y, 1, 0) if name.startswith("Shear") else (1, 0, -int(x), 0, 1, -int(y))


def chosen(policy: Any, samples: int = 40_000) -> Any:
    sizes = np.tile(np.array([[331, 662]]), (samples, 1))
    return policy.choose(uniforms(KEY, np.arange(samples), np.arange(policy.draws)), sizes)


def test_randaugment_chooses_evenly_at_one_strength() -> None:
    rounds = chosen(T.RandAugment(3, 9, 31))
    assert len(rounds) == 3
    expected = {"ShearX": 0.09, "TranslateX": 90.0, "TranslateY": 45.0, "Rotate": 9.0, "Color": 0.27}
    expected |= {"Posterize": 7.0, "Solarize": 178.5}  # of torchvision's tables, at place 9
    for which, magnitudes, signs in rounds:
        counts = np.bincount(which, minlength=len(OPERATIONS)) / len(which)
        assert counts[number("Invert")] == 0
        assert np.abs(counts[:-1] - 1 / 14).max() < 0.006
        for name, value in expected.items():
            assert magnitudes[which == number(name)] == pytest.approx(value)
        assert (signs < 0.5).mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(rounds[0][0], rounds[1][0])[0, 1]) < 0.02


def test_trivialaugment_chooses_evenly_at_every_strength() -> None:
    ((which, magnitudes, _),) = chosen(T.TrivialAugmentWide())
    assert np.abs(np.bincount(which)[:14] / len(which) - 1 / 14).max() < 0.006
    for name, largest in {"ShearY": 0.99, "TranslateX": 32.0, "Rotate": 135.0, "Sharpness": 0.99}.items():
        found = magnitudes[which == number(name)]
        assert np.allclose(np.unique(found), np.linspace(0, largest, 31))
        assert max(Counter(found.tolist()).values()) < 2 * len(found) / 31
    assert set(magnitudes[which == number("Posterize")]) == {2, 3, 4, 5, 6, 7, 8}
    assert np.allclose(np.unique(magnitudes[which == number("Solarize")]), np.linspace(0, 255, 31))
    for name in ("Identity", "AutoContrast", "Equalize", "Invert"):
        assert not magnitudes[which == number(name)].any()


def test_autoaugment_keeps_its_pairs_and_probabilities() -> None:
    (first, strengths, _), (second, others, _) = chosen(T.AutoAugment(), 100_000)
    # of 25 pairs two begin with Invert at 0.6, and Sharpness begins one at 0.4, followed by Invert at 0.6
    assert (first == number("Invert")).mean() == pytest.approx(2 * 0.6 / 25, abs=0.003)
    assert set(second[first == number("Invert")]) == {number("Equalize")}
    sharpened = first == number("Sharpness")
    assert sharpened.mean() == pytest.approx(0.4 / 25, abs=0.003)
    assert (second[sharpened] == number("Invert")).mean() == pytest.approx(0.6, abs=0.05)
    assert np.allclose(strengths[sharpened], 0.7)
    assert np.allclose(strengths[first == number("ShearX")], 0.3 * 5 / 9)
    assert set(others[second == number("Posterize")]) == {5.0}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: T.RandAugment(0), "RandAugment.num_ops is 0"),
        (lambda: T.RandAugment(magnitude=31), "RandAugment.magnitude is 31 of 31 bins"),
        (lambda: T.RandAugment(num_magnitude_bins=1), "at least 2 bins"),
        (lambda: T.TrivialAugmentWide(num_magnitude_bins=1), "TrivialAugmentWide.num_magnitude_bins is 1"),
        (
            lambda: T.AutoAugment(interpolation="cubic"),
            'AutoAugment.interpolation is \'cubic\'; allowed: "nearest", "linear"',
        ),
        (lambda: T.AutoAugment(fill=300), "0 to 255"),
    ],
)
def test_wrong_values_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()

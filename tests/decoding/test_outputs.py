"""Several outputs of one decode, and transforms of arrays, whichever way an image was decoded."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from curator_dali import transforms
from curator_dali.decoding.decoder import Decoded, Decoder, gate
from curator_dali.sources import MemorySource
from tests import formats, helpers

TRAIN = (transforms.RandomResizedCrop(40), transforms.HorizontalFlip(), transforms.Normalize())
CROP = TRAIN[:1]
CLIP = transforms.clip(32)


def decode(
    files: list[bytes], outputs: list[tuple[transforms.Transform, ...]], key: tuple[int, int] = (5, 2)
) -> Decoded:
    source = MemorySource(files)
    decoder = Decoder(batch_size=len(files), device="cpu", num_threads=2, outputs=outputs)
    try:
        decoder.submit(gate(source.read(np.arange(len(files)))), key)
        return decoder.collect()
    finally:
        decoder.close()


@pytest.fixture(scope="module")
def files(photos: dict[str, NDArray[np.uint8]]) -> list[bytes]:
    pixels = [pixels for _, pixels in helpers.crops(photos, 8)]
    kinds = ["JPEG", "PNG", "TIFF", "JPEG", "WEBP", "BMP", "GIF", "JPEG"]
    return [formats.save(Image.fromarray(image), kind) for image, kind in zip(pixels, kinds, strict=True)]


def rows(output: object) -> list[NDArray[np.generic]]:
    return [np.array(row) for row in output]  # type: ignore[attr-defined]


def test_outputs_are_what_each_gives_alone(files: list[bytes]) -> None:
    outputs = [(), CLIP, TRAIN, CROP, (transforms.Resize((20, 30)),)]
    together = decode(files, outputs)
    assert together.errors == {}
    assert together.fallback == 2  # TIFF and GIF
    assert len(together.outputs) == len(outputs)
    for sequence, output in zip(outputs, together.outputs, strict=True):
        (alone,) = decode(files, [sequence]).outputs
        for a, b in zip(rows(output), rows(alone), strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b), sequence


def test_apply_gives_what_the_decoder_gives(files: list[bytes]) -> None:
    decoded = decode(files, [(), TRAIN, CLIP])
    plain = rows(decoded.outputs[0])
    for sequence, output in ((TRAIN, decoded.outputs[1]), (CLIP, decoded.outputs[2])):
        assert np.array_equal(transforms.apply(plain, sequence, key=(5, 2)), output)
    order = np.array([6, 1, 3])
    some = transforms.apply([plain[i] for i in order], TRAIN, key=(5, 2), indices=order)
    assert np.array_equal(some, decoded.outputs[1][order])


def test_apply_refuses_what_it_cannot_take() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    assert transforms.apply([], CLIP) == []
    assert transforms.apply(np.stack([image] * 300), transforms.Resize(2)).shape == (300, 2, 2, 3)
    for wrong in (image.astype(np.float32), image[:, :, :1], image[:0]):
        with pytest.raises(ValueError, match=r"images\[1\] is .* give \(H, W, 3\) uint8"):
            transforms.apply([image, wrong], CLIP)
    with pytest.raises(ValueError, match="one index an image"):
        transforms.apply([image], CLIP, indices=np.arange(2))


def test_an_image_of_a_failed_batch_looks_the_same(files: list[bytes]) -> None:
    jpegs = [files[0], files[3], files[7]]
    cut = files[0][: len(files[0]) // 2]
    source = MemorySource([*jpegs, cut])
    gated = gate(source.read(np.arange(4)))
    gated.dali, gated.errors = [0, 1, 2, 3], {}  # past the gate by force
    gated.encoded.headers[3] = gated.encoded.headers[0]
    decoder = Decoder(batch_size=4, device="cpu", num_threads=2, outputs=[TRAIN, (transforms.Resize(32),)])
    try:
        decoder.submit(gated, (5, 2))
        failed = decoder.collect()
    finally:
        decoder.close()
    assert list(failed.errors) == [3]
    good = decode(jpegs, [TRAIN, (transforms.Resize(32),)])
    for a, b in zip(failed.outputs, good.outputs, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(rows(a), rows(b), strict=True))


def test_a_batch_without_a_good_image_has_no_outputs() -> None:
    decoded = decode([b"no image", b""], [(), TRAIN])
    assert decoded.outputs == [None, None]
    assert set(decoded.errors) == {0, 1}


def test_no_output_and_wrong_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        Decoder(batch_size=1, device="cpu", num_threads=1, outputs=[])
    with pytest.raises(ValueError, match="Normalize must be the last"):
        Decoder(batch_size=1, device="cpu", num_threads=1, outputs=[(), (transforms.Normalize(), *CLIP)])
    with pytest.raises(TypeError, match=r"transforms\[0\] is 224"):
        Decoder(batch_size=1, device="cpu", num_threads=1, outputs=[(224,)])  # type: ignore[list-item]

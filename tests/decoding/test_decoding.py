"""Every format against Pillow's upright RGB, every kind of damage, and what a bad image costs the others."""

import io
import os
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import curator_dali as cd
from curator_dali import dali
from curator_dali.decoding import pillow
from curator_dali.decoding.decoder import Decoder, _raise_unless_bad_image, gate
from curator_dali.sources import MemorySource
from tests import formats


def upright_rgb(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def load(files: dict[str, bytes], **options: object) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with cd.ImageLoader(MemorySource(files), device="cpu", num_threads=2, **options) as loader:
        pixels = {
            item.image_id: np.array(image)
            for batch in loader
            for item, image in zip(batch.data, batch.images, strict=True)
        }
        return pixels, {error.image_id: error.reason for error in loader.errors}


def test_every_format_gives_pillows_upright_rgb_bit_for_bit(photo: Image.Image) -> None:
    files = formats.good_files(photo)
    pixels, errors = load(files)
    assert errors == {}
    assert set(pixels) == set(files)
    for name, data in files.items():
        if "16 bit" in name and "png" in name:
            continue
        assert np.array_equal(pixels[name], upright_rgb(data)), name


def test_sixteen_bits_lose_their_lower_eight(photo: Image.Image) -> None:
    files = formats.good_files(photo)
    pixels, _ = load({name: files[name] for name in ("png 16 bit grey", "png 16 bit colour")})
    small = photo.resize((61, 47))
    assert np.array_equal(pixels["png 16 bit grey"][..., 0], np.asarray(small.convert("L")))
    assert np.array_equal(pixels["png 16 bit colour"], np.asarray(small))


def test_every_bad_file_is_named_with_its_reason_and_costs_no_other(photo: Image.Image) -> None:
    good = {f"good {i}": formats.save(photo.resize((40 + i, 30)), "JPEG") for i in range(20)}
    bad = formats.bad_files(photo)
    mixed: dict[str, bytes] = {}
    for i, (name, data) in enumerate(good.items()):
        mixed[name] = data
        if i < len(bad):
            key = list(bad)[i]
            mixed[key] = bad[key][0]
    pixels, errors = load(mixed, batch_size=8)
    assert set(pixels) == set(good)
    assert set(errors) == set(bad)
    for name, (_, reason) in bad.items():
        assert re.search(reason, errors[name]), (name, errors[name])
    for name, data in good.items():
        assert np.array_equal(pixels[name], upright_rgb(data)), name


def test_a_file_that_fails_in_dalis_decoder_is_isolated(photo: Image.Image) -> None:
    """Past the gate by force (an end marker behind half a PNG's chunk list cannot be, so DALI itself must refuse)."""
    jpeg = formats.save(photo.resize((61, 47)), "JPEG")
    cut = jpeg[: len(jpeg) // 2]
    files = [jpeg, cut, jpeg, jpeg]
    source = MemorySource(files)
    encoded = source.read(np.arange(4))
    gated = gate(encoded)
    assert list(gated.errors) == [1]
    gated.dali, gated.errors = [0, 1, 2, 3], {}  # as if the gate had not seen it
    decoder = Decoder(batch_size=4, device="cpu", num_threads=2)
    try:
        decoder.submit(gated)
        decoder.submit(gate(source.read(np.array([0, 2]))))
        decoded, after = decoder.collect(), decoder.collect()
    finally:
        decoder.close()
    assert decoded.rows.tolist() == [0, 2, 3]
    assert list(decoded.errors) == [1]
    assert decoded.errors[1].startswith("cannot be decoded: ")
    assert all(np.array_equal(image, upright_rgb(jpeg)) for image in decoded.outputs[0])
    assert after.rows.tolist() == [0, 1]
    assert after.errors == {}


@pytest.mark.parametrize("bad", [[0], [63], [20, 21], [1, 40, 62], list(range(64)), [*range(63)]])
def test_bad_images_of_a_batch_are_found_in_parts(
    photo: Image.Image, bad: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    jpegs = [formats.save(photo.resize((61 + i, 47)), "JPEG") for i in range(64)]
    files = [jpeg[: len(jpeg) // 2] if i in bad else jpeg for i, jpeg in enumerate(jpegs)]
    gated = gate(MemorySource(files).read(np.arange(64)))
    gated.dali, gated.errors = list(range(64)), {}
    tries: list[int] = []
    feed = dali.feed

    def spy(pipeline: Any, images: Any, arguments: Any) -> None:
        tries.append(len(images))
        feed(pipeline, images, arguments)

    monkeypatch.setattr(dali, "feed", spy)
    decoder = Decoder(batch_size=64, device="cpu", num_threads=2)
    try:
        decoder.submit(gated)
        decoded = decoder.collect()
    finally:
        decoder.close()
    assert decoded.fallback == 0
    good = [i for i in range(64) if i not in bad]
    assert (decoded.rows.tolist(), sorted(decoded.errors)) == (good, bad)
    if good:
        for row, image in zip(good, decoded.outputs[0], strict=True):
            assert np.array_equal(image, upright_rgb(jpegs[row]))
    assert len(tries) <= 1 + 8 + 8 * min(len(bad), 8)  # eight parts, and eight of each bad part


def test_transforms_apply_to_what_pillow_decoded_too(photo: Image.Image) -> None:
    files = {"a": formats.save(photo, "PNG"), "b": formats.save(photo, "TIFF"), "c": formats.save(photo, "GIF")}
    with cd.ImageLoader(MemorySource(files), device="cpu", transforms=cd.transforms.clip(64)) as loader:
        (batch,) = loader
        assert batch.images.shape == (3, 64, 64, 3)
        assert np.array_equal(batch.images[0], batch.images[1])
        assert loader.stats.fallback == 2


def test_pillow_fallback_raises_for_damage(photo: Image.Image) -> None:
    with pytest.raises(Exception, match=r"truncated|cannot identify|broken"):
        pillow.decode(np.frombuffer(formats.save(photo, "TIFF")[:200], np.uint8))


@pytest.mark.parametrize(
    "trouble",
    [
        "CUDA allocation failed",
        "Can't allocate 1258291200 bytes on device 0.",
        "Can't allocate 8388608 bytes on host.",
        "CUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access was encountered",
        "CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2):\nout of memory",
        "nvjpeg returned NVJPEG_STATUS_ALLOCATOR_FAILURE",
    ],
)
def test_the_devices_trouble_is_no_bad_image(trouble: str) -> None:
    """As DALI 2.4 words it; without a GPU nothing here can bring it about."""
    where = "Error in mixed operator `nvidia.dali.fn.decoders.image`"
    with pytest.raises(RuntimeError, match=re.escape(trouble)):
        _raise_unless_bad_image(RuntimeError(f"{where}: {trouble}"))
    _raise_unless_bad_image(RuntimeError(f"{where}: failed to decode sample 3"))
    _raise_unless_bad_image(RuntimeError(f"{where}: std::bad_alloc"))  # what a damaged header asked of the host


def test_default_threads() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert dali.default_threads("cpu") == cpus
    assert dali.default_threads("cuda:0") == min(cpus, 16)

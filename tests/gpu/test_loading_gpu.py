"""The main path on a real GPU: decode, isolate, transform, resume. Skipped without one."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import curator_dali as cd
from curator_dali.sources import MemorySource
from tests import formats

pytestmark = pytest.mark.gpu


def host(image: object) -> np.ndarray:
    return image.get()  # type: ignore[attr-defined, no-any-return]


def test_photographs_are_within_a_few_levels_of_the_cpu(shards: list[Path]) -> None:
    with (
        cd.ImageLoader(shards, device="cuda", batch_size=16) as gpu,
        cd.ImageLoader(shards, device="cpu", batch_size=16) as cpu,
    ):
        for a, b in zip(gpu, cpu, strict=True):
            assert a.device == "cuda:0"
            assert [item.image_id for item in a] == [item.image_id for item in b]
            for ours, expected in zip(a.images, b.images, strict=True):
                difference = np.abs(host(ours).astype(int) - expected.astype(int))
                assert difference.max() <= 8
                assert difference.mean() < 0.5


def test_every_format_decodes_upright(photo: Image.Image) -> None:
    files = formats.good_files(photo)
    with cd.ImageLoader(MemorySource(files), device="cuda") as loader:
        seen = {item.image_id: host(image) for batch in loader for item, image in zip(batch, batch.images, strict=True)}
        assert loader.errors == []
    for name, data in files.items():
        if "16 bit" in name and "png" in name:
            continue
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert seen[name].shape == expected.shape, name
        assert np.abs(seen[name].astype(int) - expected.astype(int)).mean() < 2, name


def test_bad_files_are_named_and_cost_no_other(photo: Image.Image) -> None:
    good = {f"good {i}": formats.save(photo.resize((40 + i, 30)), "JPEG") for i in range(20)}
    bad = formats.bad_files(photo)
    with cd.ImageLoader(
        MemorySource(good | {name: data for name, (data, _) in bad.items()}), device="cuda", batch_size=8
    ) as loader:
        kept = {item.image_id for batch in loader for item in batch}
        reasons = {error.image_id: error.reason for error in loader.errors}
    assert kept == set(good)
    assert all(re.search(reason, reasons[name]) for name, (_, reason) in bad.items())


def test_transforms_give_one_array_that_torch_shares(shards: list[Path]) -> None:
    with cd.ImageLoader(shards, device="cuda", transforms=cd.transforms.clip(224), batch_size=16) as loader:
        kept = list(loader)
        sums = [int(batch.images.astype("int64").sum()) for batch in kept]
        for _ in range(3):
            again = [int(batch.images.astype("int64").sum()) for batch in loader]
            assert again == sums
        assert [int(batch.images.astype("int64").sum()) for batch in kept] == sums  # untouched by later batches
        tensor = kept[0].to_torch()
        assert tensor.is_cuda
        assert tensor.data_ptr() == kept[0].images.data.ptr

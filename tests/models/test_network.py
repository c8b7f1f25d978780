"""Normalisation, padding, compiling: what every torch encoder goes through."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dali.models.base import Network, Preprocessing, check_images, compute_dtype, in_batches, normalized
from curator_dali.transforms import CLIP_MEAN, CLIP_STD, CenterCrop, Resize

SIZE = (6, 10)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, *SIZE, 3), np.uint8))


def network(**options: object) -> Network:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 5))
    preprocessing = Preprocessing((Resize(8), CenterCrop(SIZE)), CLIP_MEAN, CLIP_STD)
    arguments = {"name": "net", "dim": 5, "preprocessing": preprocessing, "device": "cpu", "dtype": torch.float32}
    return Network(module, **(arguments | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalisation_is_the_formula_rounded_once(dtype: torch.dtype) -> None:
    images = pictures(3)
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    out = normalized(images, 1 / (255 * std), -mean / std, dtype)
    expected = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert out.shape == (3, 3, *SIZE)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(out.double(), expected, atol=1e-6, rtol=torch.finfo(dtype).eps)


@given(st.integers(0, 20), st.one_of(st.none(), st.integers(1, 9)))
@settings(max_examples=50, deadline=None)
def test_batches_are_full_and_rows_stay_in_place(count: int, batch_size: int | None) -> None:
    images = pictures(count)
    seen = []
    memory = torch.empty(32)

    def run(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        memory.fill_(torch.nan)  # the same memory again and again, as with CUDA graphs
        memory[: len(part)] = part.float().sum(dim=(1, 2, 3))
        return memory[: len(part)]

    out = torch.full((count,), -1.0)
    in_batches(run, images, out, batch_size)
    assert torch.equal(out, images.float().sum(dim=(1, 2, 3)))
    if batch_size:
        assert seen == [batch_size] * -(-count // batch_size)
    else:  # on a CPU, as they come but few at a time
        assert seen == [16] * (count // 16) + ([count % 16] if count % 16 else [])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_padded_equals_unpadded(batch_size: int) -> None:
    images = pictures(7)
    assert torch.allclose(network(batch_size=batch_size)(images), network()(images), atol=1e-6)


@pytest.mark.slow  # the C++ compiler runs
def test_compiled_equals_eager() -> None:
    images = pictures(7)
    compiled = network(batch_size=4, compile=True)
    assert torch.allclose(compiled(images), network()(images), atol=1e-5)
    assert torch.allclose(compiled(images[:2]), network()(images[:2]), atol=1e-5)


def test_embeddings_have_length_one_and_no_gradient_but_may_be_trained_on() -> None:
    images = pictures(4)
    out = network()(images)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    assert torch.allclose(out.norm(dim=1), torch.ones(4))
    probe = torch.nn.Linear(5, 1)
    probe(out).sum().backward()  # fails on tensors of inference mode
    assert probe.weight.grad is not None


def test_nothing_gives_nothing() -> None:
    assert network(batch_size=4)(pictures(0)).shape == (0, 5)
    assert network()(pictures(0)).shape == (0, 5)


def test_the_images_stay_as_they_are() -> None:
    images = pictures(5)
    before = images.clone()
    network(batch_size=4)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (pictures(2).float(), r"got \(2, 6, 10, 3\) torch.float32"),
        (pictures(2).permute(0, 3, 1, 2), r"got \(2, 3, 6, 10\)"),
        (pictures(2)[0], r"got \(6, 10, 3\)"),
        (pictures(2)[:, :5], r"\(N, 6, 10, 3\) uint8 on cpu"),
        (pictures(2).numpy(), "got ndarray: see ImageBatch.to_torch"),
        (pictures(2).to("meta"), "these lie on meta"),
    ],
)
def test_other_images_are_refused(images: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_images(images, SIZE, "cpu", "net")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        network(batch_size=0)
    with pytest.raises(ValueError, match="compile needs a batch_size"):
        network(compile=True)


def test_dtypes() -> None:
    assert compute_dtype("auto", "cpu") == torch.float32
    assert compute_dtype("bfloat16", "cpu") == compute_dtype(torch.bfloat16, "cpu") == torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype is 'int8'; allowed: 'auto', 'float32', 'bfloat16', 'float16'"):
        compute_dtype("int8", "cpu")

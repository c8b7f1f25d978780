"""`TorchImageLoader`: what a training loop gets, epoch by epoch."""

import gc
import logging
import os
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curator_dali as cd
from curator_dali import transforms
from curator_dali.batch.image import ImageObject
from curator_dali.sources import MemorySource
from curator_dali.torch import Padded, TargetError, TorchImageLoader, pad_images
from tests.training.conftest import CLASSES, COUNT

SMALL = [transforms.RandomResizedCrop(16), transforms.HorizontalFlip(), transforms.Normalize()]
OPTIONS: dict[str, Any] = {"batch_size": 6, "device": "cpu", "num_threads": 1, "transforms": SMALL}


def labelled(encoded: dict[str, bytes], **changes: Any) -> MemorySource:
    """Numbers as labels; `changes` puts other labels at some numbers, None takes them away."""
    labels: dict[str, Any] = {key: int(key) for key in encoded} | {key[1:]: value for key, value in changes.items()}
    return MemorySource(encoded, {key: {} if value is None else {"label": value} for key, value in labels.items()})


def numbers(loader: Iterable[Any]) -> list[list[int]]:
    return [targets.tolist() for _, targets in loader]


def test_images_and_targets_are_tensors_in_place(folder: Path) -> None:
    with TorchImageLoader(folder, shuffle=1, **OPTIONS) as loader:
        assert (len(loader), loader.batch_size, loader.drop_last, len(loader.dataset)) == (7, 6, False, COUNT)
        assert loader.class_names == CLASSES
        batches = list(loader)
        assert len(batches) == 7
        for images, targets in batches:
            assert images.shape == (len(targets), 3, 16, 16)
            assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
            assert images.is_contiguous()
        counts = torch.bincount(torch.cat([targets for _, targets in batches]))
        assert counts.tolist() == [14, 14, 13]


def test_the_tensor_is_the_batch_own_memory(folder: Path) -> None:
    with TorchImageLoader(folder, **OPTIONS) as loader:
        batch = next(iter(loader.loader))
        assert loader._out(batch)[0].data_ptr() == batch.images.ctypes.data


def test_labels_belong_to_their_images(folder: Path) -> None:
    with TorchImageLoader(folder, shuffle=3, as_dict=True, **OPTIONS) as loader:
        for batch in loader:
            names = [CLASSES[number] for number in batch["targets"]]
            assert names == [key.split("/")[0] for key in batch["ids"]]
            assert names == [fields["label_name"] for fields in batch["metadata"]]


@pytest.mark.parametrize("layout", [None, "NCHW", "NHWC"])
def test_layouts_are_views(folder: Path, layout: Any) -> None:
    options = OPTIONS | {"transforms": [transforms.Resize((16, 20))]}
    with TorchImageLoader(folder, layout=layout, **options) as loader:
        images, _ = next(iter(loader))
        assert images.dtype == torch.uint8
        assert images.shape == ((6, 3, 16, 20) if layout == "NCHW" else (6, 16, 20, 3))
        assert images.stride(1 if layout == "NCHW" else 3) == 1
    with TorchImageLoader(folder, layout=layout, **OPTIONS) as loader:
        images, _ = next(iter(loader))
        assert images.shape == ((6, 16, 16, 3) if layout == "NHWC" else (6, 3, 16, 16))


def train(loader: Any, epochs: int, device: str = "cpu") -> list[list[int]]:
    """A loop as it is written for `torch.utils.data.DataLoader`."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3)).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch) if hasattr(loader.sampler, "set_epoch") else None
        total = 0
        for step, (images, targets) in enumerate(loader):
            images, targets = images.to(device, non_blocking=True), targets.to(device)
            loss = torch.nn.functional.cross_entropy(model(images), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            assert 0 <= step < len(loader)
            total += len(images)
            seen.append(targets.tolist())
        assert total == len(loader.dataset)
    return seen


def test_a_loop_for_dataloader_runs_with_only_its_construction_changed(folder: Path) -> None:
    with TorchImageLoader(folder, shuffle=1, target="label", **OPTIONS) as ours:
        images = torch.cat([images for images, _ in ours])
        labels = torch.cat([targets for _, targets in ours])
        seen = train(ours, 2)
    theirs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=6, shuffle=True)
    assert [len(part) for part in train(theirs, 2)] == [len(part) for part in seen] == 2 * [6, 6, 6, 6, 6, 6, 5]


def test_every_pass_is_another_epoch_as_with_a_shuffling_dataloader(encoded: dict[str, bytes]) -> None:
    with TorchImageLoader(labelled(encoded), shuffle=True, **OPTIONS) as loader:
        first, second = numbers(loader), numbers(loader)
        assert loader.epoch == 2
        assert first != second
        assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(COUNT))
        loader.set_epoch(0)
        assert numbers(loader) == first
        assert numbers(loader) == second


def test_shuffle_takes_true_and_false_as_dataloader_does(encoded: dict[str, bytes]) -> None:
    with TorchImageLoader(labelled(encoded), shuffle=False, **OPTIONS) as loader:
        assert list(chain(*numbers(loader))) == list(range(COUNT))
        assert loader.loader.shuffle is None
    with TorchImageLoader(labelled(encoded), shuffle=True, **OPTIONS) as loader:
        assert loader.loader.shuffle == cd.Shuffle(0)


def test_a_pass_that_is_left_early_is_over(encoded: dict[str, bytes]) -> None:
    """Else a loop over the first batches alone would see the same ones every time."""
    with TorchImageLoader(labelled(encoded), shuffle=1, **OPTIONS) as loader:
        firsts = [next(iter(loader))[1].tolist() for _ in range(3)]
        assert len({tuple(first) for first in firsts}) == 3
        assert loader.epoch == 2
        loader.set_epoch(1)
        assert next(iter(loader))[1].tolist() == firsts[1]
        unused = iter(loader)  # nothing taken: not an epoch
        assert loader.epoch == 2
        iter(loader)
        assert loader.epoch == 2
        with pytest.raises(cd.PassEndedError):
            next(unused)
        assert loader.epoch == 2


def test_an_epoch_chosen_during_a_pass_is_for_the_next(encoded: dict[str, bytes]) -> None:
    """Lightning makes the iterator, takes a batch, and only then calls set_epoch."""
    with TorchImageLoader(labelled(encoded), shuffle=1, **OPTIONS) as loader:
        epochs = [numbers(loader) for _ in range(6)]
        loader.set_epoch(0)
        for epoch, (chosen, then) in enumerate([(0, 1), (1, 2), (5, 5)]):
            running = iter(loader)
            first = next(running)[1].tolist()
            loader.set_epoch(chosen)
            assert loader.state_dict()["position"] == 6
            assert [first, *numbers(running)] == epochs[epoch]
            assert loader.epoch == then
        running = iter(loader)
        next(running)
        loader.set_epoch(2)
        assert numbers(loader) == epochs[2]  # the running pass is left
        for _batch in loader:
            break
        loader.set_epoch(3)  # again, from its beginning
        assert loader.state_dict()["position"] == 0
        assert numbers(loader) == epochs[3]
        with pytest.raises(ValueError, match="epoch is -1"):
            loader.set_epoch(-1)


def test_states_between_inside_and_at_the_end_of_epochs(encoded: dict[str, bytes]) -> None:
    def make() -> TorchImageLoader:
        return TorchImageLoader(labelled(encoded), shuffle=1, **OPTIONS)

    with make() as loader:
        epochs = [numbers(loader) for _ in range(3)]
        loader.set_epoch(0)
        for _batch in loader:
            last = loader.state_dict()
        after = loader.state_dict()
    assert (last["epoch"], last["position"]) == (0, COUNT)
    assert (after["epoch"], after["position"]) == (1, 0)
    with make() as loader:
        loader.load_state_dict(last)
        loader.set_epoch(0)  # as a loop that counts its epochs does: nothing is left of this one
        assert numbers(loader) == []
        loader.set_epoch(1)
        assert numbers(loader) == epochs[1]
        loader.load_state_dict(after)
        assert numbers(loader) == epochs[1]
        assert numbers(loader) == epochs[2]


def test_drop_last_leaves_full_batches(encoded: dict[str, bytes]) -> None:
    with TorchImageLoader(labelled(encoded), shuffle=1, drop_last=True, **OPTIONS) as loader:
        assert len(loader) == 6
        assert [len(part) for part in numbers(loader)] == [6] * 6
        assert loader.epoch == 1


def test_drop_last_of_too_few_is_told_so(encoded: dict[str, bytes]) -> None:
    with (
        TorchImageLoader(labelled(encoded), drop_last=True, **{**OPTIONS, "batch_size": 42}) as loader,
        pytest.raises(ValueError, match="drop_last leaves nothing of 41 samples: a step takes 42 on each of 1 rank"),
    ):
        iter(loader)


def test_no_image_one_image_and_more_ranks_than_images(encoded: dict[str, bytes]) -> None:
    with TorchImageLoader(MemorySource([]), **OPTIONS) as loader:
        assert (len(loader), list(loader)) == (0, [])
    few = MemorySource(list(encoded.values())[:3], [{"label": number} for number in range(3)])
    found = []
    for rank in range(5):
        with TorchImageLoader(few, shard=cd.Shard(rank, 5), **OPTIONS) as loader:
            found += numbers(loader)
    assert found == [[0], [1], [2], [0], [1]]


def test_views_come_with_the_dict(folder: Path) -> None:
    view = (transforms.Resize((8, 8)),)
    with TorchImageLoader(folder, as_dict=True, views=[view], **OPTIONS) as loader:
        for batch in loader:
            assert batch["views"][view].shape == (len(batch["ids"]), 8, 8, 3)
    with pytest.raises(ValueError, match="makes no images"):
        TorchImageLoader(folder, views=[view], **{**OPTIONS, "transforms": None})


@pytest.mark.parametrize(
    ("target", "expected", "dtype"),
    [
        ("label", 7, torch.int64),
        (lambda item: int(item.image_id) / 2, 3.5, torch.float32),
        (lambda item: int(item.image_id) > 3, 1, torch.int64),
        (lambda item: np.float64(int(item.image_id)), 7.0, torch.float32),
    ],
)
def test_targets_of_fields_and_functions(
    encoded: dict[str, bytes], target: str | Callable[[ImageObject], Any], expected: float, dtype: torch.dtype
) -> None:
    with TorchImageLoader(labelled(encoded), target=target, **OPTIONS) as loader:
        _, targets = list(loader)[1]
        assert (targets[1].item(), targets.dtype) == (expected, dtype)


def test_targets_may_be_vectors_or_none_or_names(encoded: dict[str, bytes], folder: Path) -> None:
    with TorchImageLoader(labelled(encoded), target=lambda item: [int(item.image_id), 1], **OPTIONS) as loader:
        assert next(iter(loader))[1].tolist() == [[i, 1] for i in range(6)]
    with TorchImageLoader(encoded, target=None, **OPTIONS) as loader:
        assert isinstance(next(iter(loader)), torch.Tensor)
    with TorchImageLoader(folder, target="label_name", classes=["eels", "dogs", "cats"], **OPTIONS) as loader:
        assert next(iter(loader))[1].tolist() == [2] * 6
    with TorchImageLoader(labelled(encoded), target_dtype=torch.float32, **OPTIONS) as loader:
        assert next(iter(loader))[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"_00": None}, {}, "image '00' .* has no 'label'.*fields there: none; give target="),
        ({}, {"target": "lable"}, "has no 'lable' in its metadata; the fields there: label; give target="),
        ({"_00": "cat"}, {}, "'label' of image '00' .* is 'cat' \\(str\\), not a number; give classes="),
        ({"_00": [1, 2]}, {}, "'label' of image '05' .* has the shape \\(\\), the others \\(2,\\)"),
        ({"_00": {}}, {}, "is {} \\(dict\\), not a number"),
        ({"_00": 0.5}, {"target_dtype": torch.int64}, "is 0.5, the others are whole numbers; give target_dtype"),
        ({}, {"classes": [1, 2]}, "is 0; classes has \\[1, 2\\]"),
    ],
)
def test_a_wrong_target_is_told_before_any_batch(
    encoded: dict[str, bytes], changes: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TargetError, match=words):
        TorchImageLoader(labelled(encoded, **changes), **options, **OPTIONS)


def test_a_wrong_target_of_a_later_sample_names_it(encoded: dict[str, bytes]) -> None:
    with (
        TorchImageLoader(labelled(encoded, _03=None), **OPTIONS) as loader,
        pytest.raises(TargetError, match=r"image '03' .* has no 'label'"),
    ):
        list(loader)
    with (
        TorchImageLoader(labelled(encoded, _03=1.5), **OPTIONS) as loader,
        pytest.raises(TargetError, match=r"of image '03' .* is 1\.5"),
    ):
        list(loader)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_bad": "drop"}, "on_bad is 'drop'"),
        ({"layout": "CHW"}, "layout is 'CHW'"),
        ({"target_dtype": torch.int32}, "target_dtype is torch.int32"),
        ({"pad": -1}, "pad is -1"),
        ({"classes": "cat"}, "classes is 'cat'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_wrong_option_is_refused(encoded: dict[str, bytes], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TorchImageLoader(labelled(encoded), **options)


def test_an_image_loader_is_taken_as_it_is(encoded: dict[str, bytes]) -> None:
    with cd.ImageLoader(labelled(encoded), **OPTIONS) as loader:
        with TorchImageLoader(loader) as ours:
            assert len(numbers(ours)) == 7
        assert len(list(loader)) == 7  # not closed: it is the caller's
        with pytest.raises(TypeError, match="batch_size: give these to the ImageLoader"):
            TorchImageLoader(loader, batch_size=3)


def with_bad(encoded: dict[str, bytes], bad: Iterable[int]) -> MemorySource:
    wrong = set(bad)
    files = {key: b"bad" if int(key) in wrong else data for key, data in encoded.items()}
    return MemorySource(files, {key: {"label": int(key)} for key in encoded})


def test_bad_images_are_refilled_in_turn(encoded: dict[str, bytes]) -> None:
    with TorchImageLoader(with_bad(encoded, [1, 3, 4, 40]), **OPTIONS) as loader:
        found = numbers(loader)
        assert found[0] == [0, 0, 2, 2, 5, 5]
        assert found[-1] == [36, 37, 38, 39, 36]
        assert len(loader.errors) == 4
        images, targets = next(iter(loader))
        assert torch.equal(images[0], images[1]) is (targets[0] == targets[1]).item()


def test_bad_images_are_left_out_when_asked(encoded: dict[str, bytes]) -> None:
    with TorchImageLoader(with_bad(encoded, [1, 3, 4]), on_bad="shorten", **OPTIONS) as loader:
        assert numbers(loader)[0] == [0, 2, 5]


@pytest.mark.parametrize("on_bad", ["refill", "shorten"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_make_the_same_steps_whatever_is_bad(encoded: dict[str, bytes], on_bad: Any, world: int) -> None:
    source = with_bad(encoded, [*range(14), *range(20, 41, 3)])
    lengths = []
    for rank in range(world):
        options = OPTIONS | {"batch_size": 4, "shard": cd.Shard(rank, world)}
        with TorchImageLoader(source, on_bad=on_bad, **options) as loader:
            found = numbers(loader)
            assert len(found) == len(loader)
            lengths.append([len(part) for part in found])
            assert all(lengths[-1])
            assert found[0][0] == 14  # the epoch's first good image stands in
    if on_bad == "refill":
        assert all(one == lengths[0] for one in lengths)
        assert set(lengths[0][:-1]) == {4}


def test_no_good_image_at_all_is_an_error(encoded: dict[str, bytes]) -> None:
    with (
        TorchImageLoader(with_bad(encoded, range(COUNT)), **OPTIONS) as loader,
        pytest.raises(cd.TooManyErrors, match="none of the 41 images"),
    ):
        list(loader)


@pytest.mark.parametrize("normalize", [False, True])
def test_images_of_different_sizes_are_padded_with_a_mask(encoded: dict[str, bytes], normalize: bool) -> None:
    options = OPTIONS | {"transforms": [transforms.Normalize()] if normalize else []}
    with TorchImageLoader(labelled(encoded), shuffle=1, **options) as loader:
        ragged = [images for images, _ in loader]
        assert isinstance(ragged[0], list)
        assert ragged[0][0].shape[0 if normalize else 2] == 3
    for multiple in (True, 16):
        with TorchImageLoader(labelled(encoded), shuffle=1, pad=multiple, layout="NCHW", **options) as loader:
            for (images, mask), parts in zip((images for images, _ in loader), ragged, strict=True):
                sizes = [part.shape[1:] if normalize else part.shape[:2] for part in parts]
                assert images.shape[2:] == mask.shape[1:]
                assert all(side % multiple == 0 for side in images.shape[2:])
                for image, inside, part, (h, w) in zip(images, mask, parts, sizes, strict=True):
                    assert inside.sum() == h * w
                    assert torch.equal(image[:, :h, :w], part if normalize else part.permute(2, 0, 1))
                    assert not image[:, ~inside].any()


def test_padding_equal_images_copies_nothing() -> None:
    images = torch.zeros(2, 4, 5, 3)
    padded = pad_images(images)
    assert isinstance(padded, Padded)
    assert padded.images is images
    assert padded.mask.all()


def test_memory_is_flat_over_many_epochs_of_a_small_set(encoded: dict[str, bytes]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with TorchImageLoader(labelled(encoded), shuffle=1, **OPTIONS) as loader:
        for epoch in range(60):
            assert len(numbers(loader)) == 7
            if epoch == 9:
                gc.collect()
                before = resident()
        gc.collect()
    assert resident() - before < 8 << 20


def test_a_loader_without_a_shard_in_a_group_is_told_so(
    encoded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with caplog.at_level(logging.WARNING), TorchImageLoader(labelled(encoded), **OPTIONS):
        assert 'give shard="torch"' in caplog.text
    with pytest.raises(ValueError, match="the loader is rank 1 of 2, this process rank 1 of 3"):
        TorchImageLoader(labelled(encoded), shard=cd.Shard(1, 2), **OPTIONS)
    with TorchImageLoader(labelled(encoded), shard="torch", **OPTIONS) as loader:
        assert loader.loader.shard == cd.Shard(1, 3)

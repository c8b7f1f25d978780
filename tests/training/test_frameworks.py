"""`TorchImageLoader` as the loader of Lightning, accelerate and transformers' Trainer, through a resume as well."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import curator_dali as cd
from curator_dali import transforms as T
from curator_dali.sources import MemorySource
from curator_dali.torch import TorchImageLoader

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
lightning = pytest.importorskip("lightning", reason="lightning is in the extra [test]")

STEPS = 6  # of an epoch of 23 images
AUGMENT = [T.RandomResizedCrop(8), T.HorizontalFlip(), T.Normalize()]
Make = Callable[..., TorchImageLoader]


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What frameworks leave in the environment and in torch.distributed goes with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def make(encoded: dict[str, bytes]) -> Iterator[Make]:
    """Loaders of images whose labels are their numbers; closed at the end."""
    made: list[TorchImageLoader] = []

    def loader(count: int = 23, **options: Any) -> TorchImageLoader:
        files = dict(list(encoded.items())[:count])
        source = MemorySource(files, {key: {"label": int(key)} for key in files})
        options = {"batch_size": 4, "shuffle": 3, "transforms": AUGMENT, **options}
        made.append(TorchImageLoader(source, device="cpu", num_threads=1, **options))
        return made[-1]

    yield loader
    for one in made:
        one.close()


class Seen(lightning.LightningModule):  # type: ignore[misc]
    """Keeps the labels of every batch, by the kind of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3 * 8 * 8, 1)
        self.seen: dict[str, list[list[int]]] = {}

    def step(self, kind: str, batch: Any) -> torch.Tensor:
        if isinstance(batch, dict):  # of a CombinedLoader
            return sum(self.step(f"{kind} {name}", part) for name, part in batch.items() if part is not None)  # type: ignore[return-value]
        images, targets = batch
        self.seen.setdefault(kind, []).append(targets.tolist())
        loss: torch.Tensor = self.net(images.flatten(1)).mean()
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.step(f"val {dataloader_idx}", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.step(f"test {dataloader_idx}", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        return self.step(f"predict {dataloader_idx}", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": 2, **quiet, **options})


def epochs(loader: TorchImageLoader, count: int) -> list[list[list[int]]]:
    return [[targets.tolist() for _, targets in loader] for _ in range(count)]


ORDERED = [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_lightning_trains_and_validates(make: Make) -> None:
    expected = epochs(make(), 2)
    assert expected[0] != expected[1]
    model = Seen()
    trainer().fit(model, make(), [make(8, shuffle=None), make(4, shuffle=None)])
    assert model.seen["train"] == list(chain(*expected))
    assert model.seen["val 0"] == ORDERED * 3  # the sanity check, and two epochs
    assert model.seen["val 1"] == ORDERED[:1] * 3


@pytest.mark.parametrize("checks", [0, 1, -1])
def test_lightning_checks_sanity(make: Make, checks: int) -> None:
    model = Seen()
    trainer(num_sanity_val_steps=checks, max_epochs=1).fit(model, make(), make(8, shuffle=None))
    assert model.seen["val 0"] == ORDERED[: checks % 3] + ORDERED
    assert model.seen["train"] == epochs(make(), 1)[0]


@pytest.mark.parametrize("share", [False, True])
def test_lightning_limits_batches(make: Make, share: bool) -> None:
    expected = epochs(make(), 2)
    model = Seen()
    limits = {"limit_train_batches": 0.5 if share else 3, "limit_val_batches": 0.5 if share else 1}
    trainer(**limits).fit(model, make(), make(8, shuffle=None))
    assert model.seen["train"] == [*expected[0][:3], *expected[1][:3]]
    assert model.seen["val 0"][-1:] == ORDERED[:1]
    model = Seen()
    trainer(limit_test_batches=1).test(model, make(8, shuffle=None), verbose=False)
    trainer(limit_predict_batches=1).predict(model, make(8, shuffle=None))
    assert model.seen == {"test 0": ORDERED[:1], "predict 0": ORDERED[:1]}


def test_lightning_overfits_the_same_batches_of_a_loader_without_shuffle(make: Make) -> None:
    model = Seen()
    trainer(overfit_batches=2, max_epochs=3).fit(model, make(shuffle=None), make(8, shuffle=None))
    assert model.seen["train"] == ORDERED * 3
    model = Seen()
    trainer(overfit_batches=2, max_epochs=1).fit(model, make())
    assert model.seen["train"] == epochs(make(), 1)[0][:2]


def test_lightning_validates_tests_and_predicts(make: Make) -> None:
    model = Seen()
    trainer().validate(model, make(8, shuffle=None), verbose=False)
    trainer().test(model, [make(8, shuffle=None), make(4, shuffle=None)], verbose=False)
    assert len(trainer().predict(model, make(8, shuffle=None))) == 2
    assert model.seen == {"val 0": ORDERED, "test 0": ORDERED, "test 1": ORDERED[:1], "predict 0": ORDERED}


@pytest.mark.parametrize(("mode", "steps"), [("max_size_cycle", 6), ("min_size", 2), ("max_size", 6)])
def test_lightning_combines_loaders(make: Make, mode: str, steps: int) -> None:
    from lightning.pytorch.utilities import CombinedLoader

    model = Seen()
    trainer(max_epochs=1).fit(model, CombinedLoader({"a": make(), "b": make(8)}, mode))
    assert model.seen["train a"] == epochs(make(), 1)[0][:steps]
    assert len(model.seen["train b"]) == (6 if mode == "max_size_cycle" else 2)


def test_lightning_leaves_the_ranks_to_the_loader(make: Make) -> None:
    """`use_distributed_sampler` is True by default: it is for a `DataLoader` alone."""
    model = Seen()
    trainer(strategy="ddp", max_epochs=1).fit(model, make(), make(8, shuffle=None))
    assert model.seen["train"] == epochs(make(), 1)[0]


def test_lightning_resumes_at_every_step(make: Make, tmp_path: Path) -> None:
    whole = list(chain(*epochs(make(), 2)))
    saved = trainer(
        enable_checkpointing=True,
        callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)],
    )
    saved.fit(Seen(), make(), make(8, shuffle=None))
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert len(checkpoints) == 2 * STEPS
    for step in (1, 4, STEPS, STEPS + 1, 2 * STEPS - 1):
        model = Seen()
        trainer().fit(model, make(), make(8, shuffle=None), ckpt_path=checkpoints[step - 1])
        assert model.seen["train"] == whole[step:]


@pytest.fixture
def accelerator() -> Iterator[Any]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def tensors(batches: Any) -> list[tuple[torch.Tensor, list[int]]]:
    return [(images.clone(), targets.tolist()) for images, targets in batches]


def assert_same(found: Any, expected: Any) -> None:
    assert [labels for _, labels in found] == [labels for _, labels in expected]
    assert all(torch.equal(images, others) for (images, _), (others, _) in zip(found, expected, strict=True))


def test_accelerate_prepares_and_skips_first_batches(make: Make, accelerator: Any) -> None:
    from accelerate import skip_first_batches

    whole = make()
    first, second = tensors(whole), tensors(whole)
    loader = accelerator.prepare(make())
    for skipped in (0, 4, STEPS):
        loader.set_epoch(0)
        rest = skip_first_batches(loader, skipped)
        assert len(rest) == STEPS - skipped
        assert_same(tensors(rest), first[skipped:])
        assert loader.epoch == 1  # the pass went to its end
        assert_same(tensors(loader), second)
    assert_same(tensors(accelerator.skip_first_batches(loader, 2)), tensors(whole)[2:])


def test_the_state_is_right_behind_skipped_batches(make: Make, accelerator: Any) -> None:
    from accelerate import skip_first_batches

    first = tensors(make())
    loader, other = make(), make()
    for number, _ in enumerate(skip_first_batches(loader, 2), 3):
        other.load_state_dict(loader.state_dict())
        assert_same(tensors(other), first[number:])


def test_skipped_batches_that_are_left_early_are_an_epoch(make: Make, accelerator: Any) -> None:
    """As a pass over the loader that is left early; another pass ends one over its steps."""
    from accelerate import skip_first_batches

    whole = epochs(make(), 2)
    loader = make()
    rest = iter(skip_first_batches(loader, 2))
    assert next(rest)[1].tolist() == whole[0][2]
    assert epochs(loader, 1)[0] == whole[1]
    with pytest.raises(cd.PassEndedError):
        next(rest)
    loader.set_epoch(1)
    assert next(iter(skip_first_batches(loader, 1)))[1].tolist() == whole[1][1]
    loader.set_epoch(0)
    assert epochs(loader, 1)[0] == whole[0]


@pytest.mark.parametrize("bad", [[1], [4, 5, 6, 7]])
def test_skipped_batches_leave_bad_images_out_as_the_loader_does(
    encoded: dict[str, bytes], bad: list[int], accelerator: Any
) -> None:
    from accelerate import skip_first_batches

    keys = list(encoded)[:12]
    files = {key: b"bad" if number in bad else encoded[key] for number, key in enumerate(keys)}
    source = MemorySource(files, {key: {"label": int(key)} for key in keys})
    with TorchImageLoader(source, batch_size=4, transforms=AUGMENT, device="cpu", num_threads=1) as loader:
        whole = tensors(loader)
        failed = {error.image_id for error in loader.errors}
        assert failed == {keys[number] for number in bad}
        loader.set_epoch(0)
        assert_same(tensors(skip_first_batches(loader, 0)), whole)
        assert {error.image_id for error in loader.errors} == failed
        assert (loader.stats.samples, loader.stats.failed) == (12 - len(bad), len(bad))


@pytest.mark.parametrize("rank", [0, 1])
def test_samplers_tell_the_order(make: Make, rank: int) -> None:
    loader = make(shard=cd.Shard(rank, 2), batch_size=5)
    expected = epochs(make(shard=cd.Shard(rank, 2), batch_size=5), 2)
    assert isinstance(loader.batch_sampler, torch.utils.data.BatchSampler)
    assert (loader.batch_sampler.batch_size, loader.batch_sampler.drop_last) == (5, False)
    assert list(loader.sampler) == list(chain(*expected[0]))
    assert (len(loader.sampler), len(loader.batch_sampler)) == (12, 3)
    loader.sampler.set_epoch(1)
    assert list(loader.batch_sampler) == expected[1]


class Tiny(torch.nn.Module):
    """A model that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3 * 8 * 8, 1)
        self.given: list[tuple[torch.Tensor, list[int]]] = []

    def forward(self, images: torch.Tensor, targets: torch.Tensor, **others: Any) -> dict[str, torch.Tensor]:
        self.given.append((images.clone(), targets.tolist()))
        return {"loss": self.net(images.flatten(1)).square().mean()}


def train(make: Make, out: Path, resume: str | None = None, **options: Any) -> list[Any]:
    """Train with transformers' Trainer, and return what the model was given."""
    from transformers import Trainer, TrainingArguments

    class WithLoader(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> TorchImageLoader:
            return make(as_dict=True)

    arguments = TrainingArguments(
        output_dir=str(out), num_train_epochs=2, save_strategy="steps", save_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=4, logging_strategy="no", **options,
    )  # fmt: skip
    model = Tiny()
    WithLoader(model, arguments).train(resume_from_checkpoint=resume)
    return model.given


@pytest.mark.slow
@pytest.mark.usefixtures("accelerator")
def test_transformers_trainer_resumes_with_the_right_data(make: Make, tmp_path: Path) -> None:
    whole = train(make, tmp_path / "out")
    expected = make()
    assert_same(whole, [*tensors(expected), *tensors(expected)])
    for step in (2, STEPS, STEPS + 3):
        rest = train(make, tmp_path / f"from-{step}", str(tmp_path / "out" / f"checkpoint-{step}"))
        assert_same(rest, whole[step:])
    rest = train(make, tmp_path / "skip", str(tmp_path / f"out/checkpoint-{STEPS + 3}"), ignore_data_skip=True)
    assert_same(rest, whole[STEPS : STEPS + 3])  # as that option says: the epoch anew

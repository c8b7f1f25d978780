"""Arguments: values of other types are refused before any work, and words of other loaders name the one used here."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curator_dali as cd
from curator_dali import transforms as T
from curator_dali.errors import StageError
from curator_dali.torch import TorchImageLoader
from tests import helpers

NOWHERE = "/nowhere/that/is/read"  # a source that cannot be opened: nothing looks for it before arguments are checked

LOADER: list[tuple[str, list[Any], str]] = [
    ("batch_size", ["64", 64.0, True, 0, -1, None, np.float64(64)], "a whole number of at least 1"),
    ("prefetch", ["2", 2.0, False, 0], "a whole number of at least 1"),
    ("num_threads", [-1, "2", 0, 1.5], "a whole number of at least 1, None"),
    ("max_pixels", ["1e6", 1e6, 0], "a whole number of at least 1"),
    ("max_error_rate", ["1%", 2, -0.1, float("nan"), True], "a share from 0 to 1, None"),
]
ONLY_LOADER: list[tuple[str, list[Any], str]] = [
    ("shuffle", ["yes", 1.5, (1, 2)], "True or False, a whole number (int), a Shuffle, None"),
    ("drop_last", ["no", 1, None], "True or False"),
    ("keep_encoded", ["no", 0], "True or False"),
    ("on_error", ["stop", None, 1], '"skip", "raise"'),
    ("shard", ["ddp", (0, 1), 0], 'a Shard, "torch", None'),
    ("transforms", ["resize", 5], "a Transform, a list, None"),
    ("views", ["resize", 5, None], "a list"),
    ("buckets", [5, [(8, 8)]], "a Buckets, None"),
]
TORCH: list[tuple[str, list[Any], str]] = [
    ("layout", ["nchw", 1], '"NCHW", "NHWC", None'),
    ("on_bad", ["skip", None], '"refill", "shorten"'),
    ("as_dict", ["yes", 1], "True or False"),
    ("pad", [-1, "16", 1.5], "True or False, the number of pixels that sizes are a multiple of"),
    ("target", [5], "a text, a function, None"),
    ("classes", ["cat", 3], "a list, None"),
]
CURATE: list[tuple[str, list[Any], str]] = [
    ("part_size", ["8", 8.0, 0], "a whole number of at least 1"),
    ("shard_samples", ["8", 0, True], "a whole number of at least 1, None"),
    ("tars", ["yes", 1], "True or False"),
    ("html", ["no"], "True or False"),
    ("embeddings", ["float64", 1, None], 'True or False, "float32", "float16"'),
    ("metadata", ["score", 5], "fields to keep: True (all), names, as ['caption'], or names with types"),
    ("stages", ["quality", 5, None], "a list of stages, as [Quality()]"),
]


def every(*tables: list[tuple[str, list[Any], str]]) -> list[Any]:
    return [
        pytest.param(name, value, allowed, id=f"{name}={value!r}")
        for table in tables
        for name, values, allowed in table
        for value in values
    ]


def refused(call: Callable[[], object], message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("make", [cd.ImageLoader, TorchImageLoader])
@pytest.mark.parametrize(("name", "value", "allowed"), every(LOADER, ONLY_LOADER))
def test_loaders_refuse_values_of_other_types(make: Any, name: str, value: Any, allowed: str) -> None:
    refused(lambda: make(NOWHERE, **{name: value}), f"{name} is {value!r}; allowed: {allowed}")


@pytest.mark.parametrize(("name", "value", "allowed"), every(TORCH))
def test_the_torch_loader_refuses_values_of_other_types(name: str, value: Any, allowed: str) -> None:
    refused(lambda: TorchImageLoader(NOWHERE, **{name: value}), f"{name} is {value!r}; allowed: {allowed}")


@pytest.mark.parametrize("make", [cd.curate, cd.Curation])
@pytest.mark.parametrize(("name", "value", "allowed"), every(LOADER, CURATE))
def test_curations_refuse_values_of_other_types(make: Any, name: str, value: Any, allowed: str, tmp_path: Path) -> None:
    options = {"stages": [cd.Quality()], name: value}
    refused(lambda: make(NOWHERE, tmp_path / "out", **options), f"{name} is {value!r}; allowed: {allowed}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["gpu0", "cuda:x", 0, None, "CPU"])
def test_a_device_of_another_name_is_refused(device: Any, tmp_path: Path) -> None:
    message = f"device is {str(device)!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'"
    refused(lambda: cd.ImageLoader(NOWHERE, device=device), message)
    refused(lambda: cd.curate(NOWHERE, tmp_path / "out", stages=[cd.Quality()], device=device), message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.Resize("224"), "Resize.size is '224'; allowed: one positive number of pixels"),
        (lambda: T.Resize(224.0), "Resize.size is 224.0"),
        (lambda: T.CenterCrop(True), "CenterCrop.size is True"),
        (lambda: T.RandomResizedCrop((8, 8, 8)), "RandomResizedCrop.size is (8, 8, 8)"),
        (lambda: T.RandomResizedCrop(8, scale=0.5), "RandomResizedCrop.scale is 0.5; allowed: (a number, a number)"),
        (lambda: T.RandomResizedCrop(8, scale=(0.5, float("inf"))), "RandomResizedCrop.scale is (0.5, inf)"),
        (lambda: T.HorizontalFlip("half"), "HorizontalFlip.p is 'half'; allowed: a probability from 0 to 1"),
        (lambda: T.HorizontalFlip(1.5), "HorizontalFlip.p is 1.5"),
        (lambda: T.HorizontalFlip(stream="1"), "HorizontalFlip.stream is '1'"),
        (lambda: T.ColorJitter("0.4"), "ColorJitter.brightness is '0.4'"),
        (lambda: T.GaussianBlur("1"), "GaussianBlur.sigma is '1'"),
        (lambda: T.GaussianBlur(kernel_size=3.0), "GaussianBlur.kernel_size is 3.0"),
        (lambda: T.Rotate("10"), "Rotate.degrees is '10'"),
        (lambda: T.Rotate(10, fill=300), "Rotate.fill is 300; allowed: a value from 0 to 255"),
        (lambda: T.Pad(8, fill="black"), "Pad.fill is 'black'"),
        (lambda: T.RandomErasing(value="mean"), "RandomErasing.value is 'mean'"),
        (lambda: T.Normalize((0.5, 0.5)), "Normalize.mean is (0.5, 0.5)"),
        (lambda: T.Normalize("imagenet"), "Normalize.mean is 'imagenet'"),
        (lambda: T.Normalize((0.5, float("nan"), 0.5)), "Normalize.mean is (0.5, nan, 0.5); give three finite numbers"),
        (lambda: T.Normalize(std=(1, float("inf"), 1)), "Normalize.std is (1, inf, 1); give three positive numbers"),
        (lambda: T.Resize(np.array(8)), "Resize.size is array(8); allowed: one positive number of pixels"),  # type: ignore[arg-type]
        (lambda: T.RandAugment("2"), "RandAugment.num_ops is '2'"),
        (lambda: T.TrivialAugmentWide(31.0), "TrivialAugmentWide.num_magnitude_bins is 31.0"),
        (lambda: T.MixUp(3.0), "MixUp.num_classes is 3.0"),
        (lambda: T.MixUp(3, alpha="1"), "MixUp.alpha is '1'"),
        (lambda: T.clip("224"), "size is '224'; allowed: a whole number of at least 1"),
        (lambda: T.clip(224, normalize="yes"), "normalize is 'yes'; allowed: True or False"),
        (lambda: T.imagenet_eval(0), "size is 0"),
        (lambda: cd.Shuffle("7"), "Shuffle.seed is '7'; allowed: a whole number"),
        (lambda: cd.Shuffle(1.5), "Shuffle.seed is 1.5"),
        (lambda: cd.Shuffle(1, window="10"), "Shuffle.window is '10'"),
        (lambda: cd.Shuffle(1, window=0), "Shuffle.window is 0; allowed: a whole number of at least 1, None"),
        (lambda: cd.Shard("0", 2), "Shard.rank is '0'"),
        (lambda: cd.Shard(0, 2.0), "Shard.world_size is 2.0"),
        (lambda: cd.Buckets("512x512"), "Buckets.sizes is '512x512'"),
        (lambda: cd.Buckets([(True, 8)]), "(True, 8) is no size"),
        (lambda: cd.Buckets.from_ratios([1], pixels="512"), "pixels is '512'"),
        (lambda: cd.Buckets.from_ratios(["4/3"], pixels=512), "ratios has '4/3'"),
        (lambda: cd.Filter("width", min="256"), "Filter.min is '256'; allowed: a number, None"),
        (lambda: cd.Filter(5, min=1), "Filter.field is 5; allowed: a text"),
        (lambda: cd.Deduplicate(near="4"), "Deduplicate.near is '4'; allowed: 0 to 16 bits"),
        (lambda: cd.Deduplicate(near=4.0), "Deduplicate.near is 4.0"),
        (lambda: cd.Deduplicate(similarity="0.95"), "Deduplicate.similarity is '0.95'"),
        (lambda: cd.CLIPScore(5), "CLIPScore.caption is 5"),
        (lambda: cd.ZeroShotTags("cat"), "ZeroShotTags.tags is 'cat'; allowed: a list of texts"),
        (lambda: cd.open_source(NOWHERE, index=5), "index is 5; allowed: a text, a path"),
        (lambda: cd.open_source(NOWHERE, label_from_folder="no"), "label_from_folder is 'no'; allowed: True or False"),
        (lambda: cd.open_source(NOWHERE, name=5), "name is 5; allowed: a text, None"),
        (lambda: cd.Mixture({"a": NOWHERE}, {"a": 1}, samples="9"), "samples is '9'"),
        (lambda: cd.write_index(NOWHERE, similarity="0.9"), "similarity is '0.9'; allowed: a number"),
        (lambda: cd.leaks(NOWHERE, NOWHERE, near="4"), "near is '4'"),
        (lambda: cd.rethreshold(NOWHERE, "new", stages=[], tars="no"), "tars is 'no'; allowed: True or False"),
        (lambda: cd.rethreshold(NOWHERE, "new", stages=cd.Quality()), "allowed: a list of stages, as [Filter('width'"),
        (lambda: cd.duplicate_groups(None), "out is None; allowed: a text, a path"),
        (lambda: cd.write_report(None), "out is None; allowed: a text, a path"),
        (lambda: cd.Report.load(5), "out is 5; allowed: a text, a path"),
        (lambda: cd.open_index(None), "out is None; allowed: a text, a path"),
        (lambda: cd.stages_of(None), "out is None; allowed: a text, a path"),
        (lambda: cd.search(None, id="a"), "out is None; allowed: a text, a path"),
        (lambda: cd.search(NOWHERE, id=5), "id is 5; allowed: a text, None"),
        (lambda: cd.search(NOWHERE, image=5), "image is 5; give a path, a URL, or the encoded bytes of an image"),
        (lambda: cd.write_errors(None, "bad.json"), "errors is None; allowed: a list"),
        (lambda: cd.search(NOWHERE, image=np, k=1), "image is <module 'numpy'"),
        (lambda: cd.TarSource(5), "urls is 5; allowed: a text, a path, a list"),
        (lambda: cd.TarSource([5]), "5 is no path; allowed: a text, a path"),
        (lambda: cd.ParquetSource(None), "urls is None; allowed: a text, a path, a list"),
        (lambda: cd.FolderSource(None), "root is None; allowed: a text, a path"),
        (lambda: T.MixUp(3)(torch.zeros(1, 3, 4, 4), torch.tensor([0]), key=5), "key is 5; allowed: a list"),
        (lambda: T.MixUp(3)(torch.zeros(1, 3, 4, 4), torch.tensor([0]), key=["a"]), "key is ['a']; give integers"),
        (lambda: cd.ImageBatch("t", "d", []).show("5"), "n is '5'; allowed: a whole number (int)"),
        (lambda: cd.curate(NOWHERE, "o", stages=[], executor=cd.Report), "executor is <class"),
        (lambda: cd.concat([None]), "batches has None; give a list of ImageBatch"),
        (lambda: cd.Subset(NOWHERE, [0]), f"source is {NOWHERE!r}; give a Source, as open_source() returns it"),
        (lambda: cd.Subset(cd.MemorySource([b"x"]), ["0"]), "rows is ['0']; allowed: a slice, sample indices (int)"),
        (lambda: cd.Subset(cd.MemorySource([b"x"]), None), "rows is None; allowed: a slice, sample indices (int)"),
        (lambda: TorchImageLoader(NOWHERE, classes={"b", "a"}), "; allowed: a list, None"),  # a set has no order
    ],
)
def test_values_refuse_settings_of_other_types(make: Callable[[], object], message: str) -> None:
    refused(make, message)


def test_images_in_memory_are_refused_as_a_source_is() -> None:
    refused(lambda: cd.MemorySource(None), "images is None; give encoded images (bytes) in a list", cd.SourceError)  # type: ignore[arg-type]
    refused(lambda: cd.MemorySource(b"a"), "images is b'a'; give encoded images", cd.SourceError)
    refused(lambda: cd.MemorySource({"a": b"x"}, {"a": 5}), "metadata of image 'a' is 5; give", cd.SourceError)  # type: ignore[dict-item]


def test_a_stage_refuses_with_its_own_error() -> None:
    refused(lambda: cd.Filter("width", min="256"), "Filter.min", StageError)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_lists_become_pythons() -> None:
    source = cd.MemorySource({"a": b"x"})
    with cd.ImageLoader(
        source,
        batch_size=np.int64(4),  # type: ignore[arg-type]
        shuffle=np.int32(3),  # type: ignore[arg-type]
        max_error_rate=np.float32(0.5),  # type: ignore[arg-type]
        drop_last=np.True_,  # type: ignore[arg-type]
        num_threads=np.uint8(1),  # type: ignore[arg-type]
        device=torch.device("cpu"),
    ) as loader:
        assert (loader.batch_size, loader.shuffle, loader.drop_last) == (4, cd.Shuffle(3), True)
        assert [type(value) for value in (loader.batch_size, loader.max_error_rate, loader.drop_last)] == [
            int, float, bool,
        ]  # fmt: skip
    made = T.Resize([np.int64(8), 9])  # type: ignore[list-item, arg-type]
    assert made == T.Resize((8, 9))
    assert hash(made) == hash(pickle.loads(pickle.dumps(made)))
    assert repr(T.Normalize(np.array([0.5, 0.5, 0.25]), [1, 1, 1])) == repr(T.Normalize((0.5, 0.5, 0.25), (1, 1, 1)))  # type: ignore[arg-type]
    assert cd.Buckets([(np.int64(8), 9)]).sizes == ((8, 9),)  # type: ignore[list-item]
    assert cd.Deduplicate(near=np.int64(4)).near == 4  # type: ignore[arg-type]
    assert cd.Deduplicate(against=Path("earlier")).against == ("earlier",)


ITEMS: list[Callable[[list[Any]], Any]] = [
    list,
    tuple,
    iter,
    np.array,
    lambda items: np.array(items) if isinstance(items[0], str) else torch.tensor(items),
]


@pytest.mark.parametrize("kind", ITEMS)
def test_lists_may_be_tuples_arrays_tensors_and_generators(kind: Callable[[list[Any]], Any]) -> None:
    assert T.Resize(kind([8, 9])) == T.Resize((8, 9))
    assert T.Normalize(kind([0.5, 0.5, 0.25])) == T.Normalize((0.5, 0.5, 0.25))
    assert T.RandomResizedCrop(8, scale=kind([0.5, 1.0])) == T.RandomResizedCrop(8, scale=(0.5, 1.0))
    assert cd.Buckets(kind([[8, 9], [9, 8]])).sizes == ((8, 9), (9, 8))
    assert cd.Buckets.from_ratios(kind([1.0, 4.0]), pixels=64).sizes == ((8, 8), (4, 16))
    tags = cd.ZeroShotTags(kind(["cat", "dog"]), prompts=kind(["a {}"]))
    assert (tags.tags, tags.prompts) == (("cat", "dog"), ("a {}",))
    assert cd.Deduplicate(against=kind(["a", "b"])).against == ("a", "b")
    for values in ([1, 2], [0.5, 2.0], ["a", "b"]):
        assert cd.Filter("field", equals=kind(values)).equals == tuple(values)


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_stages_and_transforms_may_be_any_list(kind: Callable[[list[Any]], Any], tmp_path: Path) -> None:
    files = {f"{n}": helpers.encode(np.full((20 + n, 30, 3), 40 * n, np.uint8)) for n in range(4)}
    report = cd.curate(files, tmp_path / "out", stages=kind([cd.Filter("width", min=1)]), device="cpu", html=False)
    assert int(report.kept) == 4
    new = cd.rethreshold(
        tmp_path / "out", tmp_path / "new", stages=kind([cd.Filter("width", min=1)]), source=files, html=False
    )
    assert int(new.kept) == 4
    source = cd.MemorySource(kind(list(files.values())), kind([{"label": "ab"[n % 2]} for n in range(4)]))
    options = {"transforms": kind([T.Resize((8, 8))]), "classes": kind(["a", "b"]), "device": torch.device("cpu", 0)}
    with TorchImageLoader(source, **options) as loader:
        assert next(iter(loader))[1].tolist() == [0, 1, 0, 1]


def test_numbers_of_other_kinds_are_taken() -> None:
    assert cd.Buckets.from_ratios([Fraction(1, 4)], pixels=6.4e1).sizes == ((16, 4),)  # type: ignore[list-item]
    assert cd.Filter("field", equals={"b", "a"}).equals == ("a", "b")
    assert cd.Filter("field", equals=np.float64(0.5)).equals == 0.5
    assert cd.Filter("field", equals=torch.tensor(4)).equals == 4


FOREIGN = {
    "num_workers": "num_threads=",
    "prefetch_factor": "prefetch=",
    "transform": "transforms=",
    "sampler": "shuffle= and shard=",
    "batch_sampler": "shuffle= and shard=",
    "pin_memory": "not needed",
    "persistent_workers": "not needed",
    "collate_fn": "not needed",
    "worker_init_fn": "not needed",
    "generator": "not needed",
    "timeout": "CURATOR_DALI_TIMEOUT",
    "in_order": "not needed",
    "multiprocessing_context": "not needed",
    "seed": "shuffle=SEED",
}


def test_every_keyword_of_dataloader_is_answered_or_taken() -> None:
    ours = set(inspect.signature(cd.ImageLoader).parameters)
    theirs = set(inspect.signature(torch.utils.data.DataLoader).parameters) - {"dataset", "pin_memory_device"}
    assert theirs <= ours | FOREIGN.keys()


@pytest.mark.parametrize("name", FOREIGN)
def test_keywords_of_other_loaders_name_the_word_used_here(name: str, tmp_path: Path) -> None:
    calls: dict[str, Callable[..., object]] = {
        "ImageLoader": lambda **options: cd.ImageLoader(NOWHERE, **options),
        "TorchImageLoader": lambda **options: TorchImageLoader(NOWHERE, **options),
        "curate": lambda **options: cd.curate(NOWHERE, tmp_path / "out", stages=[cd.Quality()], **options),
    }
    for owner, call in calls.items():
        with pytest.raises(TypeError, match=f"{owner} has no {name}=: .*{FOREIGN[name]}"):
            call(**{name: 8})


def test_other_unknown_keywords_are_pythons_to_refuse() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        cd.ImageLoader(NOWHERE, batchsize=8)  # type: ignore[call-arg]


def test_help_shows_the_arguments() -> None:
    assert list(inspect.signature(cd.ImageLoader).parameters)[:2] == ["source", "batch_size"]
    assert "size" in inspect.signature(T.Resize).parameters

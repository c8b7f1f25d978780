"""Restored at every step, the rest of a run is the same to the bit; with other ranks, every sample is seen once."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import curator_dali as cd
from curator_dali import transforms
from curator_dali.sampling import Buckets
from curator_dali.sources import MemorySource, Mixture
from curator_dali.torch import TorchImageLoader
from tests.training.conftest import COUNT

BUCKETS = Buckets([(16, 16), (16, 24), (24, 16)])
FIXED = [transforms.RandomResizedCrop(16), transforms.HorizontalFlip(), transforms.Normalize()]


def source(encoded: dict[str, bytes], first: int = 0, last: int = COUNT, bad: Any = ()) -> MemorySource:
    keys = list(encoded)[first:last]
    files = {key: b"bad" if int(key) in bad else encoded[key] for key in keys}
    return MemorySource(files, {key: {"label": int(key)} for key in keys})


def mixture(encoded: dict[str, bytes], **weights: float) -> Mixture:
    return Mixture({"a": source(encoded, 0, 30), "b": source(encoded, 30)}, weights or {"a": 0.6, "b": 0.4}, samples=50)


CASES: dict[str, Callable[[dict[str, bytes]], dict[str, Any]]] = {
    "shuffled": lambda encoded: {"source": source(encoded), "transforms": FIXED},
    "in order": lambda encoded: {"source": source(encoded), "transforms": FIXED, "shuffle": None},
    "windowed": lambda encoded: {"source": source(encoded), "transforms": FIXED, "shuffle": cd.Shuffle(1, 9)},
    "dropped": lambda encoded: {"source": source(encoded), "transforms": FIXED, "drop_last": True},
    "ragged": lambda encoded: {"source": source(encoded), "transforms": [transforms.HorizontalFlip()]},
    "padded": lambda encoded: {"source": source(encoded), "transforms": [], "pad": True},
    "bad": lambda encoded: {"source": source(encoded, bad={1, 5, 9, 30, *range(12, 26)}), "transforms": FIXED},
    "bad, in order": lambda encoded: {
        "source": source(encoded, bad={*range(13), *range(16, 24), 40}),
        "transforms": FIXED,
        "shuffle": None,
    },
    "mixture": lambda encoded: {"source": mixture(encoded), "transforms": FIXED},
    "buckets": lambda encoded: {"source": source(encoded), "buckets": BUCKETS, "transforms": FIXED[1:]},
    "buckets of a mixture": lambda encoded: {"source": mixture(encoded), "buckets": BUCKETS, "transforms": FIXED[1:]},
    "buckets, dropped, bad": lambda encoded: {
        "source": source(encoded, bad=range(0, 41, 5)),
        "buckets": BUCKETS,
        "transforms": [],
        "drop_last": True,
    },
}


def make(encoded: dict[str, bytes], case: str, **changes: Any) -> TorchImageLoader:
    options = {"batch_size": 4, "device": "cpu", "num_threads": 1, "shuffle": 3, **CASES[case](encoded), **changes}
    return TorchImageLoader(options.pop("source"), **options)


def flat(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch.clone()
    else:
        for part in batch:
            yield from flat(part)


def two_epochs(loader: TorchImageLoader) -> Iterator[tuple[list[torch.Tensor], dict[str, Any]]]:
    """Batches to the end of this epoch and of the next one, and the state after each, through JSON."""
    for _ in range(2):
        for batch in loader:
            yield list(flat(batch)), json.loads(json.dumps(loader.state_dict()))


def assert_restores_at_every_step(new: Callable[[], TorchImageLoader]) -> None:
    """Compare the rest of a run with that of a new loader that was given the state of each step."""
    with new() as loader:
        whole = list(two_epochs(loader))
        epoch = len(whole) // 2
    for step in range(epoch):
        with new() as loader:
            loader.load_state_dict(whole[step][1])
            rest = two_epochs(loader)
            for (batch, state), (expected, then) in zip(rest, whole[step + 1 :], strict=False):
                assert state == then
                assert len(batch) == len(expected)
                assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))
            assert state == whole[-1][1], "the restored run ended before the other"


@pytest.mark.parametrize("case", CASES)
def test_restored_at_every_step_the_rest_is_the_same_to_the_bit(encoded: dict[str, bytes], case: str) -> None:
    assert_restores_at_every_step(lambda: make(encoded, case, shard=cd.Shard(1, 2)))


@settings(max_examples=30, deadline=None)
@given(
    case=st.sampled_from(["shuffled", "mixture", "buckets", "buckets of a mixture"]),
    batch=st.integers(1, 9),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    stops=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_with_other_numbers_of_ranks_every_sample_is_seen_once(
    encoded: dict[str, bytes], case: str, batch: int, worlds: tuple[int, int, int], stops: tuple[int, int]
) -> None:
    """Killed twice, at any step, and each time gone on with by another number of ranks."""
    seen: Counter[int] = Counter()
    state = None
    steps_of_ranks: list[set[int]] = []
    repeats = 0
    for world, stop in zip(worlds, (*stops, 1000), strict=True):
        counts, states = set(), set()
        for rank in range(world):
            with make(encoded, case, batch_size=batch, shard=cd.Shard(rank, world), transforms=[]) as loader:
                before = json.dumps(loader.state_dict())
                if state:
                    loader.load_state_dict(json.loads(state))
                    before = state
                steps = 0
                for _, targets in loader if stop else ():
                    seen.update(targets.tolist())
                    steps += 1
                    before = json.dumps(loader.state_dict())
                    if steps == stop:
                        break
                counts.add(steps)
                states.add(before)
        (state,) = states  # the same on every rank
        steps_of_ranks.append(counts)
        repeats += (world - 1) * (3 if "buckets" in case else 1)
    assert all(len(counts) == 1 for counts in steps_of_ranks)
    with make(encoded, case, transforms=[]) as loader:
        once = Counter(chain(*(targets.tolist() for _, targets in loader)))
    assert not once - seen
    assert (seen - once).total() <= repeats


def test_a_mixture_keeps_its_shares_and_tells_whence(encoded: dict[str, bytes]) -> None:
    with make(encoded, "mixture", as_dict=True) as loader:
        for _ in range(2):
            found = Counter(fields["source"] for batch in loader for fields in batch["metadata"])
            assert found == {"a": 30, "b": 20}


def test_repeats_of_a_sample_in_one_epoch_look_different(encoded: dict[str, bytes]) -> None:
    few = Mixture({"a": source(encoded, 0, 2), "b": source(encoded, 2)}, {"a": 0.5, "b": 0.5}, samples=40)
    with TorchImageLoader(few, shuffle=1, batch_size=40, device="cpu", transforms=FIXED) as loader:
        images, targets = next(iter(loader))
        repeated = images[targets == 0]
        assert len(repeated) == 10
        assert len({one.numpy().tobytes() for one in repeated}) == 10


def test_batches_of_buckets_are_uniform_and_waste_little(encoded: dict[str, bytes]) -> None:
    with make(encoded, "buckets", as_dict=True) as loader:
        ids = []
        for batch in loader:
            assert tuple(batch["images"].shape[2:]) in BUCKETS.sizes
            ids += batch["ids"]
        assert sorted(ids) == sorted(encoded)
        assert len({tuple(batch["images"].shape) for batch in loader}) > 2


def test_a_bucketed_image_is_its_centre_scaled(photos: dict[str, np.ndarray]) -> None:
    from PIL import Image

    from tests import helpers

    pixels = photos["chelsea"][:300, :450]
    one = MemorySource([helpers.encode(pixels, "PNG")])
    sizes = Buckets([(64, 64), (128, 64)])
    with cd.ImageLoader(one, device="cpu", buckets=sizes) as loader:
        found = next(iter(loader)).images[0]
    expected = np.asarray(Image.fromarray(pixels[:, 75:375]).resize((64, 64), Image.Resampling.BICUBIC))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_turned_photographs_go_to_the_bucket_of_their_upright_shape(photos: dict[str, np.ndarray]) -> None:
    from PIL import Image

    from tests import helpers

    wide = Image.fromarray(photos["chelsea"]).resize((60, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        helpers.encode(wide, format, **({"exif": exif.tobytes()} if turned else {}))
        for turned in (False, True)
        for format in ("JPEG", "PNG", "WEBP")
    ]
    sizes = Buckets([(24, 12), (12, 24)])
    with cd.ImageLoader(MemorySource(files), device="cpu", buckets=sizes, batch_size=3) as loader:
        shapes = {batch.images.shape: sorted(item.image_id for item in batch) for batch in loader}
        assert shapes == {(3, 12, 24, 3): ["0", "1", "2"], (3, 24, 12, 3): ["3", "4", "5"]}


@pytest.mark.parametrize(
    ("saved", "loaded", "words"),
    [
        ({}, {"shuffle": 4}, "the state's seed is 3, the loader's 4; give the loader the same shuffle"),
        ({"case": "mixture"}, {}, "the state's mixture is {.*}, the loader's None; give the loader a Mixture"),
        ({}, {"case": "mixture"}, "the state's mixture is None, the loader's {.*; give the loader a Mixture"),
        ({"case": "buckets"}, {}, "the state's buckets is {.*}, the loader's None; give the loader the same Buckets"),
        (
            {"case": "buckets"},
            {"case": "buckets", "buckets": Buckets([(8, 8)]), "transforms": []},
            r"the loader's {'sizes': \[\[8, 8\]\]",
        ),
        ({}, {"case": "bad"}, "the state's fingerprint is .*; resume with the data set"),
    ],
)
def test_a_state_of_something_else_is_refused_before_any_batch(
    encoded: dict[str, bytes], saved: dict[str, Any], loaded: dict[str, Any], words: str
) -> None:
    with make(encoded, **{"case": "shuffled", **saved}) as loader:
        state = loader.state_dict()
    with make(encoded, **{"case": "shuffled", **loaded}) as loader, pytest.raises(ValueError, match=words):
        loader.load_state_dict(state)


def test_a_state_of_another_mixture_is_refused(encoded: dict[str, bytes]) -> None:
    states = []
    for weights in ({"a": 0.6, "b": 0.4}, {"a": 0.5, "b": 0.5}):
        with TorchImageLoader(mixture(encoded, **weights), shuffle=3, device="cpu", transforms=FIXED) as loader:
            states.append(loader.state_dict())
            loader.load_state_dict(states[-1])
            for state in states[:-1]:
                with pytest.raises(ValueError, match=r"the state's mixture is {'weights': {'a': 3, 'b': 2}"):
                    loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (({},), "sources by name"),
        (([b"x"],), "sources by name"),
        (({"a": [b"x"]}, {"b": 1.0}), r"weights are of \['b'\], sources are \['a'\]"),
        (({"a": [b"x"], "b": [b"y"]}, {"a": 1.0, "b": 0.0}), "the weight of 'b' is 0.0"),
        (({"a": MemorySource([])},), "the source 'a' is empty"),
    ],
)
def test_a_wrong_mixture_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cd.ImageLoader(Mixture(*arguments), device="cpu")


def test_folders_that_number_other_classes_are_not_mixed_silently(encoded: dict[str, bytes], tmp_path: Any) -> None:
    for root, names in (("one", ("cats", "dogs")), ("two", ("dogs", "eels"))):
        for name in names:
            (tmp_path / root / name).mkdir(parents=True)
            (tmp_path / root / name / "0.jpg").write_bytes(encoded["00"])
    both = {root: str(tmp_path / root) for root in ("one", "two")}
    with pytest.raises(ValueError, match=r"number different classes.*target='label_name'"):
        TorchImageLoader(Mixture(both), device="cpu")
    with TorchImageLoader(
        Mixture(both), target="label_name", classes=["cats", "dogs", "eels"], device="cpu", transforms=FIXED
    ) as loader:
        assert next(iter(loader))[1].tolist() == [0, 1, 1, 2]

"""Several sources as one: every sample is what its own source says of it, and tells which that was."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator_dali as cd
from curator_dali.decoding.headers import Codec, scan
from curator_dali.sources import FolderSource, MemorySource, Mixture, Subset, open_source


@pytest.fixture
def mixture(shards: list[Path]) -> Mixture:
    return Mixture(
        {"tars": [str(shards[0]), str(shards[1])], "one": open_source(str(shards[2]))}, {"tars": 1, "one": 1}
    )


def test_samples_are_those_of_the_sources_one_after_the_other(mixture: Mixture, shards: list[Path]) -> None:
    whole = open_source([str(shard) for shard in shards])
    assert len(mixture) == len(whole) == 60
    indices = np.array([59, 0, 40, 39, 0, 60, 119, 160])
    ours, expected = mixture.read(indices, members=True), whole.read(indices % 60, members=True)
    assert ours.indices.tolist() == indices.tolist()
    assert ours.shards == expected.shards
    assert [item.image_path for item in ours.objects] == [item.image_path for item in expected.objects]
    assert all(np.array_equal(a, b) for a, b in zip(ours.images, expected.images, strict=True))
    assert [sorted(one) for one in ours.members or []] == [sorted(one) for one in expected.members or []]
    names = ["one", "tars", "one", "tars", "tars", "tars", "one", "one"]
    assert [item.metadata["source"] for item in ours.objects] == names
    assert all(
        {**b.metadata, "source": name} == a.metadata
        for a, b, name in zip(ours.objects, expected.objects, names, strict=True)
    )
    assert mixture.image_sizes(indices).tolist() == whole.image_sizes(indices % 60).tolist()
    assert mixture.shard_sizes.tolist() == [20, 20, 20]


def test_headers_are_learnt_by_the_sources(mixture: Mixture) -> None:
    survey = scan(mixture)
    assert (survey.samples, survey.formats, survey.unreadable) == (60, {"jpeg": 60}, 0)
    assert set(mixture.headers(np.array([0, 59, 60]))["codec"]) == {Codec.JPEG}


def test_errors_stay_with_their_rows() -> None:
    both = Mixture({"good": [b"x", b"y"], "bad": MemorySource([b"z", b""])})
    batch = both.read(np.array([3, 0, 3, 2]))
    assert sorted(batch.errors) == [0, 2]
    assert [image.tobytes() for image in batch.images] == [b"", b"x", b"", b"z"]


def test_a_field_of_the_sample_goes_before_the_sources_name() -> None:
    told = Mixture({"a": MemorySource([b"x", b"y"], [{"source": "its own"}, {}])})
    assert [item.metadata for item in told.read(np.arange(2)).objects] == [{"source": "its own"}, {"source": "a"}]


def test_without_weights_every_sample_comes_once(shards: list[Path]) -> None:
    both = Mixture({"a": str(shards[0]), "b": str(shards[1])})
    with cd.ImageLoader(both, device="cpu", shuffle=1, batch_size=40) as loader:
        batch = next(iter(loader))
        assert sorted(item.image_id for item in batch) == [f"{i:06d}" for i in range(40)]
        assert sorted(set(batch.values("source"))) == ["a", "b"]
    with pytest.raises(ValueError, match=r"samples is 10; .* together with weights"):
        Mixture({"a": str(shards[0])}, samples=10)


def test_it_pickles_and_has_a_fingerprint_of_its_own(mixture: Mixture, shards: list[Path]) -> None:
    copy = pickle.loads(pickle.dumps(mixture))
    assert copy.fingerprint == mixture.fingerprint
    assert copy.read(np.array([45])).objects == mixture.read(np.array([45])).objects
    assert Mixture({"tars": str(shards[0])}).fingerprint != Mixture({"other": str(shards[0])}).fingerprint
    sizes = cd.Buckets([(32, 32), (32, 48)])
    with cd.ImageLoader(mixture, device="cpu", shuffle=1, batch_size=7, buckets=sizes) as loader:
        running = iter(loader)
        next(running)
        with pickle.loads(pickle.dumps(loader)) as other:
            assert [[item.image_path for item in batch] for batch in other] == [
                [item.image_path for item in batch] for batch in running
            ]


def test_fingerprints_are_made_once(mixture: Mixture, tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b"1"]}), tmp_path / "a.parquet")
    folder = FolderSource(str(tmp_path), files=["a.jpg"])
    sources = [
        mixture,
        mixture.sources["one"],
        folder,
        MemorySource([b"1"]),
        Subset(folder, [0]),
        open_source(tmp_path / "a.parquet"),
    ]
    assert [source.fingerprint is source.fingerprint for source in sources] == [True] * len(sources)

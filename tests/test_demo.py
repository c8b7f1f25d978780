"""The demo: what it builds, what it says, and what it refuses to overwrite."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from curator_dali import demo
from curator_dali.errors import CuratorDaliError
from tests.curation.helpers import read_members, read_rows


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> demo.Built:
    return demo.build(tmp_path_factory.mktemp("demo") / "new" / "folder")


def members(built: demo.Built) -> dict[str, bytes]:
    found = {}
    for shard in built.shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file
                found[member.name] = file.read()
    return found


def test_every_sample_has_its_four_members(built: demo.Built) -> None:
    found = members(built)
    keys = {name.split(".")[0] for name in found}
    assert len(keys) == demo.SAMPLES
    assert len(built.shards) == demo.SHARDS
    assert set(found) == {f"{key}.{extension}" for key in keys for extension in ("jpg", "json", "txt", "cls")}
    assert {int(found[f"{key}.cls"]) for key in keys} == set(range(len(built.photographs)))


def test_images_are_what_their_metadata_says(built: demo.Built) -> None:
    found = members(built)
    for name, data in found.items():
        key, _, extension = name.partition(".")
        if extension == "jpg" and key not in built.planted:
            fields = json.loads(found[f"{key}.json"])
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                assert image.size == (fields["width"], fields["height"])
                assert max(image.size) <= 320
                assert image.format == ("PNG" if key == built.renamed else "JPEG")


def test_planted_samples_are_broken_each_in_its_way(built: demo.Built) -> None:
    found = members(built)
    images = {why.split()[0]: found[f"{key}.jpg"] for key, why in built.planted.items()}
    assert set(images) == {"second", "zero", "a"}
    assert images["second"].startswith(b"\xff\xd8")
    assert not images["second"].endswith(b"\xff\xd9")
    assert images["zero"] == b""
    assert images["a"].startswith(b"<!DOCTYPE html>")


def test_rebuilding_gives_the_same_bytes(built: demo.Built) -> None:
    before = [shard.read_bytes() for shard in built.shards]
    again = demo.build(built.shards[0].parent.parent)
    assert again == built
    assert [shard.read_bytes() for shard in again.shards] == before


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("mine")
    with pytest.raises(CuratorDaliError, match="not empty and not an earlier demo"):
        demo.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.txt"]
    with pytest.raises(CuratorDaliError, match="is a file"):
        demo.build(tmp_path / "README.txt")


def test_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # how Python marks what cannot be imported
    with pytest.raises(CuratorDaliError, match=r'scikit-image.*pip install "curator-dali\[demo\]"'):
        demo.build(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_run_tells_what_it_loaded_and_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_installed", lambda *modules: False)  # saves the seconds that the networks take
    text = "\n".join(demo.run(tmp_path, device="cpu"))
    built = demo.build(tmp_path)
    assert f"Loaded   {demo.SAMPLES - 3} images on cpu" in text
    assert "Broken   3 samples" in text
    for key, why in built.planted.items():
        assert key in text
        assert f"planted: {why}" in text
    assert f"Renamed  {built.renamed}.jpg is a PNG" in text
    assert "not by the demo" not in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 160


def test_it_ends_with_a_curation_by_real_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SAMPLES", 60)  # the networks take most of the demo's time
    text = "\n".join(demo.run(tmp_path, device="cpu"))
    assert "Curated  Embed -> NSFW -> Filter(nsfw_score) -> Quality -> Filter(sharpness) -> Filter(entropy)" in text
    assert re.search(rf"^ +in +{demo.SAMPLES} +100.0%", text, re.MULTILINE)
    assert "Without" not in text
    assert f"Report   {tmp_path / 'curated' / 'report.html'}: " in text
    assert "<img" in (tmp_path / "curated" / "report.html").read_text()
    rows = read_rows(tmp_path / "curated")
    built = demo.build(tmp_path)
    assert {row["image_id"] for row in rows if row["status"] == "failed"} == set(built.planted)
    assert len(rows) == demo.SAMPLES
    kept = [row for row in rows if row["status"] == "kept"]
    assert len(kept) == len(read_members(tmp_path / "curated")) > demo.SAMPLES / 2
    assert all(0 <= row["nsfw_score"] <= 0.5 and len(row["embedding"]) == 1280 for row in kept)
    found = members(built)
    for written in read_members(tmp_path / "curated").values():
        key = json.loads(written.pop("curation.json"))["image_id"]
        assert written == {name: found[f"{key}.{name}"] for name in written}
        assert set(written) == {"jpg", "json", "txt", "cls"}


def test_without_the_networks_it_says_what_to_install_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_installed", lambda *modules: False)
    for _ in range(2):  # the second time over the first one's output
        text = "\n".join(demo.run(tmp_path, device="cpu"))
        assert re.search(r"^Without .*pip install .curator-dali\[demo\]", text, re.MULTILINE)
        assert "Curated  Quality -> Filter(sharpness) -> Filter(entropy)" in text
        assert f"{demo.SAMPLES} images in" in text

"""`load_encoder`: what a user may write."""

from pathlib import Path

import pytest

from curator_dali.models import CLIPImageEncoder, EfficientNetLite0, WeightsNotFoundError, load_encoder
from tests.models import makers


def test_every_spec_gives_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers.write_clip(tmp_path / "owner/name")
    monkeypatch.chdir(tmp_path)
    for spec in ("owner/name", tmp_path / "owner/name", str(tmp_path / "owner/name")):
        encoder = load_encoder(spec, "cpu")
        assert isinstance(encoder, CLIPImageEncoder)
        assert encoder.dim == 24
    small = load_encoder("efficientnet-lite0", device="cpu", batch_size=2)
    assert isinstance(small, EfficientNetLite0)
    assert small.network.batch_size == 2
    assert load_encoder(small) is small
    monkeypatch.chdir(tmp_path / "owner")
    assert load_encoder("name", "cpu").dim == 24  # a folder of one name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURATOR_DALI_MODELS", str(tmp_path))
    assert load_encoder("owner/name", "cpu").name == "owner/name"


def test_what_it_does_not_know_is_refused() -> None:
    for spec in ("clip", "efficientnet-lite1", "", 3):
        with pytest.raises(ValueError, match=r"no encoder .*'efficientnet-lite0', 'timm:NAME', or an ImageEncoder"):
            load_encoder(spec, "cpu")  # type: ignore[arg-type]


def test_a_path_that_is_not_there_says_where_it_looked(tmp_path: Path) -> None:
    for spec in (str(tmp_path / "no/model"), tmp_path / "no"):
        with pytest.raises(WeightsNotFoundError, match=r"config\.json \(no such folder\)"):
            load_encoder(spec, "cpu")


def test_options_of_what_is_loaded_already_are_refused() -> None:
    encoder = EfficientNetLite0(device="cpu")
    with pytest.raises(ValueError, match=r"is loaded already; give the options \['dtype'\] where it is made"):
        load_encoder(encoder, dtype="float16")
    with pytest.raises(TypeError, match="revision"):
        load_encoder("efficientnet-lite0", "cpu", revision="main")

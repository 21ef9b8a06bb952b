import json
import os

import pytest

from ssppo_jax import schema
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.runs import folder as run_folder


@pytest.fixture
def config():
    return schema.base_config()


def test_a_new_folder_records_config_command_and_versions(tmp_path, config):
    run_folder.claim(tmp_path / "run", config, "1.2.3")
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["config"]["loss.beta"] == config.loss.beta
    assert record["config"]["data.prompt_buckets"] == [64, 128, 256, 512]
    assert (
        record["version"] == "1.2.3"
        and record["command"]
        and record["jax"]
        and "cpu" in record["devices"]
    )


def test_the_same_config_may_continue_and_its_record_stays(tmp_path, config):
    run_folder.claim(tmp_path, config, "1")
    before = (tmp_path / "config.json").read_bytes()
    config.checkpoint.every = 7  # free to change
    run_folder.claim(tmp_path, config, "2")
    assert (tmp_path / "config.json").read_bytes() == before


def test_another_config_is_refused_with_every_difference(tmp_path, config):
    run_folder.claim(tmp_path, config, "1")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    config.loss.beta, config.seed = 0.5, 3
    schema.select(config, "pairs.gate", "power")
    with pytest.raises(ConfigError) as error:
        run_folder.claim(tmp_path, config, "1")
    message = str(error.value)
    assert "loss.beta: the run has 0.001, given 0.5" in message
    assert "seed: the run has 0, given 3" in message
    assert "pairs.gate.exponent: the run has None, given 2.0" in message
    assert "learning_rate" not in message
    assert len(run_folder.differences(tmp_path, config)) == 4


def test_a_start_that_computed_nothing_gives_its_folder_to_another_config(tmp_path, config):
    run_folder.claim(tmp_path, config, "1")
    (tmp_path / "prompts.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "run.lock").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "nohup.out").write_text("error: no such model")
    config.loss.beta = 0.5
    assert run_folder.differences(tmp_path, config) == []
    run_folder.claim(tmp_path, config, "1")
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["loss.beta"] == 0.5


@pytest.mark.parametrize(
    "name",
    [
        "baseline.json",
        "metrics.jsonl",
        "verdicts_1.jsonl",
        "rollouts/iteration_00000.npz",
        "checkpoints/step_00000004/MANIFEST.sha256",
        "policy/config.json",
    ],
)
def test_whatever_was_computed_belongs_to_its_config(tmp_path, config, name):
    run_folder.claim(tmp_path, config, "1")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    config.loss.beta = 0.5
    with pytest.raises(ConfigError, match=r"loss\.beta: the run has 0\.001, given 0\.5"):
        run_folder.claim(tmp_path, config, "1")


@pytest.mark.parametrize("text", ['{"model_type": "llama"}', "[1]"])
def test_a_config_of_another_program_is_not_overwritten(tmp_path, config, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is no config of a run"):
        run_folder.claim(tmp_path, config, "1")
    assert (tmp_path / "config.json").read_text() == text


def test_a_folder_without_a_run_differs_in_nothing(tmp_path, config):
    assert run_folder.differences(tmp_path, config) == []


def test_the_digest_tells_configs_apart_except_for_checkpointing(config):
    before = run_folder.digest(config)
    config.checkpoint.keep = 5
    assert run_folder.digest(config) == before
    config.seed = 1
    assert run_folder.digest(config) != before


def test_records_of_an_iteration_replace_its_own_and_later_ones_and_a_torn_line(tmp_path):
    path = tmp_path / "r.jsonl"
    for iteration in (0, 1, 2):
        run_folder.append_records(path, [{"iteration": iteration, "v": "old"}], iteration)
    with open(path, "a") as file:
        file.write('{"iteration": 0, "v": "to')
    run_folder.append_records(path, [{"iteration": 1, "v": "é"}, {"iteration": 1, "v": "b"}], 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"iteration": 0, "v": "old"},
        {"iteration": 1, "v": "é"},
        {"iteration": 1, "v": "b"},
    ]


@pytest.mark.parametrize("character", "\x85\u2028\u2029")
def test_records_of_a_release_that_wrote_line_ends_raw_are_kept_whole(tmp_path, character):
    path = tmp_path / "r.jsonl"
    old = [{"iteration": 0, "winner": f"a{character}{n}"} for n in range(3)]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in old), "utf-8")
    new = {"iteration": 1, "winner": f"b{character}"}
    run_folder.append_records(path, [new], 1)
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [*old, new]


@pytest.mark.parametrize("line", ["oops", '{"winner": "a"}', "[1]"])
def test_a_record_that_was_edited_away_is_named_and_not_lost(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text('{"iteration": 0}\n' + line + "\n")
    with pytest.raises(DataError, match=r"r\.jsonl:2: "):
        run_folder.append_records(path, [{"iteration": 1}], 1)
    assert line in path.read_text()


def test_a_write_that_dies_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "f.json"
    run_folder.write_json(path, {"a": 1})

    def die(*_):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OSError, match="power cut"):
        run_folder.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}

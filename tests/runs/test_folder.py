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


@pytest.mark.parametrize("text", ["[]", "{", '{"config": 3}', "[" * 100_000])
def test_a_config_json_that_is_no_record_of_a_run_is_named(tmp_path, config, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json: not "):
        run_folder.claim(tmp_path, config, "1")


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


def test_a_write_that_dies_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "f.json"
    run_folder.write_json(path, {"a": 1})

    def die(*_):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OSError, match="power cut"):
        run_folder.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}

import json
import os
from contextlib import ExitStack

import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.data import EncodedPrompt, History, question
from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.errors import ConfigError, DataError, UserError
from ssppo_jax.runs import folder as run_folder
from ssppo_jax.types import Prompt


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


def begin(folder, config):
    """A run that has computed something."""
    run_folder.claim(folder, config, "1")
    (folder / "metrics.jsonl").write_text("{}\n")
    return (folder / "config.json").read_bytes()


def test_one_process_at_a_time_writes_in_a_folder_and_a_finished_run_asks_for_nothing(
    tmp_path, config
):
    with ExitStack() as other:
        assert run_folder.opened(tmp_path, config, "1.2.3", other) is None
        with ExitStack() as stack, pytest.raises(UserError, match="another run"):
            run_folder.opened(tmp_path, config, "1.2.3", stack)
        run_folder.write_json(tmp_path / "result.json", {"win_rate": 0.5})
        with ExitStack() as stack:  # while it is locked
            assert run_folder.opened(tmp_path, config, "1.2.3", stack) == {"win_rate": 0.5}


def test_the_same_config_may_continue_and_its_record_stays(tmp_path, config):
    before = begin(tmp_path, config)
    run_folder.claim(tmp_path, config, "2")
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_that_another_release_began_is_told_with_both_releases(tmp_path, config):
    begin(tmp_path, config)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["train.rollout_lag"]  # a key that release 1 did not have
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"train\.rollout_lag: the run has None") as refused:
        run_folder.claim(tmp_path, config, "2")
    assert "Release 1 of ssppo_jax began it, and this is 2" in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        run_folder.claim(tmp_path, config, "1")
    assert "Release" not in str(refused.value)


def test_config_files_of_other_programs_are_no_runs(tmp_path, config):
    for text in ("// a comment\n{}", '{"config": {"a": 1}}', "5"):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "model").mkdir(exist_ok=True)
        assert run_folder.history_of(str(tmp_path / "model")) == History(frozenset(), {})
        (tmp_path / "result.json").write_text("{}")
        assert not run_folder.is_longer(tmp_path, config)


def test_a_start_that_another_one_overtook_leaves_its_folder(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(UserError), run_folder.no_trace_of_failure(folder):
        folder.mkdir()
        with RunLock(folder):  # the other one
            raise UserError("another run")
    assert not folder.exists()
    with ExitStack() as other, pytest.raises(UserError), run_folder.no_trace_of_failure(folder):
        folder.mkdir()
        other.enter_context(RunLock(folder))
        (folder / "config.json").write_text("{}")
        raise UserError("another run")
    assert (folder / "config.json").is_file()


def test_keys_that_train_nothing_may_change_and_are_listed(tmp_path, config, caplog):
    begin(tmp_path, config)
    config.checkpoint.every, config.eval.every = 7, 2
    with caplog.at_level("INFO"):
        run_folder.claim(tmp_path, config, "2")
    assert "changed: checkpoint.every=7, was 1" in caplog.text
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["eval.every"] == 2 and record["version"] == "1"
    assert [change["key"] for change in record["changes"]] == ["checkpoint.every", "eval.every"]
    before = (tmp_path / "config.json").read_bytes()
    run_folder.claim(tmp_path, config, "2")
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_may_be_made_longer_and_keeps_the_parts_it_began_with(tmp_path, config):
    begin(tmp_path, config)
    (tmp_path / "result.json").write_text("{}")
    config.train.iterations = 5
    with pytest.raises(ConfigError, match="kept no checkpoint"):
        run_folder.claim(tmp_path, config, "1")
    (tmp_path / "checkpoints/step_00000003").mkdir(parents=True)
    assert run_folder.is_longer(tmp_path, config)
    run_folder.claim(tmp_path, config, "1")
    assert not run_folder.is_longer(tmp_path, config)
    assert run_folder.portions_of(tmp_path, config) == 3  # as it began
    assert (tmp_path / "result_3.json").is_file() and not (tmp_path / "result.json").exists()
    config.train.iterations = 7
    run_folder.claim(tmp_path, config, "1")
    assert run_folder.portions_of(tmp_path, config) == 3
    config.train.iterations = 6
    with pytest.raises(ConfigError, match=r"the run has 7, given 6 \(it may be raised above 7\)"):
        run_folder.claim(tmp_path, config, "1")


def test_a_users_file_that_changed_is_said(tmp_path, config, caplog):
    mine = tmp_path / "mine.py"
    mine.write_text("def reward(completions):\n    return [0.0 for _ in completions]\n")
    schema.select(config, "oracle", "python", function=f"{mine}:reward")
    begin(tmp_path / "run", config)
    assert list(json.loads((tmp_path / "run/config.json").read_text())["files"]) == [str(mine)]
    mine.write_text("def reward(completions):\n    return [1.0 for _ in completions]\n")
    run_folder.claim(tmp_path / "run", config, "1")
    assert f"{mine} changed since the run began" in caplog.text
    caplog.clear()
    run_folder.claim(tmp_path / "run", config, "1")
    assert not caplog.text


def test_a_start_that_failed_leaves_no_folder_and_a_run_that_computed_stays(tmp_path, config):
    new = tmp_path / "runs/new"
    with pytest.raises(DataError), run_folder.no_trace_of_failure(new):
        run_folder.claim(new, config, "1")
        raise DataError("bad rows")
    assert not new.parent.exists()
    for work in ("computed", "there before"):
        (new.parent if work == "computed" else new).mkdir(parents=True, exist_ok=True)
        with pytest.raises(DataError), run_folder.no_trace_of_failure(new):
            run_folder.claim(new, config, "1")
            if work == "computed":
                (new / "metrics.jsonl").write_text("{}\n")
            raise DataError("later")
        assert (new / "config.json").is_file()
        (new / "metrics.jsonl").unlink(missing_ok=True)


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


@pytest.mark.parametrize("text", ['{"model_type": "llama"}', '{"config": 3}', "[1]"])
def test_a_config_of_another_program_is_not_overwritten(tmp_path, config, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is no config of a run"):
        run_folder.claim(tmp_path, config, "1")
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_config_json_that_is_no_json_is_named(tmp_path, config, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json: not JSON"):
        run_folder.claim(tmp_path, config, "1")


def test_a_folder_without_a_run_differs_in_nothing(tmp_path, config):
    assert run_folder.differences(tmp_path, config) == []


def test_the_digest_tells_configs_apart_except_for_checkpointing(config):
    before = run_folder.digest(config)
    config.checkpoint.keep = 5
    assert run_folder.digest(config) == before
    config.seed = 1
    assert run_folder.digest(config) != before


def encoded(name, text, tokens=(1, 2)):
    prompt = Prompt(name, ({"role": "user", "content": text},))
    return EncodedPrompt(prompt, np.array(tokens, np.int32), np.uint32(0))


def make_run(folder, source="random:tiny", trained=("one",), heldout=("two",)):
    """Write what a run says of itself, and a checkpoint's and a policy's folder."""
    (folder / "policy").mkdir(parents=True)
    (folder / "checkpoints/step_00000001").mkdir(parents=True)
    run_folder.write_json(folder / "config.json", {"config": {"model.source": str(source)}})
    run_folder.write_json(folder / "policy/config.json", {"model_type": "llama"})
    rows = [[encoded(text, text) for text in part] for part in (trained, heldout)]
    run_folder.claim_split(folder, *rows, "f")
    return folder


def test_a_model_of_a_run_has_its_history_and_that_of_the_run_before(tmp_path):
    one, two, three, four = (question(encoded("x", t).prompt) for t in ("one", "two", "3", "4"))
    first = make_run(tmp_path / "first")
    for model in ("policy", "checkpoints/step_00000001", ""):
        found = run_folder.history_of(str(first / model))
        assert found == History(frozenset([one]), {"two": two})
    second = make_run(tmp_path / "second", first / "policy", ["3"], ["4"])
    both = History(frozenset([one, three]), {"two": two, "4": four})
    assert run_folder.history_of(str(second / "policy")) == both
    assert run_folder.history_of("random:tiny", str(second / "policy"), str(first)) == both
    assert list(run_folder.history_of(str(second)).heldout) == ["two", "4"]


def test_a_relative_model_is_found_from_another_folder(tmp_path, monkeypatch):
    make_run(tmp_path / "runs/first")
    second = make_run(tmp_path / "runs/second", "runs/first/policy", ["3"], ["4"])
    monkeypatch.chdir("/")
    assert set(run_folder.history_of(str(second)).heldout) == {"two", "4"}


def test_a_model_of_no_run_has_no_history(tmp_path):
    (tmp_path / "model").mkdir()
    run_folder.write_json(tmp_path / "model/config.json", {"model_type": "llama"})
    for source in ("random:tiny", "owner/name", "/nowhere", str(tmp_path / "model")):
        assert run_folder.history_of(source) == History()


def test_a_run_that_does_not_say_what_it_was_trained_on_is_named(tmp_path, caplog):
    run = make_run(tmp_path / "old")
    (run / "split.json").unlink()
    assert run_folder.history_of(str(run / "policy")) == History()
    assert f"{run} does not say what it was trained on" in caplog.text


def test_another_split_is_refused_and_the_same_one_goes_on(tmp_path):
    train, heldout = [encoded("a", "x")], [encoded("b", "y")]
    run_folder.claim_split(tmp_path, train, heldout, "one")
    before = (tmp_path / "split.json").read_bytes()
    run_folder.claim_split(tmp_path, train, heldout, "one")
    assert (tmp_path / "split.json").read_bytes() == before
    with pytest.raises(ConfigError, match="changed since the run began"):
        run_folder.claim_split(tmp_path, train, heldout, "two")


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

"""The list of runs says of each folder how far it came."""

import json

import pytest

from ssppo_jax.__main__ import main
from ssppo_jax.distributed.stop import RunLock
from ssppo_jax.runs.listing import list_runs


def record(phase, iteration, **values):
    return {"step": 0, "iteration": iteration, "phase": phase, "values": values, "wall": {}}


def make(folder, *records, loss="s_sppo", result=None):
    folder.mkdir(parents=True)
    config = {"config": {"loss.name": loss, "train.iterations": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    if records:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path):
    make(tmp_path / "new")
    first = [record("judge", 0, **{"reward/mean": 0.25}), record("train", 0, loss=0.5)]
    make(tmp_path / "sweep/a", *first, record("iteration", 0, steps=1.0), loss="grpo")
    make(tmp_path / "done", *first, record("evaluate", 3, win_rate=0.75), result={})
    (tmp_path / "sweep/a/policy").mkdir()
    (tmp_path / "sweep/a/policy/config.json").write_text('{"model_type": "llama"}')  # a model's
    return tmp_path


def test_each_run_has_its_status_and_last_numbers(runs):
    found = {run.folder.name: run for run in list_runs(runs)}
    assert set(found) == {"new", "a", "done"}
    assert (found["new"].status, found["new"].loss) == ("not begun", None)
    a = found["a"]
    assert (a.status, a.iteration, a.iterations, a.name) == ("stopped", 1, 3, "grpo")
    assert (a.loss, a.reward, a.win_rate) == (0.5, 0.25, None)
    assert (found["done"].status, found["done"].win_rate) == ("finished", 0.75)


def test_a_fit_is_listed_by_its_head_and_not_by_a_loss_it_does_not_use(tmp_path):
    make(tmp_path / "fit", record("train", 0, loss=0.5), result={})
    config = {"loss.name": "s_sppo", "train.iterations": 1, "fit.head": "reward"}
    (tmp_path / "fit" / "config.json").write_text(json.dumps({"config": config}))
    (tmp_path / "fit" / "prompts.json").write_text('{"train_pairs": 52}')
    (found,) = list_runs(tmp_path)
    assert (found.name, found.iteration, found.status) == ("fit reward", 1, "finished")


def test_a_run_whose_lock_is_held_is_running(runs):
    with RunLock(runs / "sweep/a"):
        assert {r.folder.name: r.status for r in list_runs(runs)}["a"] == "running"
    assert {r.folder.name: r.status for r in list_runs(runs)}["a"] == "stopped"


def test_a_damaged_log_is_said_and_hides_no_other_run(runs):
    (runs / "sweep/a/metrics.jsonl").write_text("oops\n{}\n")
    status = {r.folder.name: r.status for r in list_runs(runs)}
    assert status["a"].startswith("unreadable (") and "metrics.jsonl:1" in status["a"]
    assert status["done"] == "finished"


def test_the_command_prints_a_table_and_names_a_folder_without_runs(runs, tmp_path, capsys):
    assert main(["runs", f"--workdir={runs}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "status", "iteration"] and len(lines) == 4
    assert any(line.startswith("sweep/a") and "1/3" in line for line in lines)
    (tmp_path / "empty").mkdir()
    for folder, told in (("empty", "no run in it or below it"), ("none", "no such folder")):
        assert main(["runs", f"--workdir={tmp_path / folder}"]) == 78
        assert told in capsys.readouterr().err

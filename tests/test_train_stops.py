"""What makes a run stop, and what it leaves out."""

import json

import jax
import pytest
from small_runs import configure, length_oracle, values

from ssppo_jax.errors import GateError
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.training import train as train_module
from ssppo_jax.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_run_aborts_when_sampler_and_trainer_disagree(tmp_path):
    with pytest.raises(GateError, match="sampler and trainer disagree"):
        train(configure(train__sampler_bound=1e-6), tmp_path)
    assert not (tmp_path / "checkpoints").exists() or not list(
        (tmp_path / "checkpoints").glob("step_*")
    )


def test_a_step_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path):
    with pytest.raises(GateError, match=r"step 1: .*not finite"):
        train(configure(optimizer__learning_rate=1e30, checkpoint__every_steps=0), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_prompts_the_oracle_fails_on_are_dropped_and_counted(tmp_path, monkeypatch):
    config = configure(
        train__iterations=1, oracle__max_failed_fraction=0.5, checkpoint__export="false"
    )
    heldout = set()
    prepare = train_module.prepare_prompts

    def remember(*args, **how):
        found = prepare(*args, **how)
        heldout.update(e.prompt.id for e in found.heldout)
        return found

    monkeypatch.setattr(train_module, "prepare_prompts", remember)
    oracle = length_oracle(lambda p: p.id not in heldout and int(p.id[1:]) % 3 == 0)
    monkeypatch.setattr(train_module, "build_oracle", lambda config: oracle)
    train(config, tmp_path)
    judged = values(read_metrics(tmp_path / "metrics.jsonl"), "judge")[0]
    trained = [
        json.loads(line)["prompt_id"]
        for line in (tmp_path / "pairs.jsonl").read_text().splitlines()
    ]
    assert judged["oracle/dropped"] == judged["oracle/failed: no answer"] == 16 - len(trained) > 0
    assert all(int(name[1:]) % 3 for name in trained)


def test_too_many_failures_abort_with_the_commonest_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "build_oracle", lambda config: length_oracle(lambda p: True))
    with pytest.raises(GateError, match=r"16 of 16 prompts(.|\n)*no answer"):
        train(configure(train__iterations=1), tmp_path, profile=True)
    jax.profiler.start_trace(tmp_path / "another")  # the run left none
    jax.profiler.stop_trace()

"""Iterations and runs in which groups, or all of them, teach nothing: what is skipped, said and
counted."""

import json

import numpy as np
import pytest
from small_runs import byte_oracle, configure, values

from ssppo_jax.errors import GateError
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.training import train as train_module
from ssppo_jax.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")

FEW = {"train__micro_batches": 1, "eval__num_samples": 1, "eval__final_num_samples": 1}
FEW |= {"checkpoint__export": "false", "checkpoint__every_steps": 0}


def ties(iterations):
    """An oracle that rewards all responses alike: in the first iteration, to every second prompt
    after it."""
    seen = []

    def flat(prompt):
        return len(seen) <= 16 * iterations or int(prompt.id[1:]) % 2 == 1

    def ask(prompts, responses):
        seen.extend(prompts if len(responses[0]) == 3 else [])  # an evaluation's are not 3
        return byte_oracle(flat).ask(prompts, responses)

    return Oracle(ask)


@pytest.fixture(scope="module")
def half_tied(tmp_path_factory):
    """DPO for two iterations of 16 prompts in batches of 4: all tied in the first, half after."""
    folder = tmp_path_factory.mktemp("half_tied")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_oracle", lambda config: ties(1))
        patch.setattr(train_module.log, "warning", lambda text, *args: said.append(text % args))
        train(configure(loss="dpo", train__batch_size=4, **FEW), folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    return list(read_metrics(folder / "metrics.jsonl")), rows, said


def test_tied_rows_are_counted_and_take_no_place_in_a_batch(half_tied):
    log, rows, _ = half_tied
    tied = sum(row["tied"] for row in rows if row["iteration"] == 1)
    assert [row["tied"] for row in rows if row["iteration"] == 0] == [True] * 16
    assert 0 < tied < 16
    assert [judged["pairs/weightless"] for judged in values(log, "judge")] == [16, tied]
    assert len(values(log, "train")) == -(-(16 - tied) // 4)


def test_an_iteration_without_any_label_is_skipped_said_and_counted(half_tied):
    log, _, said = half_tied
    first, second = values(log, "iteration")
    assert (first["steps/planned"], first["steps/taken"], first["steps/moving"]) == (4, 0, 0)
    assert second["steps/taken"] == second["steps/moving"] == len(values(log, "train")) > 0
    (text,) = said
    assert text.startswith("iteration 1/2 trained nothing: 16 rows, 0 steps, no gradient")
    assert "pairs/tied=1" in text and "pairs/weightless=16" in text


def test_the_decay_ends_with_the_run_whatever_was_left_out(half_tied):
    """From 1e-3 to 0 over 8 planned steps: the second iteration passes from 1/2 to 0."""
    rates = [step["learning_rate"] for step in values(half_tied[0], "train")]
    taken = len(rates)
    assert taken < 4
    np.testing.assert_allclose(rates, 0.5e-3 * (1 - np.arange(taken) / taken), rtol=1e-5)


def test_an_oracle_that_tells_nothing_apart_is_said_where_repulsion_trains_on(tmp_path, caplog):
    config = configure(train__iterations=1, loss__repulsion_weight=0.5, **FEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_oracle", lambda config: ties(9))
        train(config, tmp_path)
    assert "the oracle scored all responses of each prompt alike" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"group__filter_groups": "true"}, "0 rows, 0 steps"),  # no group is left
        ({}, "16 rows, 2 steps, no gradient"),  # every advantage is 0
    ],
)
def test_a_run_in_which_nothing_was_trained_is_no_result(tmp_path, caplog, settings, said):
    """An oracle that rewards everything alike: the initial policy is not exported as a result."""
    config = configure(
        loss="grpo", train__iterations=1, **FEW | settings | {"checkpoint__export": "true"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_oracle", lambda config: ties(9))
        for _ in range(2):  # the same command says the same again
            with pytest.raises(GateError, match="nothing was trained in 1 iterations"):
                train(config, tmp_path)
    assert said in caplog.text and "frac_reward_zero_std=1" in caplog.text
    assert not (tmp_path / "policy").exists() and not (tmp_path / "result.json").exists()
    log = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert len(values(log, "generate")) == 1  # the second time nothing was sampled

"""Rewards and opponents through the whole loop: what is sampled, left out, assembled, trained on
and reported."""

import numpy as np
import pytest
from small_runs import byte_oracle, length_oracle, run_with, values

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Two iterations of two steps each: 16 prompts, batches of 8."""
    return run_with(
        tmp_path_factory.mktemp("groups"), byte_oracle(), loss="sspo", train__micro_batches=1
    )


def test_all_k_responses_train_with_the_advantage_of_their_reward(groups):
    _, _, rows = groups
    assert len(rows) == 32
    for row in rows:
        reward = np.array(row["reward"])
        std = reward.std(ddof=1)
        np.testing.assert_allclose(
            row["advantage"], (reward - reward.mean()) / (std + 1e-4), atol=1e-4
        )
        assert len(row["responses"]) == len(row["length"]) == 3


def test_old_log_probs_are_those_of_the_sampling_policy_for_every_minibatch_of_a_rollout(groups):
    """Ratios are 1 in the first step of a rollout, and not in the second, where the policy has
    moved on."""
    steps = values(groups[1], "train")
    assert len(steps) == 4
    for first, second in (steps[:2], steps[2:]):
        np.testing.assert_allclose(
            [first["ratio/min"], first["ratio/max"], first["effective_update_ratio"]], 1, atol=2e-5
        )
        assert (
            second["ratio/max"] - second["ratio/min"] > 1e-3
            and second["effective_update_ratio"] < 1
        )
    assert max(score["sampler_gap/max"] for score in values(groups[1], "score")) < 1e-5


def test_rewards_and_their_parts_are_evaluated_from_the_start(groups):
    result, log, _ = groups
    evaluated = values(log, "evaluate")
    assert len(evaluated) == 3 and evaluated[0]["reward"] == pytest.approx(
        2 * evaluated[0]["ascii"], rel=1e-5
    )
    assert evaluated[0]["reward"] == pytest.approx(result["reward_start"], rel=1e-6)
    for name in ("reward", "ascii"):
        assert result[name] == pytest.approx(evaluated[-1][name])
        assert result[f"{name}_gain"] == pytest.approx(
            result[name] - result[f"{name}_start"], abs=1e-6
        )
        assert result[f"{name}_gain_low"] <= result[f"{name}_gain"] <= result[f"{name}_gain_high"]
    judged = values(log, "judge")[0]
    assert judged["reward/ascii"] == pytest.approx(judged["reward/mean"] / 2, rel=1e-5)


def odd(prompt):
    return int(prompt.id[1:]) % 2 == 1


def test_groups_of_equal_rewards_are_left_out_and_more_is_sampled_until_enough_differ(tmp_path):
    settings = {
        "group__filter_groups": "true",
        "group__max_num_gen_batches": 4,
        "train__iterations": 1,
    }
    _, log, rows = run_with(tmp_path, byte_oracle(flat=odd), loss="grpo", **settings)
    judged, generated = values(log, "judge")[0], values(log, "generate")[0]
    assert len(rows) == judged["group/rows"] == 16
    assert not any(int(row["prompt_id"][1:]) % 2 for row in rows)
    assert len({row["prompt_id"] for row in rows}) == 16
    assert generated["prompts"] > 16 and generated["prompts"] % 16 == 0
    left_out = judged["frac_reward_zero_std"] * generated["prompts"]
    assert generated["prompts"] == pytest.approx(16 + left_out + judged["group/surplus"])
    assert left_out > 0


def test_a_group_loss_takes_win_rates_for_rewards_where_the_oracle_prefers(tmp_path):
    _, _, rows = run_with(tmp_path, length_oracle(), loss="grpo", train__iterations=1)
    for row in rows:
        np.testing.assert_allclose(np.mean(row["reward"]), 0.5, atol=1e-6)  # identity 1
        longest = int(np.argmax([len(text) for text in row["responses"]]))
        assert row["reward"][longest] == max(row["reward"])


def test_a_group_loss_at_another_temperature_is_on_policy_and_held_to_the_initial_policy(tmp_path):
    """Sampler and trainer agree at the sampler's temperature, the first update of a rollout has
    ratio 1 and no clip, and the KL is to the initial policy: 0 in the first iteration alone."""
    settings = {"sampling__temperature": 0.7, "sampling__top_p": 0.9, "loss__beta": 0.1}
    settings["train__importance_sampling_correction"] = "true"
    _, log, _ = run_with(tmp_path, byte_oracle(), loss="gspo", train__micro_batches=1, **settings)
    assert max(score["sampler_gap/max"] for score in values(log, "score")) < 1e-5
    for score in values(log, "score"):  # the mass that top-p keeps of each token
        assert 0.5 < score["importance_sampling_ratio/mean"] < 1 - 1e-3
        assert score["importance_sampling_ratio/max"] <= 1 + 1e-4
    steps = values(log, "train")
    assert [("ratio/first_step_gap" in step) for step in steps] == [True, False] * 2
    for first in steps[::2]:
        assert first["ratio/first_step_gap"] == first["ratio/gap"] < 2e-5
        assert first["sequence_ratio/min"] == first["sequence_ratio/max"] == 1
        assert first["clip_ratio/region_mean"] == 0 and first["effective_update_ratio"] == 1
    assert steps[0]["term/kl"] == pytest.approx(0, abs=1e-9)
    assert steps[2]["term/kl"] > 1e-6


# ---- rows, without a model

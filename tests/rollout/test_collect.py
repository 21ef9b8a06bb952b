"""Rewards and opponents through the whole loop: what is sampled, left out, assembled, trained on
and reported."""

import json
import threading

import numpy as np
import pytest
from small_runs import byte_oracle, configure, length_oracle, values

from ssppo_jax import train as train_module
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.losses import preference
from ssppo_jax.oracles.protocol import Oracle
from ssppo_jax.rollout.groups import group_rows
from ssppo_jax.rollout.opponents import opponent_rows
from ssppo_jax.rollout.pairs import pair_rows
from ssppo_jax.rollout.rows import Judged
from ssppo_jax.runs.metrics import read_metrics
from ssppo_jax.runtime import Runtime
from ssppo_jax.train import train
from ssppo_jax.types import Prompt, Samples, Verdict

pytestmark = pytest.mark.usefixtures("own_cache")


def run(folder, oracle, **overrides):
    """result, metric log and the records trained on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_oracle", lambda config: oracle)
        result = train(configure(checkpoint__export="false", **overrides), folder)
    rows = [
        json.loads(line)
        for f in folder.glob("*s.jsonl")
        if f.name in RECORDS
        for line in f.read_text().splitlines()
    ]
    return result, list(read_metrics(folder / "metrics.jsonl")), rows


RECORDS = ("pairs.jsonl", "groups.jsonl", "opponents.jsonl")


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Two iterations of two steps each: 16 prompts, batches of 8."""
    return run(
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
    assert max(score["sampler_gap"] for score in values(groups[1], "score")) < 1e-5


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
    _, log, rows = run(tmp_path, byte_oracle(flat=odd), loss="grpo", **settings)
    judged, generated = values(log, "judge")[0], values(log, "generate")[0]
    assert len(rows) == judged["group/rows"] == 16
    assert not any(int(row["prompt_id"][1:]) % 2 for row in rows)
    assert len({row["prompt_id"] for row in rows}) == 16
    assert generated["prompts"] > 16 and generated["prompts"] % 16 == 0
    left_out = judged["frac_reward_zero_std"] * generated["prompts"]
    assert generated["prompts"] == pytest.approx(16 + left_out + judged["group/surplus"])
    assert left_out > 0


def test_a_group_loss_takes_win_rates_for_rewards_where_the_oracle_prefers(tmp_path):
    _, _, rows = run(tmp_path, length_oracle(), loss="grpo", train__iterations=1)
    for row in rows:
        np.testing.assert_allclose(np.mean(row["reward"]), 0.5, atol=1e-6)  # identity 1
        longest = int(np.argmax([len(text) for text in row["responses"]]))
        assert row["reward"][longest] == max(row["reward"])


def test_a_group_loss_at_another_temperature_is_on_policy_and_held_to_the_initial_policy(tmp_path):
    """Sampler and trainer agree at the sampler's temperature, the first update of a rollout has
    ratio 1 and no clip, and the KL is to the initial policy: 0 in the first iteration alone."""
    settings = {"sampling__temperature": 0.7, "sampling__top_p": 0.9, "loss__beta": 0.1}
    _, log, _ = run(tmp_path, byte_oracle(), loss="gspo", train__micro_batches=1, **settings)
    assert max(score["sampler_gap"] for score in values(log, "score")) < 1e-5
    steps = values(log, "train")
    assert [("ratio/first_step_gap" in step) for step in steps] == [True, False] * 2
    for first in steps[::2]:
        assert first["ratio/first_step_gap"] == first["ratio/gap"] < 2e-5
        assert first["sequence_ratio/min"] == first["sequence_ratio/max"] == 1
        assert first["clip_ratio/region_mean"] == 0 and first["effective_update_ratio"] == 1
    assert steps[0]["term/kl"] == pytest.approx(0, abs=1e-9)
    assert steps[2]["term/kl"] > 1e-6


def test_a_pair_loss_takes_the_higher_reward_for_the_winner(tmp_path):
    _, _, rows = run(tmp_path, byte_oracle(), train__iterations=1)
    share = [
        [np.mean([c < "\x80" for c in row[side]] or [0]) for side in ("winner", "loser")]
        for row in rows
    ]
    assert all(w >= l for w, l in share) and any(w > l for w, l in share)
    assert {row["p_win"] for row in rows} <= {0.5, 1.0}


@pytest.mark.parametrize("loss", ["nash_md", "xpo"])
def test_the_policy_meets_an_opponent(tmp_path, loss):
    settings = {
        "sampling__num_samples": 2,
        "train__reference": "initial",
        "train__micro_batches": 1,
    }
    _, log, rows = run(tmp_path, length_oracle(), loss=loss, **settings)
    assert len(rows) == 32 and all(row["policy"] != row["opponent"] for row in rows)
    assert any(row["p_win"] < 0.5 for row in rows) and any(
        row["p_win"] > 0.5 for row in rows
    )  # in order, not sorted
    assert max(score["sampler_gap"] for score in values(log, "score")) < 1e-5
    np.testing.assert_allclose(values(log, "train")[0]["ratio/max"], 1, atol=2e-5)


# ---- rows, without a model


def judged(verdict, k=3):
    """Two prompts of 2 and 3 tokens; completions of 1, 2 and 3 of 3 slots; the last of each was
    cut."""
    prompts = [
        Prompt(f"p{i}", ({"role": "user", "content": f"prompt {i}"},), {"answer": i})
        for i in range(2)
    ]
    encoded = [
        EncodedPrompt(p, np.arange(1, n + 1), 0) for p, n in zip(prompts, (2, 3), strict=True)
    ]
    tokens = np.arange(2 * k * 3).reshape(2, k, 3).astype(np.int32) + 10
    length = np.tile(np.arange(1, k + 1), (2, 1)).astype(np.int32)
    finish = np.zeros((2, k), np.int8)
    finish[:, -1] = 1
    logp = -tokens.astype(np.float32)
    texts = [[f"text {i} {j}" for j in range(k)] for i in range(2)]
    return Judged(encoded, Samples(tokens, length, logp, logp, finish), texts, verdict)


REWARDS = Verdict(None, np.array([[0, 1, 1], [1, 0, 0.5]], np.float32), (None, None))


def test_group_rows_hold_every_response_of_the_prompt_with_its_mask():
    rows = group_rows(configure(loss="grpo"), judged(REWARDS), None, 4)
    np.testing.assert_array_equal(rows.batch.mask.sum(2), [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(rows.batch.prompt, [[1, 2, 0], [1, 2, 3]])
    np.testing.assert_array_equal(rows.sampler_logp, -rows.batch.completion)
    assert [row["answer"] for row in rows.records] == [0, 1] and rows.records[1]["iteration"] == 4


def test_truncated_completions_do_not_train_but_count_in_the_advantages():
    plain = group_rows(configure(loss="grpo"), judged(REWARDS), None, 0)
    masked = group_rows(
        configure(loss="grpo", group__mask_truncated_completions="true"), judged(REWARDS), None, 0
    )
    np.testing.assert_array_equal(masked.batch.mask.sum(2), [[1, 2, 0], [1, 2, 0]])
    np.testing.assert_array_equal(masked.batch.advantage, plain.batch.advantage)
    assert masked.stats["group/truncated"] == pytest.approx(1 / 3)


def test_pair_rows_take_the_winners_and_the_losers_own_tokens():
    rows = pair_rows(configure(similarity__name="token_jaccard"), judged(REWARDS), None, 0)
    np.testing.assert_array_equal(
        rows.batch.completion[:, :, 0], [[13, 10], [19, 22]]
    )  # samples (1, 0) and (0, 1)
    np.testing.assert_array_equal(rows.batch.mask.sum(2), [[2, 1], [1, 2]])
    assert (rows.records[0]["winner"], rows.records[0]["loser"]) == ("text 0 1", "text 0 0")


TIED = Verdict(None, np.array([[0, 0, 0], [1, 0, 0.5]], np.float32), (None, None))


@pytest.mark.parametrize("loss", sorted(preference.LOSSES))
def test_a_tied_group_has_weight_0_where_the_loss_takes_the_winner_for_certain(loss):
    """Rewards 0, 0, 0 prefer nobody: win rates of 1/2 are a target of SPPO's, and no label."""
    regresses = loss in ("s_sppo", "sppo", "sppo_single")
    rows = pair_rows(configure(loss=loss, similarity__name="token_jaccard"), judged(TIED), None, 0)
    np.testing.assert_array_equal(rows.batch.weight, [regresses, 1])
    assert rows.stats["pairs/weightless"] == (not regresses)
    assert rows.stats["pairs/tied"] == 0.5 and rows.stats["oracle/pairs"] == 2
    assert [row["tied"] for row in rows.records] == [True, False]


@pytest.mark.parametrize(
    ("setting", "weights"),
    [({"pairs__train_ties": "true"}, [1, 1]), ({"pairs__drop_ties": "true"}, [1])],
)
def test_ties_train_or_are_left_out_on_request(setting, weights):
    config = configure(loss="dpo", similarity__name="token_jaccard", **setting)
    rows = pair_rows(config, judged(TIED), None, 0)
    np.testing.assert_array_equal(rows.batch.weight, weights)
    assert rows.stats["pairs/weightless"] == 0


def test_a_cycle_has_no_winner_for_a_hard_label_and_keeps_its_comparison():
    """Rock, paper, scissors: every mean score is equal, though each comparison is certain."""
    cycle = np.array([[[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]] * 2, np.float32)
    given = judged(Verdict(cycle, None, (None, None)))
    for loss, weight in (("dpo", 0), ("sppo_single", 1)):
        rows = pair_rows(configure(loss=loss, similarity__name="token_jaccard"), given, None, 0)
        np.testing.assert_array_equal(rows.batch.weight, weight)
        np.testing.assert_array_equal(rows.batch.p_win, 1)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (pair_rows, {"similarity__name": "token_jaccard"}),
        (group_rows, {"loss": "grpo"}),
        (opponent_rows, {"loss": "xpo", "sampling__num_samples": 2, "train__reference": "initial"}),
    ],
)
def test_an_iteration_whose_prompts_all_failed_has_no_rows(make, settings):
    k = int(settings.get("sampling__num_samples", 3))
    verdict = Verdict(None, REWARDS.reward[:, :k], (None, None))
    rows = make(configure(**settings), judged(verdict, k).take(np.array([], int)), None, 0)
    assert rows.batch.weight.shape == (0,) and rows.batch.mask.shape == (
        0,
        min(k, 2) if make is pair_rows else k,
        3,
    )
    assert rows.records == [] and np.isfinite(list(rows.stats.values())).all()


def test_opponent_rows_keep_their_order():
    two = judged(REWARDS, k=2)._replace(
        verdict=Verdict(np.array([[[0.5, 0.2], [0.8, 0.5]]] * 2), None, (None, None))
    )
    rows = opponent_rows(
        configure(loss="nash_md", sampling__num_samples=2, train__reference="initial"), two, None, 0
    )
    np.testing.assert_array_equal(rows.batch.completion, two.samples.tokens)
    np.testing.assert_allclose(rows.batch.p_win, 0.2, rtol=1e-6)
    assert rows.records[0]["policy"] == "text 0 0"


def test_the_oracle_is_at_work_before_the_last_prompts_are_sampled(tmp_path, monkeypatch):
    asked, calls, made = threading.Event(), [], Runtime.make_sampler

    def watched(runtime, **settings):
        sampler = made(runtime, **settings)

        def counted(step):
            def call(*args):
                calls.append(None)
                assert len(calls) < 4 or asked.wait(20), "four batches sampled, and nothing judged"
                return step(*args)

            return call

        both = {name: counted(getattr(sampler, name)) for name in ("start", "refill")}
        return sampler._replace(**both) if settings["num_samples"] == 3 else sampler

    def ask(prompts, responses):
        if len(responses[0]) == 3:  # not an evaluation's
            asked.set()
        return byte_oracle().ask(prompts, responses)

    monkeypatch.setattr(Runtime, "make_sampler", watched)
    few = {
        "checkpoint__final": "false",
        "train__iterations": 1,
        "sampling__batch_size": 4,
        "eval__num_samples": 1,
        "eval__final_num_samples": 1,
    }
    run(tmp_path, Oracle(ask), loss="sspo", **few)
    assert len(calls) == 4
    assert [f.name for f in tmp_path.glob("checkpoints/step_*")] == [
        "step_00000001"
    ]  # of two: no final one

"""Rows as they are assembled from what was sampled and judged."""

import numpy as np
import pytest
from small_runs import configure

from ssppo_jax.data import EncodedPrompt
from ssppo_jax.losses import preference
from ssppo_jax.rollout.groups import group_rows
from ssppo_jax.rollout.opponents import opponent_rows
from ssppo_jax.rollout.pairs import pair_rows
from ssppo_jax.rollout.rows import Judged
from ssppo_jax.types import Prompt, Samples, Verdict

REWARDS = Verdict(None, np.array([[0, 1, 1], [1, 0, 0.5]], np.float32), (None, None))
TIED = Verdict(None, np.array([[0, 0, 0], [1, 0, 0.5]], np.float32), (None, None))


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


def test_group_rows_hold_every_response_of_the_prompt_with_its_mask():
    rows = group_rows(configure(loss="grpo"), judged(REWARDS), 4)
    np.testing.assert_array_equal(rows.batch.mask.sum(2), [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(rows.batch.prompt, [[1, 2, 0], [1, 2, 3]])
    np.testing.assert_array_equal(rows.samples.logp, -rows.batch.completion)
    assert [row["answer"] for row in rows.records] == [0, 1] and rows.records[1]["iteration"] == 4


def test_truncated_completions_do_not_train_but_count_in_the_advantages():
    plain = group_rows(configure(loss="grpo"), judged(REWARDS), 0)
    masked = group_rows(
        configure(loss="grpo", group__mask_truncated_completions="true"), judged(REWARDS), 0
    )
    np.testing.assert_array_equal(masked.batch.mask.sum(2), [[1, 2, 0], [1, 2, 0]])
    np.testing.assert_array_equal(masked.batch.advantage, plain.batch.advantage)
    assert masked.stats["group/truncated"] == pytest.approx(1 / 3)


def test_pair_rows_take_the_winners_and_the_losers_own_tokens():
    rows = pair_rows(configure(similarity__name="token_jaccard"), judged(REWARDS), 0)
    np.testing.assert_array_equal(
        rows.batch.completion[:, :, 0], [[13, 10], [19, 22]]
    )  # samples (1, 0) and (0, 1)
    np.testing.assert_array_equal(rows.batch.mask.sum(2), [[2, 1], [1, 2]])
    assert (rows.records[0]["winner"], rows.records[0]["loser"]) == ("text 0 1", "text 0 0")


@pytest.mark.parametrize("loss", sorted(preference.LOSSES))
def test_a_tied_group_has_weight_0_where_the_loss_takes_the_winner_for_certain(loss):
    """Rewards 0, 0, 0 prefer nobody: win rates of 1/2 are a target of SPPO's, and no label."""
    regresses = loss in ("s_sppo", "sppo", "sppo_single")
    rows = pair_rows(configure(loss=loss, similarity__name="token_jaccard"), judged(TIED), 0)
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
    rows = pair_rows(config, judged(TIED), 0)
    np.testing.assert_array_equal(rows.batch.weight, weights)
    assert rows.stats["pairs/weightless"] == 0


def test_a_cycle_has_no_winner_for_a_hard_label_and_keeps_its_comparison():
    """Rock, paper, scissors: every mean score is equal, though each comparison is certain."""
    cycle = np.array([[[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]] * 2, np.float32)
    given = judged(Verdict(cycle, None, (None, None)))
    for loss, weight in (("dpo", 0), ("sppo_single", 1)):
        rows = pair_rows(configure(loss=loss, similarity__name="token_jaccard"), given, 0)
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
    rows = make(configure(**settings), judged(verdict, k).take(np.array([], int)), 0)
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
        configure(loss="nash_md", sampling__num_samples=2, train__reference="initial"), two, 0
    )
    np.testing.assert_array_equal(rows.batch.completion, two.samples.tokens)
    np.testing.assert_allclose(rows.batch.p_win, 0.2, rtol=1e-6)
    assert rows.records[0]["policy"] == "text 0 0"

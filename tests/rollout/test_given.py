"""Given responses as judged samples: what is known of them reaches the rows."""

import dataclasses

import numpy as np
import pytest

from ssppo_jax import schema
from ssppo_jax.data.batches import EncodedPrompt
from ssppo_jax.errors import ConfigError
from ssppo_jax.rollout.given import check_given, judged_of
from ssppo_jax.rollout.pairs import pair_rows
from ssppo_jax.rollout.responses import response_rows
from ssppo_jax.types import Given, Prompt

PAIR = Given(("good", "bad"), preference=((0.5, 0.9), (0.1, 0.5)))


def rows_of(*given):
    return [
        EncodedPrompt(
            Prompt(f"p{i}", ({"role": "user", "content": f"question {i}"},), given=one),
            np.array([7, 8], np.int32),
            np.uint32(i),
            tuple(np.full(n + 1, n + 3, np.int32) for n in range(len(one.texts))),
        )
        for i, one in enumerate(given)
    ]


@pytest.fixture
def config():
    config = schema.base_config()
    config.similarity.name = "token_jaccard"
    config.sampling.max_new_tokens = 6
    return config


def test_a_pair_has_its_chance_and_its_estimated_win_rates(config):
    rows = pair_rows(config, judged_of(rows_of(PAIR), 6), 0)
    assert rows.batch.p_win == pytest.approx([0.9])
    np.testing.assert_allclose(rows.batch.win_rate, [[0.7, 0.3]], atol=1e-6)  # with the self pair
    assert rows.batch.mask.sum(-1).tolist() == [[1, 2]]
    assert rows.batch.completion[0, 1].tolist() == [4, 4, 0, 0, 0, 0]
    assert rows.records[0]["winner"] == "good"


def test_win_rates_of_the_data_take_the_place_of_the_estimate_and_are_gated(config):
    given = dataclasses.replace(PAIR, win_rate=(0.8, 0.25))
    alike = dataclasses.replace(given, texts=("same words", "words same"))
    rows = pair_rows(config, judged_of(rows_of(given, alike), 6), 0)
    np.testing.assert_allclose(rows.batch.win_rate, [[0.8, 0.25]] * 2, atol=1e-6)
    np.testing.assert_allclose(rows.batch.target, [[0.8, 0.25], [0.5, 0.5]], atol=1e-6)
    config.pairs.gate_level = "pairwise"
    with pytest.raises(ConfigError, match=r"gate_level=pairwise .* set pairs.gate_level=pair"):
        pair_rows(config, judged_of(rows_of(given), 6), 0)


def test_a_pair_whose_chosen_response_loses_is_turned_round_with_its_win_rates(config):
    given = Given(("a", "b"), preference=((0.5, 0.2), (0.8, 0.5)), win_rate=(0.3, 0.6))
    rows = pair_rows(config, judged_of(rows_of(given), 6), 0)
    assert rows.records[0]["winner"] == "b"
    np.testing.assert_allclose(rows.batch.win_rate, [[0.6, 0.3]], atol=1e-6)


def test_of_k_scored_responses_pairs_take_best_and_worst_and_sft_the_best(config):
    judged = judged_of(rows_of(Given(("x", "y", "z"), reward=(2.0, 3.0, 1.0))), 6)
    pair = pair_rows(config, judged, 0)
    assert (pair.records[0]["winner"], pair.records[0]["loser"]) == ("y", "z")
    best = response_rows(config, judged, 0)
    assert best.batch.completion.shape == (1, 1, 6) and best.records[0]["response"] == "y"


def test_a_demonstration_is_a_row_and_a_tie_of_scores_has_no_weight(config):
    shown = response_rows(config, judged_of(rows_of(Given(("x",))), 6), 0)
    assert shown.batch.weight.tolist() == [1]
    tied = judged_of(rows_of(Given(("x", "y"), reward=(1.0, 1.0))), 6)
    assert response_rows(config, tied, 0).batch.weight.tolist() == [0]


def test_a_pair_loss_needs_two_responses():
    with pytest.raises(ConfigError, match=r"loss.name=dpo learns from pairs(.|\n)*loss.name=sft"):
        check_given(rows_of(Given(("x",))), "dpo", "pair")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"loss.name": "grpo"}, "grpo learns from the policy's own samples"),
        ({"loss.name": "xpo"}, "xpo learns from the policy's own samples"),
        ({"loss.name": "sft", "loss.sft_weight": "0.1"}, "sft has no chosen response"),
    ],
)
def test_what_given_responses_cannot_teach_is_refused(overrides, reason):
    source = {"data.source.name": "answered", "data.source.path": "x.jsonl"}
    with pytest.raises(ConfigError, match=reason):
        schema.load("smoke", source | overrides, 1)


def test_oracles_of_evaluations_are_told_to_be_left_out():
    source = {"data.source.name": "answered", "data.source.path": "x.jsonl"}
    config = schema.load("quickstart", source, 1)
    assert any("eval.oracles=keywords is not asked" in told for told in schema.cautions(config))


def test_trl_names_lead_to_ours():
    with pytest.raises(ConfigError, match=r"here it is loss.sft_weight"):
        schema.load("smoke", {"loss.rpo_alpha": "1.0"})
    with pytest.raises(ConfigError, match=r"here it is model.source"):
        schema.load("smoke", {"train.init_from": "runs/sft"})

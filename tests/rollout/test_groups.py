"""Rewards of K responses become advantages; what teaches nothing is known; length is paid for at
the end only."""

import numpy as np
import pytest

from ssppo_jax.losses.advantages import ADVANTAGES
from ssppo_jax.rollout.groups import make_groups, teaches

REWARD = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0]], np.float32)
LENGTH = np.array([[10, 6, 8, 3], [10, 10, 1, 1], [2, 9, 10, 7]])


def test_advantages_are_those_of_the_named_function_on_the_oracles_rewards():
    groups, stats = make_groups(REWARD, LENGTH, ADVANTAGES["grpo"], max_length=10)
    np.testing.assert_allclose(
        groups.advantage[0], (REWARD[0] - 0.5) / (np.std(REWARD[0], ddof=1) + 1e-4), rtol=1e-6
    )
    np.testing.assert_array_equal(groups.advantage[1], 0.0)
    np.testing.assert_array_equal(groups.reward, REWARD)
    assert stats["frac_reward_zero_std"] == pytest.approx(1 / 3)
    assert stats["reward/best_of_k"] == pytest.approx(2.5 / 3)
    assert stats["reward/mean"] == pytest.approx(5 / 12)


def test_the_length_reward_by_hand():
    """Buffer 4 of 10 tokens, factor 2: 0 up to 6 tokens, then -1/2 a token, -2 at 10."""
    penalty = np.array([[-2.0, 0.0, -1.0, 0.0], [-2, -2, 0, 0], [0, -1.5, -2, -0.5]])
    groups, stats = make_groups(
        REWARD,
        LENGTH,
        ADVANTAGES["dr_grpo"],
        max_length=10,
        overlong_buffer_len=4,
        overlong_penalty_factor=2.0,
    )
    np.testing.assert_allclose(groups.reward, REWARD + penalty, rtol=1e-6)
    np.testing.assert_allclose(
        groups.advantage, groups.reward - groups.reward.mean(1, keepdims=True), atol=1e-6
    )
    assert stats["reward/mean"] == pytest.approx(5 / 12)  # what the oracle said stays visible


def test_groups_of_one_reward_teach_nothing():
    """Identity 24: dynamic sampling draws others in their place."""
    np.testing.assert_array_equal(teaches(REWARD), [True, False, True])


def test_no_group_left_is_no_error():
    groups, stats = make_groups(REWARD[:0], LENGTH[:0], ADVANTAGES["grpo"], max_length=10)
    assert groups.advantage.shape == (0, 4)
    assert stats["reward/mean"] == 0.0

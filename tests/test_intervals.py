from pathlib import Path

import numpy as np
import pytest

from ssppo_jax.errors import UserError
from ssppo_jax.evaluate.estimates import (
    cross_win_probability,
    length_controlled_win_rate,
    mean_interval,
    win_rate,
)


def test_the_mean_is_the_mean_over_prompts_and_lies_inside():
    p = np.array([0.1, 0.9, 0.8, 0.4])
    result = win_rate(p, rng=np.random.default_rng(0))
    assert result.mean == pytest.approx(0.55) and result.n == 4
    assert 0 <= result.low < result.mean < result.high <= 1


def test_the_same_generator_state_gives_the_same_interval():
    p = np.random.default_rng(0).random(20)
    assert win_rate(p, rng=np.random.default_rng(5)) == win_rate(p, rng=np.random.default_rng(5))
    assert win_rate(p, rng=np.random.default_rng(5)) != win_rate(p, rng=np.random.default_rng(6))


def test_a_large_sample_gives_the_normal_interval():
    p = np.random.default_rng(0).random(400)
    result = win_rate(p, rng=np.random.default_rng(1))
    half = 1.96 * p.std(ddof=1) / 20
    assert result.low == pytest.approx(p.mean() - half, abs=0.1 * half)
    assert result.high == pytest.approx(p.mean() + half, abs=0.1 * half)


def test_two_prompts_by_hand():
    # The bootstrap means are 0.2, 0.5, 0.8 with weights 1/4, 1/2, 1/4. Nothing is skewed, so BCa
    # takes the 2.5% and 97.5% quantiles, which are the ends.
    result = win_rate(np.array([0.2, 0.8]), rng=np.random.default_rng(0))
    assert result.low == pytest.approx(0.2) and result.high == pytest.approx(0.8)


def test_a_skewed_sample_reaches_further_on_the_side_of_its_tail():
    # The percentile interval, which BCa corrects, reaches 1.2 times as far here.
    p = np.random.default_rng(0).beta(0.3, 2.0, 30)
    result = win_rate(p, rng=np.random.default_rng(1))
    assert result.high - result.mean > 1.35 * (result.mean - result.low)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        result = win_rate(rng.beta(1.2, 0.8, 25), rng=rng, resamples=500)  # true mean 0.6
        inside += result.low <= 0.6 <= result.high
    # Binomial error 0.007. A 90% or a 99% interval falls outside.
    assert 0.925 <= inside / 1000 <= 0.97


def test_rewards_have_no_bounds():
    rng = np.random.default_rng(0)
    result = mean_interval(np.array([-3.0, 5.0, 8.0, 2.0]), rng=rng)
    assert -3 <= result.low < 0 < result.mean == 3.0 < result.high <= 8
    assert mean_interval(np.array([2.0]), rng=rng) == (2.0, -np.inf, np.inf, 1)


def test_one_prompt_says_nothing_and_unanimity_has_no_width():
    assert win_rate(np.array([0.7]), rng=np.random.default_rng(0)) == (0.7, 0.0, 1.0, 1)
    same = win_rate(np.full(5, 0.3), rng=np.random.default_rng(0))
    assert same.low == pytest.approx(0.3) and same.high == pytest.approx(0.3)


@pytest.mark.parametrize("x", [[0.3, 0.1 + 0.2, 0.3], [1.0, 1.0], [0.0, 5e-17, 0.0]])
def test_numbers_equal_but_for_rounding_have_no_width(x):
    result = mean_interval(np.array(x), rng=np.random.default_rng(0))
    assert result.low == result.mean == result.high


@pytest.mark.parametrize("p", [[], [[0.5]], [0.5, np.nan], [1.01], [-0.01, 0.5]])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(UserError):
        win_rate(np.array(p), rng=np.random.default_rng(0))


def test_cross_win_probability_by_hand():
    preference = np.full((2, 4, 4), 0.123, np.float32)
    preference[0, :2, 2:] = [[1.0, 0.5], [0.25, 0.25]]
    preference[1, :2, 2:] = [[0.0, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(cross_win_probability(preference, 2), [0.5, 0.25])


def test_swapping_candidate_and_baseline_gives_the_complement():
    upper = np.triu(np.random.default_rng(0).random((3, 6, 6)), 1)
    p = upper + np.tril(1 - upper.swapaxes(1, 2), -1) + np.eye(6) / 2
    order = [3, 4, 5, 0, 1, 2]
    swapped = cross_win_probability(p[:, order][:, :, order], 3)
    np.testing.assert_allclose(cross_win_probability(p, 3) + swapped, 1)


@pytest.mark.parametrize(
    ("shape", "k"), [((2, 4, 4), 4), ((2, 4, 5), 2), ((4, 4), 2), ((2, 0, 0), 0)]
)
def test_a_wrong_shape_is_refused(shape, k):
    with pytest.raises(UserError, match="shape"):
        cross_win_probability(np.zeros(shape), k)


# ---- equal lengths

GOLDEN = np.load(Path(__file__).parent / "golden" / "length_control.npz")


@pytest.mark.parametrize("judge", [0, 1], ids=["soft", "hard"])
def test_the_rate_at_equal_length_is_scikit_learns_and_near_alpaca_evals(judge):
    found = length_controlled_win_rate(GOLDEN["p"][judge], GOLDEN["longer"])
    official, likeliest = GOLDEN["rates"][judge]
    assert found.mean == pytest.approx(likeliest, abs=1e-6)
    assert found.mean == pytest.approx(official, abs=0.004)  # its L1 penalty
    assert abs(found.mean - GOLDEN["p"][judge].mean()) > 0.05  # the raw rate is another
    assert found.low < found.mean < found.high


def test_its_interval_covers_the_rate_of_prompts_whose_pairs_are_alike():
    """Pairs as observations of their own would give an interval half as wide, and cover 2 of 3."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(60):
        longer = rng.normal(size=(60, 4))
        ease = rng.choice([-2.0, 2.0], size=(60, 1))
        found = length_controlled_win_rate(1 / (1 + np.exp(-ease + 0 * longer)), longer)
        inside += found.low <= 0.5 <= found.high
    assert 53 <= inside <= 60


@pytest.mark.parametrize("longer", [np.zeros((3, 2)), np.full((3, 2), 7.0)])
def test_without_a_difference_that_varies_it_is_the_plain_mean(longer):
    p = np.array([[0.1, 0.2], [0.9, 0.8], [0.3, 0.4]])
    assert length_controlled_win_rate(p, longer).mean == pytest.approx(0.45, abs=1e-7)


def test_a_judge_of_length_alone_has_no_preference_at_equal_length():
    longer = np.linspace(-300, 310, 200)
    found = length_controlled_win_rate((longer > 0).astype(float), longer)
    assert found.low < 0.5 < found.high
    sure = length_controlled_win_rate(np.ones((5, 2)), np.arange(10.0).reshape(5, 2))
    assert sure.mean > 1 - 1e-6 and sure.low > 0.99
    assert length_controlled_win_rate(np.full((1, 3), 0.3), np.arange(3.0)[None])[1:] == (0, 1, 1)


def test_pairs_without_a_length_or_a_probability_are_refused():
    with pytest.raises(UserError, match="each pair has one of both"):
        length_controlled_win_rate(np.ones(3), np.ones(2))
    with pytest.raises(UserError, match=r"lie in \[0, 1\]"):
        length_controlled_win_rate(np.array([0.5, np.nan]), np.ones(2))

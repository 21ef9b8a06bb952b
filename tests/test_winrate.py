import numpy as np
import pytest

from ssppo_jax.errors import UserError
from ssppo_jax.evaluate import cross_win_probability, win_rate


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
    # bootstrap means are 0.2, 0.5, 0.8 with weights 1/4, 1/2, 1/4: both quantiles are the ends,
    # widened by sqrt(2)
    result = win_rate(np.array([0.2, 0.8]), rng=np.random.default_rng(0))
    assert result.low == pytest.approx(0.5 - 0.3 * 2**0.5) and result.high == pytest.approx(
        0.5 + 0.3 * 2**0.5
    )


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        result = win_rate(rng.beta(1.2, 0.8, 25), rng=rng, resamples=300)  # true mean 0.6
        inside += result.low <= 0.6 <= result.high
    assert (
        0.91 <= inside / 400 <= 0.98
    )  # binomial error 0.011; a 90% or a 99% interval falls outside


def test_one_prompt_says_nothing_and_unanimity_has_no_width():
    assert win_rate(np.array([0.7]), rng=np.random.default_rng(0)) == (0.7, 0.0, 1.0, 1)
    same = win_rate(np.full(5, 0.3), rng=np.random.default_rng(0))
    assert same.low == pytest.approx(0.3) and same.high == pytest.approx(0.3)


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
    ("shape", "k"), [((2, 4, 4), 3), ((2, 4, 5), 2), ((4, 4), 2), ((2, 0, 0), 0)]
)
def test_a_wrong_shape_is_refused(shape, k):
    with pytest.raises(UserError, match="shape"):
        cross_win_probability(np.zeros(shape), k)

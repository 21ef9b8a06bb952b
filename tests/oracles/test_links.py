import numpy as np
import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.oracles.links import bradley_terry
from ssppo_jax.oracles.protocol import checked
from ssppo_jax.types import Verdict


def test_bradley_terry_by_hand():
    p = bradley_terry(np.array([[1.0, 0.5, -1.0]]), temperature=0.5)
    assert p.shape == (1, 3, 3) and p.dtype == np.float32
    assert p[0, 0, 1] == pytest.approx(1 / (1 + np.exp(-1.0)), rel=1e-6)
    assert p[0, 2, 0] == pytest.approx(1 / (1 + np.exp(4.0)), rel=1e-6)


def test_temperature_zero_is_a_hard_step_with_ties_at_one_half():
    p = bradley_terry(np.array([[2.0, 2.0 + 1e-12, 2.0]]), temperature=0.0)
    np.testing.assert_array_equal(p, [[[0.5, 0, 0.5], [1, 0.5, 1], [0.5, 0, 0.5]]])


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-9, 0.3, 1e300])
def test_every_temperature_and_score_gives_a_preference(temperature):
    scores = np.array(
        [[0.0, 1e300, -1e300], [700.0, -700.0, 1e-8], [3.0, 3.0, 3.0], [-0.1, 0.0, 0.2]]
    )
    p = bradley_terry(scores, temperature=temperature)
    assert checked(Verdict(p, None, (None,) * 4), (4, 3)).failed == (None,) * 4


def test_extreme_gaps_saturate_on_the_right_side():
    p = bradley_terry(np.array([[1e6, 0.0]]), temperature=1e-3)
    assert p[0, 0, 1] == 1 and p[0, 1, 0] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_fails_instead_of_winning(bad, temperature):
    p = bradley_terry(np.array([[bad, 0.0], [1.0, 0.0]]), temperature=temperature)
    failed = checked(Verdict(p, None, (None, None))).failed
    assert failed[0] is not None and failed[1] is None


@pytest.mark.parametrize("temperature", [-1.0, np.nan, np.inf])
def test_an_impossible_temperature_is_refused(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        bradley_terry(np.zeros((1, 2)), temperature=temperature)

"""Semantic gates: factors that never turn a preference, and shrink it where S is in [0,1]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.gates import GATES, calibrate

S = np.linspace(0, 1, 101)
NAMES = sorted(GATES)


@pytest.mark.parametrize(
    ("name", "keywords", "expected"),
    [
        ("linear", {}, 0.3),
        ("power", {"exponent": 3.0}, 0.027),
        ("power", {"exponent": 1.0}, 0.3),
        ("threshold", {"cutoff": 0.7}, 0.0),
        ("threshold", {"cutoff": 0.71}, 1.0),
    ],
)
def test_gate_equals_its_pencil_value(name, keywords, expected):
    assert GATES[name](np.array([0.7]), **keywords)[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_gate_is_a_non_increasing_factor_from_one_to_zero(name):
    factor = GATES[name](S)
    assert factor[0] == 1 and factor[-1] == 0
    assert np.all(np.diff(factor) <= 0)


@pytest.mark.parametrize("name", NAMES)
def test_gate_never_flips_the_preference(name):
    """Identity 4: the sign of P^c - 1/2 is that of P - 1/2, and |P^c - 1/2| is non-increasing in
    S."""
    p = np.array([0.0, 0.1, 0.49, 0.5, 0.51, 0.9, 1.0], np.float32)
    calibrated = calibrate(p[:, None], GATES[name](S.astype(np.float32))[None])
    assert np.all((calibrated - 0.5) * (p[:, None] - 0.5) >= 0)
    assert np.all(np.sign(calibrated - 0.5)[:, 0] == np.sign(p - 0.5))
    assert np.all(np.diff(np.abs(calibrated - 0.5), axis=1) <= 0)


@pytest.mark.parametrize("name", NAMES)
def test_similarity_out_of_range_acts_as_its_nearest_bound(name):
    """Identity 4: a cosine rounded beyond -1 or 1 is -1 or 1, so no factor is negative."""
    np.testing.assert_array_equal(
        GATES[name](np.array([-1.0000002, 1.0000002])), GATES[name](np.array([-1.0, 1.0]))
    )


@pytest.mark.parametrize(
    ("name", "keywords", "factor"),
    [
        ("linear", {}, 1.6),
        ("power", {"exponent": 2.0}, 2.56),
        ("power", {"exponent": 0.5}, 1.6**0.5),
        ("threshold", {}, 1.0),
    ],
)
def test_a_negative_cosine_strengthens_a_preference_except_at_a_threshold(name, keywords, factor):
    """Identity 4, S = -0.6: 1 - S = 1.6 by pencil, and the preference keeps its side."""
    got = GATES[name](np.array([-0.6]), **keywords)
    assert got[0] == pytest.approx(factor)
    np.testing.assert_allclose(
        calibrate(np.array([0.2, 0.5, 0.8]), got), [0.5 - 0.3 * factor, 0.5, 0.5 + 0.3 * factor]
    )


@pytest.mark.parametrize("name", NAMES)
def test_gates_keep_antisymmetry(name):
    """Identity 2, for one pair: P_ij + P_ji = 1 stays true under any symmetric S."""
    p = np.array([0.0, 0.2, 0.77, 1.0])
    factor = GATES[name](np.array([0.1, 0.35, 0.6, 1.0]))
    np.testing.assert_allclose(calibrate(p, factor) + calibrate(1 - p, factor), 1, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gates_take_numpy_and_jax_arrays_and_keep_their_dtype(name):
    s = S.astype(np.float32)
    on_host, on_device = GATES[name](s), GATES[name](jnp.asarray(s))
    assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float32
    assert isinstance(on_device, jnp.ndarray) and on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_host, on_device, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_win_rates_equal_a_loop_of_the_equation(name):
    """S-SPPO eq. 3.1, one number at a time; jit changes nothing."""
    rng = np.random.default_rng(0)
    p, s = rng.uniform(size=20), rng.uniform(size=20)
    factor = {
        "linear": lambda x: 1 - x,
        "power": lambda x: (1 - x) * (1 - x),
        "threshold": lambda x: float(x < 0.9),
    }
    expected = [0.5 + factor[name](b) * (a - 0.5) for a, b in zip(p, s, strict=True)]
    np.testing.assert_allclose(calibrate(p, GATES[name](s)), expected, rtol=1e-12)
    jitted = jax.jit(lambda p, s: calibrate(p, GATES[name](s)))(
        p.astype(np.float32), s.astype(np.float32)
    )
    np.testing.assert_allclose(jitted, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("power", {"exponent": 0.0}),
        ("power", {"exponent": float("nan")}),
        ("threshold", {"cutoff": 0.0}),
        ("threshold", {"cutoff": 1.5}),
    ],
)
def test_impossible_gate_keywords_are_refused_by_name(name, keywords):
    with pytest.raises(ConfigError, match=next(iter(keywords))):
        GATES[name](S, **keywords)

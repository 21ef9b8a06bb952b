"""Soft gates on the token ratio: shapes, limits and safety, against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gate_formulas import exact

from ssppo_jax.losses.ratio_gates import RATIO_GATES, ratio

NAMES = sorted(RATIO_GATES)
LOG_SPACE = {"arctan_log", "arctan_log_affine", "log_clip", "identity"}
POSITIVE = ["sigmoid_norm", "arctan", "erf", "softsign"]  # of the ratio, through (1, 1)
TAUS = [0.5, 1.05, 3.0, 10.0]


def taus(name):
    return [tau for tau in TAUS if name != "arctan_log_affine" or tau >= math.pi / 2]


def gate(name, u, tau):
    u = jnp.asarray(u)
    return RATIO_GATES[name](u, jnp.full(u.shape, tau, u.dtype))


@pytest.mark.parametrize("name", NAMES)
def test_gate_equals_its_formula(name):
    u = np.array([-3.0, -0.8, -0.2, 0.0, 0.1, 0.7, 1.5])
    for tau in taus(name):
        expected = [math.log(exact(name, x, tau)) for x in u]
        np.testing.assert_allclose(
            gate(name, u.astype(np.float32), tau).log_f, expected, rtol=1e-5, atol=1e-6
        )


def test_gates_equal_their_pencil_values():
    """r = 1.5, temperature 2 (x = 1), and u = 1/2, temperature 2 for gates of the log-ratio."""
    r = np.array([math.log(1.5)], np.float32)
    found = {name: float(np.exp(gate(name, r, 2.0).log_f[0])) for name in [*POSITIVE, "sigmoid"]}
    expected = {
        "sigmoid": 1.4621172,
        "sigmoid_norm": 1.4621172,
        "arctan": 1.3926991,
        "softsign": 1.3535534,
    }
    assert found == pytest.approx(expected | {"erf": 1.4278122}, rel=1e-6)
    half = np.array([0.5], np.float32)
    assert gate("arctan_log", half, 2.0).log_f[0] == pytest.approx(math.pi / 8, rel=1e-6)
    assert gate("arctan_log_affine", half, 2.0).log_f[0] == pytest.approx(0.3312437, rel=1e-6)
    assert gate("log_clip", 2 * half, 2.0).log_f[0] == pytest.approx(math.pi / 4, rel=1e-6)
    assert gate("identity", half, 2.0).log_f[0] == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_derivative_of_the_gate_and_one_at_most(name):
    """f'(r) for gates of the ratio; d log f/du for gates of the log-ratio; df/du for the affine
    one."""
    with jax.enable_x64(True):
        u = jnp.array([-4.0, -0.6, -0.11, 0.0, 0.13, 0.5, 1.7])
        for tau in taus(name):
            per_log = jax.vmap(
                jax.grad(lambda x, t=tau: RATIO_GATES[name](x, jnp.full((), t)).log_f)
            )(u)
            log_f, slope = gate(name, u, tau)
            if name == "arctan_log_affine":
                per_log = per_log * jnp.exp(log_f)
            elif name not in LOG_SPACE:
                per_log = per_log * jnp.exp(log_f - u)
            np.testing.assert_allclose(slope, per_log, rtol=1e-9, atol=1e-12)
            assert np.all((slope >= 0) & (slope <= 1))
            assert name == "identity" or slope[0] < 1


@pytest.mark.parametrize("name", NAMES)
def test_every_gate_has_slope_one_on_policy_and_all_but_sigmoid_pass_through_one(name):
    """Identity 13: f'(1) = 1 and f(1) = 1 at every temperature; raw sigmoid has f(1) =
    2/temperature."""
    for tau in taus(name):
        log_f, slope = gate(name, np.zeros(1, np.float32), tau)
        assert float(slope[0]) == 1.0
        assert math.exp(log_f[0]) == pytest.approx(2 / tau if name == "sigmoid" else 1.0, rel=1e-6)


@pytest.mark.parametrize("name", POSITIVE)
def test_normalised_gates_are_positive_down_to_ratio_zero(name):
    """Identity 13, second half. At r = 0 `sigmoid_norm` is 1 - 2/tau tanh(tau/2)."""
    for tau in [0.1, *TAUS, 100.0]:
        log_f = gate(name, np.array([-20.0, -1e4], np.float32), tau).log_f
        assert np.all(np.isfinite(log_f)) and np.all(log_f < 0)
    expected = math.log(1 - 2 / 3 * math.tanh(1.5))
    assert gate("sigmoid_norm", np.array([-20.0], np.float32), 3.0).log_f[0] == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("name", ["arctan_log", "arctan", "sigmoid_norm"])
def test_gate_tends_to_the_ratio_quadratically_as_the_temperature_falls(name):
    """Identity 15, per token: f -> r with an error of order temperature^2 (x4 when the temperature
    doubles)."""
    with jax.enable_x64(True):
        u = jnp.array([-0.5, 0.3, 0.8])
        small, twice = (gate(name, u, tau).log_f - u for tau in (0.01, 0.02))
        np.testing.assert_allclose(twice / small, 4.0, rtol=1e-2)
        assert np.all(np.abs(small) < 1e-4)


def test_raw_sigmoid_diverges_as_the_temperature_falls():
    """Identity 15, the exception: f -> 2/temperature."""
    for tau in (1e-3, 1e-4):
        assert math.exp(
            gate("sigmoid", np.array([0.5], np.float32), tau).log_f[0]
        ) == pytest.approx(2 / tau, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("identity", "sigmoid")])
def test_a_hot_gate_lets_nothing_through(name):
    """Identity 16, per token: f -> 1 and its gradient -> 0 off policy as the temperature grows."""
    u = jnp.array([-0.5, 0.3, 0.8])
    derivative = jax.vmap(jax.grad(lambda x: RATIO_GATES[name](x, jnp.full((), 1e4)).log_f))
    np.testing.assert_allclose(gate(name, u, 1e4).log_f, 0, atol=4e-4)
    np.testing.assert_allclose(derivative(u), 0, atol=1e-6)


def test_arctan_log_is_symmetric_and_bounded_whatever_the_ratio():
    """Identity 18: w(u) = w(-u), w(0) = 1, w(1/tau) = 1/2, |log f| < pi/(2 tau) even at |u| = 20
    and beyond."""
    u = np.array([-1e30, -20.0, -1 / 3, 0.0, 1 / 3, 20.0, 1e30], np.float32)
    log_f, slope = gate("arctan_log", u, 3.0)
    np.testing.assert_array_equal(slope, slope[::-1])
    np.testing.assert_array_equal(log_f, -log_f[::-1])
    np.testing.assert_allclose(slope[2:5], [0.5, 1.0, 0.5], rtol=1e-6)
    assert np.all(np.abs(log_f) <= np.float32(math.pi / 6)) and np.all(
        np.abs(log_f[1:-1]) < math.pi / 6
    )


def test_hard_clip_is_the_limit_of_arctan_log_at_its_temperature():
    """The same bound pi/(2 tau) far away, the same identity near 0; 3.927 is GMPO's 0.4."""
    far = np.array([-20.0, 20.0], np.float32)
    soft, hard = (gate(name, far, 3.927).log_f for name in ("arctan_log", "log_clip"))
    np.testing.assert_allclose(hard, [-0.4, 0.4], rtol=1e-4)
    np.testing.assert_allclose(soft, hard, rtol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_ratios_have_finite_values_and_gradients(name):
    u = jnp.array([-1e30, -100.0, -20.0, 20.0, 25.0, 100.0, 1e30], jnp.float32)
    for tau in [*taus(name), 1e3]:
        total = lambda x, t=tau: jnp.sum(gate(name, x, t).log_f)  # noqa: E731
        for x in (*gate(name, u, tau), jax.grad(total)(u)):
            assert np.all(np.isfinite(x)), tau


def test_a_temperature_that_rounds_f_to_zero_keeps_it_positive():
    """Exact arithmetic has f > 0; float32 has f = 0 at r = 0 below about 0.001, whose log would be
    -inf."""
    for name in POSITIVE:
        value, slope = jax.value_and_grad(
            lambda u, n=name: RATIO_GATES[n](u, jnp.float32(1e-5)).log_f
        )(np.float32(-20))
        assert np.isfinite(value) and np.isfinite(slope)


def test_ratio_is_cut_at_e_to_the_twenty():
    u = np.array([-1e30, -1.0, 0.0, 1.0, 1e30], np.float32)
    np.testing.assert_allclose(ratio(u), np.exp([-20, -1, 0, 1, 20]), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_jit_and_sharding_over_tokens_change_nothing(name):
    u = np.linspace(-3, 3, 8, dtype=np.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(u, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    for given in (u, split):
        for a, b in zip(
            jax.jit(lambda x: gate(name, x, 2.0))(given), gate(name, u, 2.0), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gate_rises_with_the_ratio_and_its_slope_is_greatest_on_policy(name):
    """The conditions of arXiv 2602.19345: f' is 1 at r = 1 and falls away from it."""
    u = np.linspace(-2, 2, 81, dtype=np.float32)
    log_f, slope = gate(name, u, 2.0)
    assert np.all(np.diff(log_f) >= 0)
    assert np.all(np.diff(slope[40:]) <= 1e-6) and np.all(np.diff(slope[:41]) >= -1e-6)

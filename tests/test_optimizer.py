"""Schedules and optimizers against their formulas, written out."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from tiny import jit

from ssppo_jax.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    kept_in,
    learning_rate,
    make_optimizer,
    make_rates,
)
from ssppo_jax.schema import base_config

GRADIENTS = np.array(
    [[3.0, -0.5, 0.0], [1.0, 2.0, 0.25], [-4.0, 0.5, 1.0]], np.float32
)  # three steps
START = np.array([1.0, -2.0, 0.5], np.float32)


def rate(step):  # not constant, so that a schedule read at the wrong step shows
    return 0.1 * (step + 1)


def descend(name, *, max_grad_norm=0.0, state_dtype="param", **settings):
    """Parameters after each of the three steps."""
    transform = OPTIMIZERS[name](**settings)
    optimizer = make_optimizer(
        transform, np.nan, max_grad_norm=max_grad_norm, state_dtype=state_dtype
    )
    update = jit(optimizer.update)
    params, state, seen = START, optimizer.init(START), []
    for s, gradient in enumerate(GRADIENTS):
        updates, state = update(gradient, state, params, learning_rate=np.float32(rate(s)))
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params))
    return np.stack(seen)


def by_hand(step_of):
    """Parameters after each step of `params -= rate * step_of(gradient, params, step)` in
    float64."""
    params, seen = START.astype(np.float64), []
    for s, gradient in enumerate(GRADIENTS.astype(np.float64)):
        params = params - rate(s) * step_of(gradient, params, s)
        seen.append(params)
    return np.stack(seen)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_torchs(momentum):
    """v = a v + (1-a) g^2; b = m b + g / (sqrt(v) + eps); w -= lr b: eps outside the root, v from
    0, no correction."""
    v, b = np.zeros(3), np.zeros(3)

    def step(g, w, s):
        nonlocal v, b
        v = 0.9 * v + 0.1 * g**2
        b = momentum * b + g / (np.sqrt(v) + 0.01)
        return b

    np.testing.assert_allclose(
        descend("rmsprop", decay=0.9, eps=0.01, momentum=momentum), by_hand(step), rtol=1e-5
    )


def test_rmsprops_defaults_are_torchs():
    v = np.zeros(3)

    def step(g, w, s):
        nonlocal v
        v = 0.99 * v + 0.01 * g**2
        return g / (np.sqrt(v) + 1e-8)

    np.testing.assert_allclose(descend("rmsprop"), by_hand(step), rtol=1e-5, atol=1e-6)


def test_adamw_is_bias_corrected_adam_with_decoupled_decay():
    m, v = np.zeros(3), np.zeros(3)

    def step(g, w, s):
        nonlocal m, v
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        return (m / (1 - 0.8 ** (s + 1))) / (np.sqrt(v / (1 - 0.9 ** (s + 1))) + 0.01) + 0.3 * w

    got = descend("adamw", b1=0.8, b2=0.9, eps=0.01, weight_decay=0.3)
    np.testing.assert_allclose(got, by_hand(step), rtol=1e-5)


def test_lion_takes_the_sign_of_an_interpolation():
    m = np.zeros(3)

    def step(g, w, s):
        nonlocal m
        sign = np.sign(0.8 * m + 0.2 * g)
        m = 0.9 * m + 0.1 * g
        return sign + 0.3 * w

    np.testing.assert_allclose(
        descend("lion", b1=0.8, b2=0.9, weight_decay=0.3), by_hand(step), rtol=1e-5
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sgd_is_the_gradient_with_heavy_ball_momentum(momentum):
    b = np.zeros(3)

    def step(g, w, s):
        nonlocal b
        b = momentum * b + g
        return b

    np.testing.assert_allclose(descend("sgd", momentum=momentum), by_hand(step), rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm_before_the_optimizer_sees_them():
    def step(g, w, s):
        return g * min(1.0, 1.5 / np.linalg.norm(g))

    np.testing.assert_allclose(descend("sgd", max_grad_norm=1.5), by_hand(step), rtol=1e-5)
    m = np.zeros(3)

    def with_memory(g, w, s):
        nonlocal m
        m = 0.5 * m + step(g, w, s)
        return m

    np.testing.assert_allclose(
        descend("sgd", max_grad_norm=1.5, momentum=0.5), by_hand(with_memory), rtol=1e-5
    )


def test_moments_in_half_precision_are_rounded_between_steps_and_nowhere_else():
    bfloat16 = ml_dtypes.bfloat16
    v = np.zeros(3, bfloat16)

    def step(g, w, s):
        nonlocal v
        new = 0.9 * v.astype(np.float64) + 0.1 * g**2
        v = new.astype(np.float32).astype(bfloat16)
        return g / (np.sqrt(new) + 1e-8)

    got = descend("rmsprop", state_dtype="bfloat16", decay=0.9)
    np.testing.assert_allclose(got, by_hand(step), rtol=1e-5)
    assert np.abs(got - descend("rmsprop", decay=0.9)).max() > 1e-4
    optimizer = make_optimizer(
        OPTIMIZERS["adamw"](), 0.1, max_grad_norm=0.0, state_dtype="bfloat16"
    )
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(optimizer.init(START)[0])}
    assert kinds == {"bfloat16", "int32"}
    state = optimizer.init(START.astype(bfloat16))
    updates, _ = jit(optimizer.update)(GRADIENTS[0].astype(bfloat16), state, START.astype(bfloat16))
    np.testing.assert_allclose(
        np.asarray(updates, np.float32), -0.1 * np.sign(GRADIENTS[0]), rtol=0.01
    )


@pytest.mark.parametrize(("decay", "reached"), [(0.9, 0.98), (0.99, 0.8), (0.999, 0.25)])
def test_how_far_a_mean_square_comes_in_bfloat16(decay, reached):
    optimizer = kept_in(OPTIMIZERS["rmsprop"](decay=decay), jnp.dtype(jnp.bfloat16))
    one = jnp.ones(1)
    _, state = jax.lax.fori_loop(
        0, 5000, lambda _, s: optimizer.update(one, s[1]), (one, optimizer.init(one))
    )
    assert float(jax.tree.leaves(state)[0][0]) == pytest.approx(reached, abs=0.02)


def rates(schedule, warmup_ratio, total, steps):
    scheduled = learning_rate(2.0, schedule=schedule, warmup_ratio=warmup_ratio, total_steps=total)
    return [float(scheduled(s)) for s in steps]


def test_warm_up_starts_above_zero_and_reaches_the_peak_at_its_last_step():
    for schedule in SCHEDULES:
        np.testing.assert_allclose(
            rates(schedule, 0.2, 20, range(4)), [0.5, 1.0, 1.5, 2.0], rtol=1e-6
        )
        assert rates(schedule, 0.05, 20, [0]) == [2.0]  # one step of warm-up
        assert rates(schedule, 0.0, 20, [0]) == [2.0]


@pytest.mark.parametrize(
    "schedule, after",
    [
        ("linear", lambda x: 2 * (1 - x)),
        ("cosine", lambda x: 1 + np.cos(np.pi * x)),
        ("constant", lambda x: 2 + 0 * x),
    ],
)
@pytest.mark.parametrize("warmup_ratio, warmup", [(0.2, 4), (0.0, 0)])
def test_after_the_warm_up_the_rate_falls_to_zero_at_the_last_step(
    schedule, after, warmup_ratio, warmup
):
    steps = np.arange(warmup, 21)
    got = rates(schedule, warmup_ratio, 20, steps)
    np.testing.assert_allclose(got, after((steps - warmup) / (20 - warmup)), atol=1e-6)
    assert got[-2] > 0  # the last optimizer step (19) still moves


def test_a_schedule_of_one_step_moves():
    for schedule in SCHEDULES:
        assert rates(schedule, 0.1, 1, [0]) == [2.0]


def run_rates(planned, taken, **settings):
    """Rates of every iteration with peak 1, no warm-up and a linear decay, unless set otherwise."""
    config = base_config()
    given = {"optimizer.learning_rate": 1.0, "optimizer.warmup_ratio": 0.0} | settings
    config.update_from_flattened_dict(given)
    rates = make_rates(config, planned)
    return [rates(iteration, steps) for iteration, steps in enumerate(taken)]


def test_a_larger_later_portion_does_not_train_at_rate_zero():
    """Portions of 128, 129 and 129 prompts in batches of 64: 2 + 3 + 3 steps, 1 - s/8 by pencil."""
    got = run_rates([2, 3, 3], [2, 3, 3])
    np.testing.assert_allclose(np.concatenate(got), 1 - np.arange(8) / 8, rtol=1e-6)
    alone = run_rates([2, 3, 3], [2, 3, 3], **{"optimizer.scope": "iteration"})
    for rates, steps in zip(alone, (2, 3, 3), strict=True):
        np.testing.assert_allclose(rates, 1 - np.arange(steps) / steps, rtol=1e-6)


@pytest.mark.parametrize("scope", ["run", "iteration"])
def test_steps_that_were_not_taken_do_not_hold_up_the_decay(scope):
    """Ten iterations plan 8 steps and take 3: each still passes a tenth of the way down."""
    got = np.array(run_rates([8] * 10, [3] * 10, **{"optimizer.scope": scope}))
    part = np.arange(3) / 3
    if scope == "iteration":
        np.testing.assert_allclose(got, np.tile(1 - part, (10, 1)), rtol=1e-5)
    else:
        expected = 1 - (np.arange(10)[:, None] + part) / 10
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        assert got[-1, -1] == pytest.approx(1 / 30, rel=1e-4)  # counted in steps it was 0.64


def test_an_iteration_without_steps_passes_its_share_and_later_rates_do_not_move():
    got = run_rates([4, 4, 4], [4, 0, 4])
    assert got[1] == [] and got[2] == run_rates([4, 4, 4], [4, 4, 4])[2]


def test_warm_up_is_passed_by_iterations_too():
    """Half of two iterations of 4 steps is warm-up: (s + 1)/4 at s = 0, 2 and the peak after it."""
    got = run_rates([4, 4], [2, 2], **{"optimizer.warmup_ratio": 0.5})
    np.testing.assert_allclose(got, [[0.25, 0.75], [1.0, 0.5]], rtol=1e-6)


def test_the_papers_schedule_of_18_epochs_is_stopped_after_one():
    settings = {"optimizer.scope": "iteration", "optimizer.schedule_epochs": 18.0}
    (got,) = run_rates([4], [4], **settings)
    np.testing.assert_allclose(got, 1 - np.arange(4) / 72, rtol=1e-6)


def test_an_update_without_a_rate_of_its_own_takes_the_optimizers():
    optimizer = make_optimizer(OPTIMIZERS["sgd"](), 0.5, max_grad_norm=0.0)
    state = optimizer.init(START)
    own, _ = optimizer.update(GRADIENTS[0], state, START)
    given, _ = optimizer.update(GRADIENTS[0], state, START, learning_rate=np.float32(0.1))
    np.testing.assert_allclose(own, -0.5 * GRADIENTS[0])
    np.testing.assert_allclose(given, -0.1 * GRADIENTS[0], rtol=1e-6)

"""Schedules and optimizers against their formulas, written out."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from tiny import jit

from ssppo_jax import schema
from ssppo_jax.distributed.mesh import make_mesh, shardings
from ssppo_jax.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    Rounded,
    add,
    kept_in,
    learning_rate,
    make_optimizer,
    make_rates,
    make_run_optimizer,
    restarted,
    stochastically,
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


# ---- bfloat16 parameters -------------------------------------------------------------------------

RATE, SIZE = 5e-7, 20_000  # the papers' rate
WEIGHTS = np.random.default_rng(0).normal(0, 0.02, SIZE).astype(ml_dtypes.bfloat16)


def run_optimizer(**overrides):
    given = {"model.param_dtype": "bfloat16", "optimizer.name": "sgd"} | {
        key.replace("__", "."): str(value) for key, value in overrides.items()
    }
    given |= {"optimizer.learning_rate": str(RATE), "optimizer.schedule": "constant"}
    config = schema.load("smoke", given | {"optimizer.warmup_ratio": "0"})
    return make_run_optimizer(config, jax.random.key(0))


def after(optimizer, steps):
    """Parameters and state after steps of -RATE in every weight."""

    def body(_, carry):
        params, state = carry
        updates, state = optimizer.update({"w": jnp.ones(SIZE, jnp.bfloat16)}, state, params)
        return jax.tree.map(add, params, updates), state

    start = {"w": jnp.asarray(WEIGHTS)}
    loop = jit(lambda carry: jax.lax.fori_loop(0, steps, body, carry))
    params, state = loop((start, optimizer.init(start)))
    assert params["w"].dtype == jnp.bfloat16
    return np.asarray(params["w"], np.float64), state


def test_updates_at_the_papers_rate_are_lost_in_bfloat16_rounded_to_nearest():
    """Half a unit of the last place is 2^-9 to 2^-8 of a weight: below 1.3e-4 it is above 5e-7 for
    all but the weights nearest 0."""
    found, _ = after(run_optimizer(optimizer__rounding="nearest"), 100)
    moved = found != WEIGHTS.astype(np.float64)
    assert moved.mean() < 0.01 and np.abs(WEIGHTS[moved].astype(np.float64)).max() < 512 * RATE


def test_float32_masters_take_every_update_and_the_weights_follow():
    found, state = after(run_optimizer(), 100)  # the default
    exact = WEIGHTS.astype(np.float64) - 100 * RATE
    np.testing.assert_allclose(state.kept["w"], exact, atol=100 * 2**-30)
    np.testing.assert_array_equal(
        found, np.asarray(state.kept["w"]).astype(ml_dtypes.bfloat16).astype(np.float64)
    )
    assert np.mean(found != WEIGHTS.astype(np.float64)) > 0.3  # the others have not come half-way


def test_rounding_at_random_moves_the_weights_by_the_updates_in_the_mean():
    """100 updates of 5e-7 in the mean over 20,000 weights, to 4 standard errors; none is off the
    grid, and the second run is the first."""
    optimizer = run_optimizer(optimizer__rounding="stochastic")
    found, state = after(optimizer, 100)
    move = found - WEIGHTS.astype(np.float64)
    assert abs(move.mean() + 100 * RATE) < 4 * move.std() / np.sqrt(SIZE)
    assert move.std() < 1e-4 and state.kept == 100
    np.testing.assert_array_equal(found, after(optimizer, 100)[0])


def test_a_number_between_two_bfloat16_becomes_the_upper_one_as_often_as_it_is_near():
    """1 + 1/512 lies a quarter of the way from 1 to its neighbour 1 + 1/128."""
    many = np.full(40_000, 1 + 1 / 512, np.float32)
    for sign in (1, -1):
        found = sign * np.asarray(stochastically(sign * many, jax.random.key(0)))
        assert set(found) == {1.0, 1 + 1 / 128}
        assert np.mean(found > 1) == pytest.approx(0.25, abs=4 * np.sqrt(3 / 16 / len(many)))
    exact = np.array([0.0, -0.0, 1.5, -3.0, np.inf, -np.inf, 2.0**-126], np.float32)
    np.testing.assert_array_equal(stochastically(exact, jax.random.key(1)), exact)
    assert np.isnan(stochastically(np.array([np.nan], np.float32), jax.random.key(1)))


def test_rounding_at_random_does_not_depend_on_the_mesh():
    optimizer = run_optimizer(optimizer__rounding="stochastic")
    params = {"attn": {"q": {"kernel": np.ones((2, 8, 4, 4), ml_dtypes.bfloat16)}}}
    gradient = jax.tree.map(lambda x: (x * 4e3).astype(x.dtype), params)  # updates of 2e-3
    found = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(shape, jax.devices()[: np.prod(shape)])
        placed, g = (jax.device_put(x, shardings(mesh, x)) for x in (params, gradient))
        updates, _ = jit(optimizer.update)(g, optimizer.init(placed), placed)
        found.append(np.asarray(updates["attn"]["q"]["kernel"]))
    np.testing.assert_array_equal(*found)
    assert 0.3 < np.mean(found[0] != 0) < 0.7  # 2e-3 of 2^-8 below 1


@pytest.mark.parametrize(
    ("overrides", "moments"),
    [
        ({}, "float32"),
        ({"state_dtype": "bfloat16"}, "bfloat16"),
        ({"rounding": "stochastic"}, "bfloat16"),
        ({"rounding": "stochastic", "state_dtype": "float32"}, "float32"),
        ({"rounding": "nearest"}, "bfloat16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_moments_and_weights_keep_their_dtype_and_a_fresh_state_keeps_what_is_theirs(
    name, overrides, moments
):
    settings = {f"optimizer__{key}": value for key, value in overrides.items()}
    optimizer = run_optimizer(optimizer__name=name, **settings)
    params = {"w": jnp.full((4,), 0.02, jnp.bfloat16)}
    state = first = optimizer.init(params)
    for gradient in (1.0, -2.0, 3.0):
        updates, state = optimizer.update(
            {"w": jnp.full((4,), gradient, jnp.bfloat16)}, state, params
        )
        params = jax.tree.map(add, params, updates)
    kinds = jax.tree.map(lambda x: str(x.dtype), first)
    assert jax.tree.map(lambda x: str(x.dtype), state) == kinds
    inner = getattr(first, "inner", first)
    assert {str(x.dtype) for x in jax.tree.leaves(inner) if x.ndim} == {moments}
    again = restarted(state, optimizer.init(params))
    if overrides.get("rounding") != "nearest":
        jax.tree.map(np.testing.assert_array_equal, again.kept, state.kept)
        anew = optimizer.init(params).kept
        assert not np.array_equal(*(jax.tree.leaves(kept)[0] for kept in (anew, again.kept)))
        again = again.inner
    jax.tree.map(np.testing.assert_array_equal, again, inner)


def test_float32_parameters_have_nothing_to_round():
    optimizer = run_optimizer(model__param_dtype="float32", optimizer__name="rmsprop")
    assert not isinstance(optimizer.init({"w": START}), Rounded)


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

"""Every pair loss: by pencil, against a loop from its equation, and under the input that breaks losses."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from pair_batches import at_random, build, by_hand
from running import run, value

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.preference import LOSSES
from ssppo_jax.types import Mean, Policy

NAMES = sorted(LOSSES)
SETTINGS = {  # not the defaults, so that a keyword that is ignored shows
    "s_sppo": {"beta": 0.5, "repulsion_weight": 2.0, "log_z_coef": 0.6},
    "sppo": {"beta": 0.5, "log_z_coef": 0.6},
    "sppo_single": {"beta": 0.5, "log_z_coef": 0.6},
    "dpo": {"beta": 0.5, "label_smoothing": 0.2},
    "robust": {"beta": 0.5, "label_smoothing": 0.2},
    "exo_pair": {"beta": 0.5, "label_smoothing": 0.1},
    "simpo": {"beta": 0.5, "simpo_gamma": 0.3},
    "inpo": {"eta": 0.5, "tau": 0.125},
}


def setting(name):
    return SETTINGS.get(name, {"beta": 0.5})


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


# ---- by pencil -------------------------------------------------------------------------------------------------------

GOLDEN = [  # r_w = .75, r_l = -1, z = .875, P = .8/.3, P^c = .7/.4, p_win = .9, cos = .96; decimals by calculator
    ("s_sppo", {"beta": 0.5, "repulsion_weight": 2.0}, (0.35**2 + 0.8**2) / 2 + 1.92),
    ("s_sppo", {"beta": 0.5, "repulsion_weight": 2.0, "pair_reduction": "sum"}, 0.35**2 + 0.8**2 + 1.92),
    ("s_sppo", {"beta": 0.5, "repulsion_weight": 0.0, "log_z_coef": 0.6}, (0.55**2 + 0.6**2) / 2),
    ("sppo", {"beta": 0.5}, (0.15**2 + 0.6**2) / 2),
    ("sppo", {"beta": 0.5, "log_z_coef": 0.6}, (0.35**2 + 0.4**2) / 2),
    ("sppo_single", {"beta": 0.5}, (0.05**2 + 0.2**2) / 2),
    ("sppo_single", {"beta": 0.5, "log_z_coef": 0.6}, (0.15**2 + 0.0**2) / 2),
    ("sppo_hard", {"beta": 0.5}, 0.25**2),
    ("dpo", {"beta": 0.5}, 0.3484446),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.2}, 0.5234446),
    ("robust", {"beta": 0.5, "label_smoothing": 0.2}, 0.0567779),
    ("ipo", {"beta": 0.5}, 0.375**2),
    ("ipo", {"beta": 0.5, "ipo_length_normalize": False}, 0.75**2),
    ("hinge", {"beta": 0.5}, 0.125),
    ("simpo", {"beta": 0.5, "simpo_gamma": 0.5}, 0.5759394),
    ("orpo", {"beta": 0.5}, 1.5837839),
    ("kto_pair", {"beta": 0.5}, 0.3507742),
    ("exo_pair", {"beta": 0.5, "label_smoothing": 0.1}, 0.1459342),
    ("nca_pair", {"beta": 0.5}, 1.2092234),
    ("bco_pair", {"beta": 0.5}, 0.9972002),
    ("apo_zero", {"beta": 0.5}, 0.7848741),
    ("apo_down", {"beta": 0.5}, 0.8868816),
    ("inpo", {"eta": 0.5, "tau": 0.125}, 0.5625**2),
]


def test_every_loss_has_a_pencil_value():
    assert {name for name, _, _ in GOLDEN} == set(LOSSES)


@pytest.mark.parametrize(("name", "hyper", "expected"), GOLDEN)
def test_loss_equals_its_pencil_value(name, hyper, expected):
    assert value(name, *by_hand(), **hyper) == pytest.approx(expected, rel=2e-6)


# ---- a float64 loop written from the equations, with its derivative --------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


class Row:
    """One pair in float64: token lists of the winner and the loser, padding gone."""

    def __init__(self, policy, batch, b):
        n = [int(x) for x in np.sum(batch.mask[b], axis=-1)]
        take = lambda x: [[float(v) for v in x[b, k, : n[k]]] for k in (0, 1)]  # noqa: E731
        logp, ref, old = take(policy.logp), take(batch.ref_logp), take(batch.old_logp)
        self.n = n
        self.r = [sum(p - q for p, q in zip(logp[k], ref[k], strict=True)) for k in (0, 1)]
        self.r_t = [sum(p - q for p, q in zip(logp[k], old[k], strict=True)) for k in (0, 1)]
        self.m = [sum(logp[k]) / n[k] for k in (0, 1)]
        self.P, self.Pc = batch.win_rate[b].astype(float), batch.target[b].astype(float)
        self.p_win = float(batch.p_win[b])
        h = policy.hidden[b].astype(float)
        self.cos = float(h[0] @ h[1] / math.sqrt(h[0] @ h[0]) / math.sqrt(h[1] @ h[1]))


def squares(row, targets, scale):
    """scale * sum (r - target)^2 and its derivatives with respect to r_w and r_l."""
    e = [row.r[0] - targets[0], row.r[1] - targets[1]]
    return scale * (e[0] ** 2 + e[1] ** 2), [2 * scale * e[0], 2 * scale * e[1]]


def of_margin(f, slope, scale=(1.0, 1.0)):
    return f, [slope * scale[0], -slope * scale[1]]


def ref_s_sppo(row, beta, repulsion_weight, log_z_coef):
    v, g = squares(row, (row.Pc - log_z_coef) / beta, 0.5)
    return v + repulsion_weight * row.cos, g


def ref_sppo(row, beta, log_z_coef):
    return squares(row, (row.P - log_z_coef) / beta, 0.5)


def ref_sppo_single(row, beta, log_z_coef):
    return squares(row, [(row.p_win - log_z_coef) / beta, (1 - row.p_win - log_z_coef) / beta], 0.5)


def ref_sppo_hard(row, beta):
    return squares(row, [1 / (2 * beta), -1 / (2 * beta)], 1.0)


def ref_dpo(row, beta, label_smoothing):
    z, e = beta * (row.r[0] - row.r[1]), label_smoothing
    return of_margin((1 - e) * softplus(-z) + e * softplus(z), beta * (sigmoid(z) - (1 - e)))


def ref_robust(row, beta, label_smoothing):
    z, e = beta * (row.r[0] - row.r[1]), label_smoothing
    slope = beta * (-(1 - e) * sigmoid(-z) - e * sigmoid(z)) / (1 - 2 * e)
    return of_margin(((1 - e) * softplus(-z) - e * softplus(z)) / (1 - 2 * e), slope)


def ref_ipo(row, beta):
    e = row.r[0] / row.n[0] - row.r[1] / row.n[1] - 1 / (2 * beta)
    return of_margin(e**2, 2 * e, (1 / row.n[0], 1 / row.n[1]))


def ref_hinge(row, beta):
    slack = 1 - beta * (row.r[0] - row.r[1])
    return of_margin(max(0, slack), -beta if slack > 0 else 0.0)


def ref_simpo(row, beta, simpo_gamma):
    z = beta * (row.m[0] - row.m[1]) - simpo_gamma
    return of_margin(softplus(-z), -beta * sigmoid(-z), (1 / row.n[0], 1 / row.n[1]))


def ref_orpo(row, beta):
    odds = [math.exp(m) / (1 - math.exp(m)) for m in row.m]
    z = math.log(odds[0]) - math.log(odds[1])
    slope = [1 / (1 - math.exp(m)) / n for m, n in zip(row.m, row.n, strict=True)]
    v, g = of_margin(-row.m[0] + beta * softplus(-z), -beta * sigmoid(-z), slope)
    return v, [g[0] - 1 / row.n[0], g[1]]


def ref_kto_pair(row, beta):
    a = sigmoid(beta * (row.r[0] - max(0, row.r[1])))
    b = sigmoid(beta * (max(0, row.r[0]) - row.r[1]))
    return (2 - a - b) / 2, [-beta * a * (1 - a) / 2, beta * b * (1 - b) / 2]


def ref_exo_pair(row, beta, label_smoothing):
    q = sigmoid(beta * (row.r[0] - row.r[1]))
    surprise = [math.log(q / (1 - label_smoothing)), math.log((1 - q) / label_smoothing)]
    return of_margin(q * surprise[0] + (1 - q) * surprise[1], beta * q * (1 - q) * (surprise[0] - surprise[1]))


def ref_nca_pair(row, beta):
    w, l = (beta * r for r in row.r)
    g = [beta * (-sigmoid(-w) + sigmoid(w) / 2), beta * sigmoid(l) / 2]
    return softplus(-w) + softplus(w) / 2 + softplus(l) / 2, g


def ref_bco_pair(row, beta):
    w, l = (beta * r for r in row.r)
    return softplus(-w) + softplus(l), [-beta * sigmoid(-w), beta * sigmoid(l)]


def ref_apo_zero(row, beta):
    w, l = (sigmoid(beta * r) for r in row.r)
    return 1 - w + l, [-beta * w * (1 - w), beta * l * (1 - l)]


def ref_apo_down(row, beta):
    w, d = sigmoid(beta * row.r[0]), sigmoid(beta * (row.r[0] - row.r[1]))
    return w + 1 - d, [beta * (w * (1 - w) - d * (1 - d)), beta * d * (1 - d)]


def ref_inpo(row, eta, tau):
    e = -1 / (2 * eta)
    for sign, r, r_t in zip((1, -1), row.r, row.r_t, strict=True):
        e += sign * (tau / eta * r + (eta - tau) / eta * r_t)
    return of_margin(e**2, 2 * e)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_equal_a_float64_loop_of_the_equation(name):
    policy, batch = at_random()
    mean, _, gradient = run(name, policy, batch, **setting(name))
    rows = [globals()[f"ref_{name}"](Row(policy, batch, b), **setting(name)) for b in range(3)]
    assert float(mean.weight) == 3
    assert float(mean.total) == pytest.approx(sum(v for v, _ in rows), rel=3e-6)
    expected = np.zeros(policy.logp.shape)  # each token of y has the same slope, dL/dr_y, and padding has none
    for b, (_, slope) in enumerate(rows):
        expected[b] = batch.mask[b] * np.asarray(slope)[:, None]
    np.testing.assert_allclose(gradient.logp, expected, rtol=2e-5, atol=1e-6)
    if name != "s_sppo":
        assert not np.any(gradient.hidden)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_finite_differences(name):
    policy, batch = at_random(seed=1)
    if name == "kto_pair":  # its KL has no gradient, which differences would see: keep r < 0, where KL = 0
        batch = batch._replace(ref_logp=0 * batch.ref_logp)
    with jax.enable_x64(True):
        policy = Policy(*(jnp.asarray(x, jnp.float64) for x in policy))
        loss = jax.jit(lambda logp, hidden: LOSSES[name](Policy(logp, hidden), batch, **setting(name))[0].result())
        check_grads(loss, tuple(policy), order=1, modes=["rev"], rtol=1e-5, atol=1e-6)


# ---- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_hold_anything(name):
    """1e6, inf or NaN in every padded slot leaves loss, metrics and gradients bit-identical."""
    policy, batch = at_random()
    clean = leaves(run(name, policy, batch, **setting(name)))
    token, row = batch.mask == 0, batch.weight == 0
    for poison in (1e6, np.inf, np.nan):
        spoil = lambda x, where: np.where(where, np.float32(poison), x)  # noqa: E731, B023
        dirty_policy = Policy(spoil(policy.logp, token), spoil(policy.hidden, row[:, None, None]))
        dirty = batch._replace(
            **{field: spoil(getattr(batch, field), token) for field in ("old_logp", "ref_logp", "init_logp")},
            **{field: spoil(getattr(batch, field), row[:, None]) for field in ("win_rate", "target", "advantage")},
            **{field: spoil(getattr(batch, field), row) for field in ("p_win", "similarity")},
        )
        for a, b in zip(clean, leaves(run(name, dirty_policy, dirty, **setting(name))), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_weight_zero_does_not_count_even_with_tokens(name):
    policy, batch = at_random()
    dropped = batch.weight[:, None, None] == 0
    full = np.where(dropped, np.float32(1), batch.mask)
    expected = leaves(run(name, policy, batch, **setting(name)))
    for poison in (-1.0, np.nan):
        dirty = Policy(*(np.where(dropped, np.float32(poison), x) for x in policy))
        for a, b in zip(expected, leaves(run(name, dirty, batch._replace(mask=full), **setting(name))), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_terms_add_up_to_the_loss(name):
    mean, metrics, _ = run(name, *at_random(), **setting(name))
    terms = [m for key, m in metrics.items() if key.startswith("term/")]
    assert terms and all(float(t.weight) == float(mean.weight) for t in terms)
    assert float(sum(t.total for t in terms)) == float(mean.total)
    assert all(isinstance(m, Mean) for m in terms)


@pytest.mark.parametrize("name", NAMES)
def test_jit_changes_nothing(name):
    policy, batch = at_random()
    mean, metrics = LOSSES[name](policy, batch, **setting(name))
    jitted, jitted_metrics, _ = run(name, policy, batch, **setting(name))
    for a, b in zip(leaves((mean, metrics)), leaves((jitted, jitted_metrics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_merged_micro_batches_equal_the_whole_batch(name):
    """Unequal micro-batches (two real rows, and one beside a padding row), so a mean of means would be seen."""
    policy, batch = at_random()
    whole_mean, whole_metrics, whole_gradient = run(name, policy, batch, **setting(name))
    part = lambda tree, s: type(tree)(*(x[s] for x in tree))  # noqa: E731
    halves = [run(name, part(policy, s), part(batch, s), **setting(name)) for s in (slice(0, 2), slice(2, 4))]
    merged = halves[0][0].merge(halves[1][0])
    assert float(merged.result()) == pytest.approx(float(whole_mean.result()), rel=1e-6)
    for key, metric in whole_metrics.items():
        parts = halves[0][1][key].merge(halves[1][1][key])
        assert float(parts.result()) == pytest.approx(float(metric.result()), rel=1e-5, abs=1e-6), key
    for field in Policy._fields:
        parts = np.concatenate([getattr(h[2], field) for h in halves])
        np.testing.assert_allclose(parts, getattr(whole_gradient, field), rtol=1e-6, atol=1e-7)


def test_hyper_parameters_are_keywords_with_plain_defaults_and_a_line_of_help():
    for function in LOSSES.values():
        policy, batch, *hyper = inspect.signature(function).parameters.values()
        assert (policy.name, batch.name) == ("policy", "batch")
        for p in hyper:
            assert p.kind is p.KEYWORD_ONLY and isinstance(p.default, float | int | str | bool), p
            assert f"  {p.name}: " in inspect.getdoc(function).partition("Args:")[2], (function.__name__, p.name)


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_three_is_refused_with_a_remedy(name):
    policy, batch = build(np.zeros((2, 3, 4)), np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"needs K=2 .*select two"):
        LOSSES[name](policy, batch)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [(name, {"beta": bad}) for name in NAMES if name != "inpo" for bad in (0.0, -1.0, math.nan)]
    + [("dpo", {"label_smoothing": 0.5}), ("dpo", {"label_smoothing": -0.1}), ("robust", {"label_smoothing": 0.5})]
    + [("exo_pair", {"label_smoothing": 0.0}), ("s_sppo", {"pair_reduction": "average"})]
    + [("inpo", {"eta": 0.0}), ("inpo", {"tau": 1.0}), ("inpo", {"tau": -0.1})],
)
def test_impossible_hyper_parameters_are_refused_by_name(name, hyper):
    (field,) = hyper
    with pytest.raises(ConfigError, match=field):
        LOSSES[name](*by_hand(), **hyper)


def test_logged_rewards_are_beta_r():
    _, metrics = LOSSES["dpo"](*by_hand(), beta=0.5)
    logged = {key.removeprefix("reward/"): float(m.result()) for key, m in metrics.items() if key.startswith("reward/")}
    assert logged == pytest.approx({"winner": 0.375, "loser": -0.5, "margin": 0.875, "accuracy": 1.0})


def test_accuracy_counts_the_pairs_whose_winner_leads():
    policy, batch = build(
        [[[-1.0], [-2.0]], [[-2.0], [-1.0]], [[-1.0], [-1.0]]], np.ones((3, 2, 1)), ref=np.full((3, 2, 1), -1.5)
    )
    for name in ("s_sppo", "dpo", "simpo"):
        _, metrics = LOSSES[name](policy, batch)
        assert float(metrics["reward/accuracy"].result()) == pytest.approx(1 / 3), name


def test_s_sppo_logs_the_target_before_and_after_the_gate():
    policy, batch = by_hand()
    _, metrics = LOSSES["s_sppo"](policy, batch._replace(similarity=np.array([0.4], np.float32)))
    keys = ["raw_winner", "raw_loser", "raw_margin", "calibrated_winner", "calibrated_loser", "calibrated_margin"]
    assert [float(metrics[f"target/{k}"].result()) for k in keys] == pytest.approx([0.8, 0.3, 0.5, 0.7, 0.4, 0.3])
    assert float(metrics["similarity/hidden"].result()) == pytest.approx(0.96)
    assert float(metrics["similarity/semantic"].result()) == pytest.approx(0.4)


# ---- degenerate input ------------------------------------------------------------------------------------------------


def degenerate():
    """Batches of the shape of `at_random`, so that nothing is compiled again."""
    ones, t = np.ones((4, 2, 5)), np.full((4, 2, 5), -1.0)
    yield "all masked", build(t, 0 * ones)
    yield "padding only", build(t, 0 * ones, weight=np.zeros(4))
    yield "tie", build(t, ones)
    yield "no hidden state", build(t, ones, hidden=np.zeros((4, 2, 3)))
    for p in (0.0, 1.0):
        rate = np.tile([p, 1 - p], (4, 1))
        yield f"p = {p}", build(t, ones, win_rate=rate, target=rate, p_win=np.full(4, p))
    for far in (-1e4, 1e4):
        ref = t + np.array([far, -far])[None, :, None]
        yield f"log-ratio {far}", build(t, ones, ref=ref, old=ref)
        yield f"both {far}", build(t, ones, ref=t + far, old=t + far)
    yield "certain tokens", build(0 * t, ones)
    yield "impossible tokens", build(t - 1e4, ones, ref=t, old=t)


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_input_has_a_finite_value_and_gradient(name):
    hyper = {} if "sppo" in name else setting(name)  # beta = 1e-3 makes SPPO's targets large; elsewhere 1/2 is harder
    for case, (policy, batch) in degenerate():
        mean, metrics, gradient = run(name, policy, batch, **hyper)
        assert all(np.all(np.isfinite(x)) for x in leaves((mean, metrics, gradient))), case
        assert np.isfinite(mean.result()), case


# ---- identities (ALGORITHMS, section 7) ------------------------------------------------------------------------------


def at_start(**rows):
    """Four pairs with theta = theta_t: the policy is still its own reference."""
    rng = np.random.default_rng(5)
    rows = {"hidden": rng.normal(size=(4, 2, 3)), **rows}
    return build(-rng.uniform(0.1, 3, (4, 2, 5)), np.ones((4, 2, 5)), **rows)


def test_without_similarity_or_repulsion_s_sppo_is_sppo():
    """Identity 3, first half: S = 0 leaves the targets as they are."""
    policy, batch = at_random()
    batch = batch._replace(target=batch.win_rate)
    gated, _, gradient = run("s_sppo", policy, batch, repulsion_weight=0.0, **setting("sppo"))
    plain, _, plain_gradient = run("sppo", policy, batch, **setting("sppo"))
    assert float(gated.total) == pytest.approx(
        float(plain.total), rel=1e-6
    )  # two programs: fused, hence rounded, apart
    np.testing.assert_allclose(gradient.logp, plain_gradient.logp, rtol=1e-6, atol=1e-7)


def test_a_fully_gated_pair_is_held_where_it_is():
    """Identity 3, second half: S = 1 gives the loss 1/2 (r_w^2 + r_l^2) and no gradient at theta = theta_t."""
    policy, batch = by_hand()
    half = np.full((1, 2), 0.5, np.float32)
    loss = value("s_sppo", policy, batch._replace(target=half), repulsion_weight=0.0)
    assert loss == pytest.approx((0.75**2 + 1) / 2)
    _, _, gradient = run("s_sppo", *at_start(target=np.full((4, 2), 0.5)))
    assert not np.any(gradient.logp)


@pytest.mark.parametrize(("hyper", "factor"), [({}, 1.0), ({"pair_reduction": "sum"}, 2.0)])
def test_first_gradient_is_the_win_rate_margin_over_beta(hyper, factor):
    """Identity 5: at theta = theta_t, dL/dr_y = -(P_y - 1/2)/beta with `mean`, twice that with `sum`.

    And the loss itself has the closed form 1/2 sum ((P - 1/2)/beta)^2 + lambda cos.
    """
    target = np.array([[0.9, 0.1], [0.7, 0.45], [0.55, 0.3], [0.5, 0.2]])
    policy, batch = at_start(target=target)
    mean, _, gradient = run("s_sppo", policy, batch, **hyper)
    expected = np.broadcast_to((-factor * (target - 0.5) / 1e-3)[:, :, None], (4, 2, 5))
    np.testing.assert_allclose(gradient.logp, expected, rtol=1e-6)
    h = policy.hidden.astype(float)
    cos = np.sum(h[:, 0] * h[:, 1], -1) / np.linalg.norm(h[:, 0], axis=-1) / np.linalg.norm(h[:, 1], axis=-1)
    closed = factor * 0.5 * np.sum(((target - 0.5) / 1e-3) ** 2, axis=-1) + cos
    assert float(mean.result()) == pytest.approx(closed.mean(), rel=1e-6)


def test_sppo_single_with_a_certain_winner_is_half_of_sppo_hard():
    """Identity 6."""
    policy, batch = at_random()
    single, _, gradient = run("sppo_single", policy, batch._replace(p_win=np.ones(4, np.float32)), beta=0.5)
    hard, _, hard_gradient = run("sppo_hard", policy, batch, beta=0.5)
    assert float(single.total) == pytest.approx(float(hard.total) / 2, rel=1e-6)
    np.testing.assert_allclose(gradient.logp, hard_gradient.logp / 2, rtol=1e-6)


def test_beta_squared_times_the_loss_is_a_regression_of_beta_r_on_the_win_rate():
    """Identity 7: beta^2 L = 1/2 sum (beta r - (P - 1/2))^2 + beta^2 lambda cos."""
    policy, batch = at_random()
    rows = [Row(policy, batch, b) for b in range(3)]
    for beta in (1e-3, 0.2):
        mean, _ = LOSSES["s_sppo"](policy, batch, beta=beta, repulsion_weight=3.0)
        scaled = sum(0.5 * np.sum((beta * np.array(x.r) - (x.Pc - 0.5)) ** 2) + beta**2 * 3 * x.cos for x in rows)
        assert beta**2 * float(mean.total) == pytest.approx(scaled, rel=1e-5)


def test_repulsion_pushes_the_hidden_states_apart_and_through_both():
    """Identity 8 in the loss: a step down the gradient lowers the cosine; identical states get no gradient."""
    policy, batch = at_start()
    _, metrics, gradient = run("s_sppo", policy, batch)
    assert np.all(np.linalg.norm(gradient.hidden, axis=-1) > 1e-3)
    moved = policy._replace(hidden=policy.hidden - 0.05 * np.asarray(gradient.hidden))
    _, after, _ = run("s_sppo", moved, batch)
    assert float(after["similarity/hidden"].result()) < float(metrics["similarity/hidden"].result())
    duplicate = policy._replace(hidden=np.repeat(policy.hidden[:, :1], 2, axis=1))
    _, metrics, gradient = run("s_sppo", duplicate, batch)
    assert float(metrics["similarity/hidden"].result()) == pytest.approx(1.0)
    np.testing.assert_allclose(gradient.hidden, 0, atol=1e-6)


@pytest.mark.parametrize(("name", "hyper"), [("dpo", {}), ("dpo", {"label_smoothing": 0.3}), ("robust", {})])
def test_dpo_at_the_reference_is_log_two(name, hyper):
    """Identity 26: the logistic losses start at log 2, whatever the smoothing."""
    assert value(name, *at_start(), **hyper) == pytest.approx(math.log(2), rel=1e-6)


def test_without_label_noise_robust_dpo_is_dpo():
    """Identity 26. (cDPO without smoothing is `dpo` at its default, see the pencil values.)"""
    plain, _, gradient = run("dpo", *at_random(), beta=0.5)
    robust, _, robust_gradient = run("robust", *at_random(), beta=0.5, label_smoothing=0.0)
    assert float(robust.total) == pytest.approx(float(plain.total), rel=1e-6)
    np.testing.assert_allclose(robust_gradient.logp, gradient.logp, rtol=1e-6, atol=1e-7)


def test_ipo_is_minimal_at_its_margin():
    """Identity 26: loss and gradient vanish where the mean log-ratios differ by 1/(2 beta)."""
    logp = np.full((4, 2, 5), -3.0)
    policy, batch = build(logp, np.ones((4, 2, 5)), ref=logp - np.array([0.75, -0.25])[None, :, None])
    mean, _, gradient = run("ipo", policy, batch, beta=0.5)
    assert float(mean.total) == 0 and not np.any(gradient.logp)
    assert value("ipo", policy, batch, beta=0.4) > 0.01


def test_inpo_without_a_reference_is_unnormalised_ipo_against_pi_t():
    policy, batch = at_random()
    ipo = value("ipo", policy, batch._replace(ref_logp=batch.old_logp), beta=0.5, ipo_length_normalize=False)
    assert value("inpo", policy, batch, eta=0.5, tau=0.0) == pytest.approx(ipo, rel=1e-6)

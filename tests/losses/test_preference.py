"""Every pair loss: by pencil, and against a loop from its equation."""

import math

import numpy as np
import pytest
from families import PAIRS, SETTINGS
from pair_batches import Row, at_random, build, by_hand
from running import run, value

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.preference import LOSSES

# ---- by pencil -----------------------------------------------------------------------------------

# r_w = .75, r_l = -1, z = .875, P = .8/.3, P^c = .7/.4, p_win = .9, cos = .96; decimals by
# calculator
GOLDEN = [
    ("s_sppo", {"beta": 0.5, "repulsion_weight": 2.0}, (0.35**2 + 0.8**2) / 2 + 1.92),
    (
        "s_sppo",
        {"beta": 0.5, "repulsion_weight": 2.0, "pair_reduction": "sum"},
        0.35**2 + 0.8**2 + 1.92,
    ),
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


# ---- a float64 loop written from the equations, with its derivative ------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


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
    return of_margin(
        q * surprise[0] + (1 - q) * surprise[1], beta * q * (1 - q) * (surprise[0] - surprise[1])
    )


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


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradient_equal_a_float64_loop_of_the_equation(name):
    policy, batch = at_random()
    mean, _, gradient = run(name, policy, batch, **SETTINGS[name])
    rows = [globals()[f"ref_{name}"](Row(policy, batch, b), **SETTINGS[name]) for b in range(3)]
    assert float(mean.weight) == 3
    assert float(mean.total) == pytest.approx(sum(v for v, _ in rows), rel=3e-6)
    expected = np.zeros(
        policy.logp.shape
    )  # each token of y has the same slope, dL/dr_y, and padding has none
    for b, (_, slope) in enumerate(rows):
        expected[b] = batch.mask[b] * np.asarray(slope)[:, None]
    np.testing.assert_allclose(gradient.logp, expected, rtol=2e-5, atol=1e-6)
    if name != "s_sppo":
        assert not np.any(gradient.hidden)


# ---- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_a_group_of_three_is_refused_with_a_remedy(name):
    policy, batch = build(np.zeros((2, 3, 4)), np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"needs K=2 .*select two"):
        LOSSES[name](policy, batch)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [(name, {"beta": bad}) for name in PAIRS if name != "inpo" for bad in (0.0, -1.0, math.nan)]
    + [
        ("dpo", {"label_smoothing": 0.5}),
        ("dpo", {"label_smoothing": -0.1}),
        ("robust", {"label_smoothing": 0.5}),
    ]
    + [("exo_pair", {"label_smoothing": 0.0}), ("s_sppo", {"pair_reduction": "average"})]
    + [("inpo", {"eta": 0.0}), ("inpo", {"tau": 1.0}), ("inpo", {"tau": -0.1})],
)
def test_impossible_hyper_parameters_are_refused_by_name(name, hyper):
    (field,) = hyper
    with pytest.raises(ConfigError, match=field):
        LOSSES[name](*by_hand(), **hyper)


@pytest.mark.parametrize("name", PAIRS)
def test_the_logged_reward_is_the_implicit_one(name):
    """By pencil: beta r; over tokens where the loss normalises; without a reference where it has
    none."""
    hyper = {"eta": 0.5, "tau": 0.125} if name == "inpo" else {"beta": 0.5}
    _, metrics = LOSSES[name](*by_hand(), **hyper)
    winner, loser = {
        "ipo": (0.5 * 0.75 / 2, -0.5),
        "simpo": (0.5 * -1.5, 0.5 * -3),
        "orpo": (0.5 * -1.5, 0.5 * -3),
        "inpo": (0.5 * (0.25 * 0.75 + 0.75 * 0.5), 0.5 * (0.25 * -1 + 0.75 * 0.5)),
    }.get(name, (0.5 * 0.75, -0.5))
    logged = {
        key.removeprefix("rewards/"): float(m.result())
        for key, m in metrics.items()
        if key.startswith("rewards/")
    }
    margin = winner - loser
    assert logged == pytest.approx(
        {"chosen": winner, "rejected": loser, "margins": margin, "accuracies": 1.0}
    )


def test_accuracy_counts_the_pairs_whose_winner_leads():
    policy, batch = build(
        [[[-1.0], [-2.0]], [[-2.0], [-1.0]], [[-1.0], [-1.0]]],
        np.ones((3, 2, 1)),
        ref=np.full((3, 2, 1), -1.5),
    )
    for name in ("s_sppo", "dpo", "simpo"):
        _, metrics = LOSSES[name](policy, batch)
        assert float(metrics["rewards/accuracies"].result()) == pytest.approx(1 / 3), name


def test_s_sppo_logs_the_target_before_and_after_the_gate():
    policy, batch = by_hand()
    _, metrics = LOSSES["s_sppo"](policy, batch._replace(similarity=np.array([0.4], np.float32)))
    keys = [
        "raw_winner",
        "raw_loser",
        "raw_margin",
        "calibrated_winner",
        "calibrated_loser",
        "calibrated_margin",
    ]
    assert [float(metrics[f"target/{k}"].result()) for k in keys] == pytest.approx(
        [0.8, 0.3, 0.5, 0.7, 0.4, 0.3]
    )
    assert float(metrics["similarity/hidden"].result()) == pytest.approx(0.96)
    assert float(metrics["similarity/semantic"].result()) == pytest.approx(0.4)

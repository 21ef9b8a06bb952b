"""Every group loss: by pencil, against a loop from its equation, and what it logs."""

import math

import numpy as np
import pytest
from families import GROUPS, SETTINGS
from gate_formulas import exact
from group_batches import at_random, by_hand, full, on_policy
from running import differentiate, run, slope, value

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.group import LOSS_AGG_MODES, LOSSES
from ssppo_jax.losses.ratio_gates import RATIO_GATES

GATES = sorted(RATIO_GATES)


# ---- by pencil -----------------------------------------------------------------------------------

KL = (
    2 - 1 - math.log(2),
    0.5 - 1 + math.log(2),
)  # k3 of the first and of the third token; the second has 0
GOLDEN = [  # decimals by calculator
    ("grpo", {}, -(1.2 * 2 + 0.8 * 2) / 4 + 0.8 / 2),
    ("grpo", {"beta": 0.5}, -0.6 + 0.5 * (KL[0] / 2 + KL[1]) / 2),
    ("grpo", {"epsilon": 0.6}, -(1.5 * 2 + 0.8 * 2) / 4 + 0.5 / 2),
    ("grpo", {"epsilon_high": 0.4}, -(1.4 * 2 + 0.8 * 2) / 4 + 0.8 / 2),
    ("grpo", {"loss_agg_mode": "seq-mean-token-sum"}, -(2.4 + 1.6 - 0.8) / 2),
    ("dr_grpo", {}, -(2.4 + 1.6 - 0.8) / 6),
    ("dr_grpo", {"max_completion_length": 10}, -(2.4 + 1.6 - 0.8) / 20),
    ("bnpo", {}, -(2.4 + 1.6 - 0.8) / 3),
    ("bnpo", {"beta": 0.5}, -(2.4 + 1.6 - 0.8) / 3 + 0.5 * 0.5 / 3),
    ("dapo", {}, -(2.56 + 1.6 - 0.8) / 3),
    ("cispo", {}, (1.5 * 2 * 1 + 0.8 * 2 * 2 - 0.5 * 3) / 3),
    ("cispo", {"epsilon_high": 1.2}, (1.2 * 2 * 1 + 0.8 * 2 * 2 - 0.5 * 3) / 3),
    ("sapo", {}, -1.4372815),
    (
        "sapo",
        {"sapo_gate": "arctan", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 4.0},
        -0.7396165,
    ),
    ("gspo", {"epsilon": 0.05, "epsilon_high": 0.08}, -(1.08 * 2 - 0.95) / 2),
    ("gspo", {}, -(1.0004 * 2 - 0.9997) / 2),
    ("gspo_token", {"epsilon": 0.05, "epsilon_high": 0.08}, -(1.08 * 2 - 0.95) / 2),
    ("gspo", {"epsilon": 0.9}, -(1.0004 * 2) / 2 + 0.5 / 2),
    ("rloo", {"epsilon": 0.1, "epsilon_high": 0.15}, -(1.15 * 2 - 0.9) / 2),
    ("rloo", {"epsilon": 0.9}, -(1.2 * 2 - 0.5) / 2),
    ("gmpo", {"epsilon": 0.2}, -0.5791295),
    ("gmpo", {}, -(2 * math.exp((0.4 + math.log(0.8)) / 2) - math.exp(-0.4)) / 2),
    ("sspo", {"sspo_gate": "identity"}, -(2 * math.sqrt(1.2) - 0.5) / 2),
    ("sspo", {"sspo_temperature_pos": 2.0, "sspo_temperature_neg": 3.0}, -0.7236624),
    (
        "sspo",
        {"sspo_gate": "sigmoid", "sspo_temperature_pos": 2.0, "sspo_temperature_neg": 4.0},
        -1.0236950,
    ),
]


def test_every_loss_has_a_pencil_value():
    assert {name for name, _, _ in GOLDEN} == set(LOSSES)


@pytest.mark.parametrize(("name", "hyper", "expected"), GOLDEN)
def test_loss_equals_its_pencil_value(name, hyper, expected):
    assert value(name, *by_hand(), **hyper) == pytest.approx(expected, rel=3e-6)


# ---- a float64 loop written from the equations, with its derivative ------------------------------


class Response:
    """One response in float64: lists over its tokens, padding gone."""

    def __init__(self, policy, batch, b, k):
        n = int(batch.mask[b, k].sum())
        logp, old, ref = (
            [float(x) for x in a[b, k, :n]] for a in (policy.logp, batch.old_logp, batch.ref_logp)
        )
        self.logp, self.n, self.A = logp, n, float(batch.advantage[b, k])
        self.u = [p - q for p, q in zip(logp, old, strict=True)]
        self.d = [q - p for p, q in zip(logp, ref, strict=True)]


def each(y, token):
    """Gains of token losses, and their Jacobian, from token(u, logp) -> (gain, derivative)."""
    pairs = [token(u, p) for u, p in zip(y.u, y.logp, strict=True)]
    return np.array([g for g, _ in pairs]), (
        np.diag([d for _, d in pairs]) if pairs else np.zeros((0, 0))
    )


def same(y, gain, derivative):
    """The same gain at every token, with its derivative with respect to each token."""
    return np.full(y.n, gain), np.tile(np.asarray(derivative), (y.n, 1))


def ppo(y, epsilon, epsilon_high, delta=math.inf):
    def token(u, _):
        r = math.exp(u)
        plain, clipped = min(r, delta) * y.A, min(max(r, 1 - epsilon), 1 + epsilon_high) * y.A
        free = r < delta and (plain <= clipped)
        return min(plain, clipped), r * y.A if free else 0.0

    return each(y, token)


def ref_gspo(y, epsilon, epsilon_high):
    s = math.exp(sum(y.u) / y.n) if y.n else 1.0
    clipped = min(max(s, 1 - epsilon), 1 + epsilon_high)
    free = s * y.A <= clipped * y.A
    return same(y, min(s * y.A, clipped * y.A), [s * y.A / y.n * free for _ in y.u])


def ref_rloo(y, epsilon, epsilon_high):
    s = math.exp(sum(y.u))
    clipped = min(max(s, 1 - epsilon), 1 + epsilon_high)
    free = s * y.A <= clipped * y.A
    # one gain a response: its mean over the tokens is the gain itself
    return same(
        y, min(s, clipped) * y.A if y.A > 0 else max(s, clipped) * y.A, [s * y.A * free] * y.n
    )


def ref_gmpo(y, epsilon, epsilon_high):
    """In the sign form of verl: sgn * min(sgn u, sgn clip(u)); the loss is written in TRL's."""
    sign = 1 if y.A > 0 else -1
    clipped = [min(max(u, -epsilon), epsilon_high) for u in y.u]
    c = [sign * min(sign * u, sign * v) for u, v in zip(y.u, clipped, strict=True)]
    s = math.exp(sum(c) / y.n) if y.n else 1.0
    return same(y, s * y.A, [s * y.A / y.n * (x == u) for x, u in zip(c, y.u, strict=True)])


def gate_and_slope(gate, u, tau):
    """f and df/du of a gate, the slope by differences of its formula."""
    return exact(gate, u, tau), (exact(gate, u + 1e-6, tau) - exact(gate, u - 1e-6, tau)) / 2e-6


def ref_sspo(y, sspo_gate, sspo_temperature_pos, sspo_temperature_neg):
    tau = sspo_temperature_pos if y.A > 0 else sspo_temperature_neg
    gates = [gate_and_slope(sspo_gate, u, tau) for u in y.u]
    s = math.prod(f for f, _ in gates) ** (1 / max(y.n, 1))
    return same(y, s * y.A, [s * y.A / y.n * slope / f for f, slope in gates])


def ref_sapo(y, sapo_temperature_pos, sapo_temperature_neg, sapo_gate="sigmoid"):
    tau = sapo_temperature_pos if y.A > 0 else sapo_temperature_neg
    return each(y, lambda u, _: tuple(y.A * x for x in gate_and_slope(sapo_gate, u, tau)))


def ref_cispo(y, epsilon_high):

    def weight(u):
        return min(math.exp(u), epsilon_high) * y.A

    return each(y, lambda u, logp: (weight(u) * logp, weight(u)))


REFERENCE = {
    "sspo": ref_sspo,
    "sapo": ref_sapo,
    "gspo": ref_gspo,
    "gspo_token": ref_gspo,
    "rloo": ref_rloo,
    "gmpo": ref_gmpo,
    "grpo": ppo,
    "dr_grpo": ppo,
    "bnpo": ppo,
    "dapo": ppo,
    "cispo": ref_cispo,
}
MODE = {"dr_grpo": "seq-mean-token-sum-norm", "bnpo": "token-mean", "dapo": "token-mean"}


def loop(
    name,
    policy,
    batch,
    beta=0.0,
    loss_agg_mode="seq-mean-token-mean",
    max_completion_length=5,
    **hyper,
):
    """(total, weight, gradient of the total with respect to logp), rows of the padding left out."""
    mode = MODE.get(name, loss_agg_mode)
    total, weight, gradient = 0.0, 0.0, np.zeros(policy.logp.shape)
    for b in range(3):
        for k in range(3):
            y = Response(policy, batch, b, k)
            gain, jacobian = REFERENCE[name](y, **hyper)
            gain = gain - beta * np.array([math.exp(d) - 1 - d for d in y.d])
            jacobian = jacobian - beta * np.diag([1 - math.exp(d) for d in y.d])
            per_token = {
                "token-mean": 1.0,
                "seq-mean-token-mean": 1 / max(y.n, 1),
                "seq-mean-token-sum": 1.0,
                "seq-mean-token-sum-norm": 1 / max_completion_length,
            }[mode]
            total -= per_token * gain.sum()
            weight += y.n if mode == "token-mean" else 1
            gradient[b, k, : y.n] = -per_token * jacobian.sum(axis=0)
    return total, weight, gradient


@pytest.mark.parametrize("name", GROUPS)
def test_loss_and_gradient_equal_a_float64_loop_of_the_equation(name):
    policy, batch = at_random()
    mean, _, gradient = run(name, policy, batch, **SETTINGS[name])
    total, weight, expected = loop(name, policy, batch, **SETTINGS[name])
    assert float(mean.weight) == weight
    assert float(mean.total) == pytest.approx(total, rel=3e-6)
    np.testing.assert_allclose(gradient.logp, expected, rtol=3e-5, atol=1e-6)
    assert not np.any(gradient.hidden)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_each_aggregation_equals_the_loop(mode):
    policy, batch = at_random(seed=3)
    hyper = {"epsilon": 0.2, "epsilon_high": 0.3, "beta": 0.1, "loss_agg_mode": mode}
    total, weight, expected = loop("grpo", policy, batch, **hyper)
    mean, _ = LOSSES["grpo"](policy, batch, **hyper)
    assert (float(mean.total), float(mean.weight)) == pytest.approx((total, weight), rel=3e-6)
    np.testing.assert_allclose(
        slope("grpo", policy, batch, **hyper) * weight, expected, rtol=3e-5, atol=1e-6
    )


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ["sspo", "sapo"])
def test_every_gate_in_a_loss_equals_the_loop_of_its_formula(name, gate):
    policy, batch = at_random(seed=2)
    hyper = {f"{name}_gate": gate, f"{name}_temperature_pos": 2.0, f"{name}_temperature_neg": 3.0}
    total, weight, expected = loop(name, policy, batch, **hyper)
    mean, _, gradient = differentiate(name, policy, batch, **hyper)
    assert (float(mean.total), float(mean.weight)) == pytest.approx((total, weight), rel=5e-6)
    np.testing.assert_allclose(gradient.logp, expected, rtol=3e-5, atol=1e-6)


# ---- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPS)
def test_without_beta_there_is_no_kl_term(name):
    """The default of every loss."""

    def terms(**hyper):
        metrics = LOSSES[name](*by_hand(), **hyper)[1]
        return {key for key in metrics if key.startswith("term/")}

    assert terms() == {"term/surrogate"} and terms(beta=0.1) == {"term/surrogate", "term/kl"}


@pytest.mark.parametrize("name", GROUPS)
def test_a_response_without_tokens_adds_nothing(name):
    """Identity 21, second half: whatever its advantage; it counts as a response (TRL), so weights
    stay."""
    policy, batch = at_random()
    advantage = batch.advantage.copy()
    advantage[1, 2] = 1e3
    mean, _, gradient = run(name, policy, batch, **SETTINGS[name])
    other, _, other_gradient = run(
        name, policy, batch._replace(advantage=advantage), **SETTINGS[name]
    )
    assert float(mean.total) == float(other.total) and float(mean.weight) == float(other.weight)
    np.testing.assert_array_equal(gradient.logp, other_gradient.logp)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [(name, {"beta": bad}) for name in GROUPS for bad in (-1.0, math.nan)]
    + [
        (name, {"epsilon": bad})
        for name in ("grpo", "gspo", "gmpo", "rloo", "dapo")
        for bad in (0.0, -0.1, math.nan)
    ]
    + [
        ("grpo", {"epsilon_high": -0.1}),
        ("cispo", {"epsilon_high": 0.28}),
        ("grpo", {"delta": 1.1}),
    ]
    + [("grpo", {"loss_agg_mode": "mean"}), ("dr_grpo", {"max_completion_length": -1})]
    + [("sspo", {"sspo_gate": "tanh"}), ("sapo", {"sapo_gate": "tanh"})]
    + [("sspo", {"sspo_temperature_pos": 0.0}), ("sapo", {"sapo_temperature_neg": -1.0})],
)
def test_impossible_hyper_parameters_are_refused_by_name(name, hyper):
    (field,) = hyper
    with pytest.raises(ConfigError, match=field):
        LOSSES[name](*by_hand(), **hyper)


def test_the_affine_gate_refuses_temperatures_at_which_it_would_turn_negative():
    with pytest.raises(
        ConfigError, match=r"sspo_temperature_neg=1\.5.*1\.571 for arctan_log_affine"
    ):
        LOSSES["sspo"](*by_hand(), sspo_gate="arctan_log_affine", sspo_temperature_neg=1.5)
    assert value("sspo", *by_hand(), sspo_gate="arctan_log_affine", sspo_temperature_neg=1.58) < 0


# ---- what is logged ------------------------------------------------------------------------------


def test_clip_metrics_count_the_tokens_without_gradient():
    """By pencil: 1.5 is above the clip under A > 0, 0.5 below it under A < 0, 0.8 inside."""
    _, metrics = LOSSES["grpo"](*by_hand())
    found = {key: float(m.result()) for key, m in metrics.items()}
    assert (found["clip_ratio/high_mean"], found["clip_ratio/low_mean"]) == pytest.approx(
        (1 / 3, 1 / 3)
    )
    assert (found["clip_ratio/region_mean"], found["effective_update_ratio"]) == pytest.approx(
        (2 / 3, 1 / 3)
    )
    assert found["sequence_ratio/min"] == pytest.approx(0.5)
    assert found["sequence_ratio/max"] == pytest.approx(math.sqrt(1.2))
    assert found["sequence_ratio/mean"] == pytest.approx((0.5 + math.sqrt(1.2)) / 2)


def test_sspo_logs_the_ratio_before_the_gate_and_the_weight_after_it():
    _, metrics = LOSSES["sspo"](*by_hand(), sspo_temperature_pos=2.0, sspo_temperature_neg=3.0)
    found = {key: float(m.result()) for key, m in metrics.items()}
    u = [math.log(x) for x in (1.5, 0.8, 0.5)]
    s = [
        math.exp((math.atan(2 * u[0]) + math.atan(2 * u[1])) / 4),
        math.exp(math.atan(3 * u[2]) / 3),
    ]
    names = (
        "sequence_weight/min",
        "sequence_weight/mean",
        "sequence_weight/max",
        "sequence_ratio/min",
    )
    assert [found[x] for x in names] == pytest.approx([s[1], sum(s) / 2, s[0], 0.5], rel=1e-5)
    slopes = [1 / (1 + (tau * x) ** 2) for tau, x in zip((2, 2, 3), u, strict=True)]
    assert found["effective_update_ratio"] == pytest.approx(sum(slopes) / 3, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in GROUPS if name not in ("sspo", "sapo")])
def test_eur_of_a_hard_clip_is_one_minus_the_clip_fraction(name):
    """Identity 25: and the fraction is that of the tokens (GSPO: responses) whose surrogate has no
    gradient."""
    policy, batch = at_random()
    batch = batch._replace(ref_logp=policy.logp)  # where the KL has no gradient
    _, metrics, gradient = run(name, policy, batch, **SETTINGS[name])
    fraction = float(metrics["clip_ratio/region_mean"].result())
    assert float(metrics["effective_update_ratio"].result()) == pytest.approx(1 - fraction)
    parts = float(metrics["clip_ratio/low_mean"].result()) + float(
        metrics["clip_ratio/high_mean"].result()
    )
    assert parts == pytest.approx(fraction) and 0 < fraction < 1
    if name != "cispo":  # its capped tokens keep a gradient
        silent = (np.asarray(gradient.logp) == 0) & (batch.mask > 0)
        count = (
            silent.any(axis=-1).sum() / 8
            if name in ("gspo", "rloo")
            else silent.sum() / batch.mask.sum()
        )
        assert fraction == pytest.approx(count)


@pytest.mark.parametrize("name", GROUPS)
def test_on_policy_eur_is_one(name):
    """Identity 25."""
    _, metrics = LOSSES[name](*on_policy())
    assert float(metrics["effective_update_ratio"].result()) == 1


def test_logged_extremes_are_of_responses_with_tokens():
    """Padding has ratio 1: the least of a policy that rose everywhere, the greatest of one that
    fell."""
    policy, batch = at_random()
    for shift in (-1.0, 1.0):
        _, metrics = LOSSES["sspo"](
            policy, batch._replace(old_logp=policy.logp - np.float32(shift))
        )
        for key in ("sequence_ratio", "sequence_weight"):
            ends = [float(metrics[f"{key}/{end}"].result()) for end in ("min", "mean", "max")]
            assert ends == pytest.approx(
                [ends[1]] * 3, rel=0.02 if key == "sequence_weight" else 1e-5
            ), (key, shift)
        assert ends[1] != pytest.approx(1.0, abs=0.05)


# ---- degenerate input ----------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_survives_extreme_ratios_in_sspo(gate):
    """|u| up to 20 and far beyond, in one token and in all; whatever the sign of A."""
    for u in ([[20.0, 0.1, -0.1], [-20.0, 0.1, 0.0]], [[1e4, 1e4, 1e4], [-1e4, -1e4, 0.0]]):
        for advantage in ([1.0, -2.0], [-1.0, 2.0]):
            policy, batch = full(u, advantage)
            assert np.isfinite(value("sspo", policy, batch, sspo_gate=gate))
            assert np.all(np.isfinite(slope("sspo", policy, batch, sspo_gate=gate)))

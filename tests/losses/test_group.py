"""Every group loss: by pencil, against a loop from its equation, and under the input that breaks losses."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads
from pair_batches import build
from running import run, value

from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.advantages import ADVANTAGES
from ssppo_jax.losses.group import LOSS_AGG_MODES, LOSSES
from ssppo_jax.losses.ratio_gates import RATIO_GATES
from ssppo_jax.types import Mean, Policy

NAMES = sorted(LOSSES)
GATES = sorted(RATIO_GATES)
OF_RATIO = ["sigmoid", "sigmoid_norm", "arctan", "erf", "softsign"]
SETTINGS = {  # not the defaults, so that a keyword that is ignored shows
    "sspo": {"sspo_gate": "arctan_log", "sspo_temperature_pos": 2.0, "sspo_temperature_neg": 3.0, "beta": 0.1},
    "sapo": {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0, "beta": 0.1, "loss_agg_mode": "token-mean"},
    "gspo": {"epsilon": 0.1, "epsilon_high": 0.15, "beta": 0.1},
    "gspo_token": {"epsilon": 0.1, "epsilon_high": 0.15, "beta": 0.1},
    "gmpo": {"epsilon": 0.3, "epsilon_high": 0.2, "beta": 0.1},
    "grpo": {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.6, "beta": 0.1},
    "dr_grpo": {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.6, "beta": 0.1, "max_completion_length": 8},
    "bnpo": {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.6, "beta": 0.1},
    "dapo": {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.6, "beta": 0.1},
    "cispo": {"epsilon_high": 1.5, "beta": 0.1, "loss_agg_mode": "seq-mean-token-sum"},
}


def slope(name, policy, batch, **hyper):
    """Gradient of the loss with respect to logp, without jit."""
    loss = lambda logp: LOSSES[name](Policy(logp, policy.hidden), batch, **hyper)[0].result()  # noqa: E731
    return np.asarray(jax.grad(loss)(jnp.asarray(policy.logp)))


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


# ---- batches ---------------------------------------------------------------------------------------------------------

LENGTH = np.array([[5, 2, 3], [1, 4, 0], [3, 3, 5], [0, 0, 0]])  # [B,K]; one response without tokens, one padding row


def at_random(seed=0, scale=0.4):
    """Three real groups of three, of different lengths, and a padding row; ratios on both sides of every clip."""
    rng = np.random.default_rng(seed)
    b, k, t = 4, 3, 5
    logp = -rng.uniform(0.2, 3.0, (b, k, t))
    return build(
        logp,
        np.arange(t) < LENGTH[..., None],
        old=logp - scale * rng.normal(size=(b, k, t)),
        ref=logp + 0.5 * rng.normal(size=(b, k, t)),
        weight=np.array([1, 1, 1, 0]),
        advantage=rng.normal(size=(b, k)) + np.array([0.5, -0.5, 0.0]),
    )


def on_policy(seed=1):
    policy, batch = at_random(seed)
    return policy, batch._replace(old_logp=policy.logp)


def full(u, advantage):
    """One group with u [<=3,<=5] at its tokens, in the shape of `at_random`, so that nothing is compiled again.

    Responses not given have no tokens: they count as responses, 3 in all.
    """
    u = np.asarray(u, np.float64)
    given, wide = np.zeros((4, 3, 5)), np.zeros((4, 3, 5))
    given[0, : u.shape[0], : u.shape[1]] = 1
    wide[0, : u.shape[0], : u.shape[1]] = u
    logp = -1.0 - np.random.default_rng(7).uniform(size=wide.shape)
    worth = np.zeros((4, 3))
    worth[0, : len(advantage)] = advantage
    return build(logp, given, old=logp - wide, ref=logp, advantage=worth, weight=np.array([1, 0, 0, 0]))


def by_hand():
    """Ratios 1.5 and 0.8 under A = 2, and 0.5 under A = -1; pi_ref/pi is 2, 1 and 1/2. T = 3."""
    logp = np.array([[[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]]])
    return build(
        logp,
        [[[1, 1, 0], [1, 0, 0]]],
        old=logp - np.log([[[1.5, 0.8, 1.0], [0.5, 1.0, 1.0]]]),
        ref=logp + np.log([[[2.0, 1.0, 1.0], [0.5, 1.0, 1.0]]]),
        advantage=[[2.0, -1.0]],
    )


# ---- by pencil -------------------------------------------------------------------------------------------------------

KL = (2 - 1 - math.log(2), 0.5 - 1 + math.log(2))  # k3 of the first and of the third token; the second has 0
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
    ("sapo", {"sapo_gate": "arctan", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 4.0}, -0.7396165),
    ("gspo", {"epsilon": 0.05, "epsilon_high": 0.08}, -(1.08 * 2 - 0.95) / 2),
    ("gspo", {}, -(1.0004 * 2 - 0.9997) / 2),
    ("gspo_token", {"epsilon": 0.05, "epsilon_high": 0.08}, -(1.08 * 2 - 0.95) / 2),
    ("gspo", {"epsilon": 0.9}, -(1.0004 * 2) / 2 + 0.5 / 2),
    ("gmpo", {"epsilon": 0.2}, -0.5791295),
    ("gmpo", {}, -(2 * math.exp((0.4 + math.log(0.8)) / 2) - math.exp(-0.4)) / 2),
    ("sspo", {"sspo_gate": "identity"}, -(2 * math.sqrt(1.2) - 0.5) / 2),
    ("sspo", {"sspo_temperature_pos": 2.0, "sspo_temperature_neg": 3.0}, -0.7236624),
    ("sspo", {"sspo_gate": "sigmoid", "sspo_temperature_pos": 2.0, "sspo_temperature_neg": 4.0}, -1.0236950),
]


def test_every_loss_has_a_pencil_value():
    assert {name for name, _, _ in GOLDEN} == set(LOSSES)


@pytest.mark.parametrize(("name", "hyper", "expected"), GOLDEN)
def test_loss_equals_its_pencil_value(name, hyper, expected):
    assert value(name, *by_hand(), **hyper) == pytest.approx(expected, rel=3e-6)


# ---- a float64 loop written from the equations, with its derivative --------------------------------------------------


class Response:
    """One response in float64: lists over its tokens, padding gone."""

    def __init__(self, policy, batch, b, k):
        n = int(batch.mask[b, k].sum())
        logp, old, ref = ([float(x) for x in a[b, k, :n]] for a in (policy.logp, batch.old_logp, batch.ref_logp))
        self.logp, self.n, self.A = logp, n, float(batch.advantage[b, k])
        self.u = [p - q for p, q in zip(logp, old, strict=True)]
        self.d = [q - p for p, q in zip(logp, ref, strict=True)]


def each(y, token):
    """Gains of token losses, and their Jacobian, from token(u, logp) -> (gain, derivative)."""
    pairs = [token(u, p) for u, p in zip(y.u, y.logp, strict=True)]
    return np.array([g for g, _ in pairs]), np.diag([d for _, d in pairs]) if pairs else np.zeros((0, 0))


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


def ref_gmpo(y, epsilon, epsilon_high):
    """In the sign form of verl: sgn * min(sgn u, sgn clip(u)); the loss is written in TRL's."""
    sign = 1 if y.A > 0 else -1
    clipped = [min(max(u, -epsilon), epsilon_high) for u in y.u]
    c = [sign * min(sign * u, sign * v) for u, v in zip(y.u, clipped, strict=True)]
    s = math.exp(sum(c) / y.n) if y.n else 1.0
    return same(y, s * y.A, [s * y.A / y.n * (x == u) for x, u in zip(c, y.u, strict=True)])


def ref_sspo(y, sspo_gate, sspo_temperature_pos, sspo_temperature_neg):
    tau = sspo_temperature_pos if y.A > 0 else sspo_temperature_neg
    assert sspo_gate == "arctan_log"
    s = math.exp(sum(math.atan(tau * u) / tau for u in y.u) / y.n) if y.n else 1.0
    return same(y, s * y.A, [s * y.A / y.n / (1 + (tau * u) ** 2) for u in y.u])


def ref_sapo(y, sapo_temperature_pos, sapo_temperature_neg):
    tau = sapo_temperature_pos if y.A > 0 else sapo_temperature_neg

    def token(u, _):
        p = 1 / (1 + math.exp(-tau * (math.exp(u) - 1)))
        return 4 / tau * p * y.A, 4 * p * (1 - p) * math.exp(u) * y.A

    return each(y, token)


def ref_cispo(y, epsilon_high):
    weight = lambda u: min(math.exp(u), epsilon_high) * y.A  # noqa: E731
    return each(y, lambda u, logp: (weight(u) * logp, weight(u)))


REFERENCE = {
    "sspo": ref_sspo,
    "sapo": ref_sapo,
    "gspo": ref_gspo,
    "gspo_token": ref_gspo,
    "gmpo": ref_gmpo,
    "grpo": ppo,
    "dr_grpo": ppo,
    "bnpo": ppo,
    "dapo": ppo,
    "cispo": ref_cispo,
}
MODE = {"dr_grpo": "seq-mean-token-sum-norm", "bnpo": "token-mean", "dapo": "token-mean"}


def loop(name, policy, batch, beta=0.0, loss_agg_mode="seq-mean-token-mean", max_completion_length=5, **hyper):
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


@pytest.mark.parametrize("name", NAMES)
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
    np.testing.assert_allclose(slope("grpo", policy, batch, **hyper) * weight, expected, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("cispo", "gspo_token")])
def test_gradient_agrees_with_finite_differences(name):
    """Left out are those whose stopped gradient differences would see; the loop has them."""
    policy, batch = at_random(seed=1)
    with jax.enable_x64(True):
        loss = lambda logp: LOSSES[name](Policy(logp, policy.hidden), batch, **SETTINGS[name])[0].result()  # noqa: E731
        check_grads(loss, (jnp.asarray(policy.logp, jnp.float64),), order=1, modes=["rev"], rtol=1e-5, atol=1e-6)


# ---- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_hold_anything(name):
    """1e6, inf or NaN in every padded slot leaves loss, metrics and gradients bit-identical."""
    policy, batch = at_random()
    clean = leaves(run(name, policy, batch, **SETTINGS[name]))
    token, row = batch.mask == 0, batch.weight == 0
    for poison in (1e6, np.inf, np.nan):
        spoil = lambda x, where: np.where(where, np.float32(poison), x)  # noqa: E731, B023
        dirty_policy = Policy(spoil(policy.logp, token), spoil(policy.hidden, row[:, None, None]))
        dirty = batch._replace(
            **{field: spoil(getattr(batch, field), token) for field in ("old_logp", "ref_logp", "init_logp")},
            **{field: spoil(getattr(batch, field), row[:, None]) for field in ("win_rate", "target", "advantage")},
            **{field: spoil(getattr(batch, field), row) for field in ("p_win", "similarity")},
        )
        for a, b in zip(clean, leaves(run(name, dirty_policy, dirty, **SETTINGS[name])), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_weight_zero_does_not_count_even_with_tokens(name):
    policy, batch = at_random()
    dropped = batch.weight[:, None, None] == 0
    dirty = batch._replace(mask=np.where(dropped, np.float32(1), batch.mask))
    expected = leaves(run(name, policy, batch, **SETTINGS[name]))
    for poison in (-1.0, np.nan):
        dirty_policy = Policy(*(np.where(dropped, np.float32(poison), x) for x in policy))
        for a, b in zip(expected, leaves(run(name, dirty_policy, dirty, **SETTINGS[name])), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_permuted_tokens_and_extra_padding_change_nothing(name):
    """Identity 21, first half."""
    policy, batch = at_random()
    turned = np.stack([[np.r_[np.arange(n)[::-1], n:5] for n in row] for row in LENGTH])
    tokens = ("mask", "old_logp", "ref_logp", "init_logp")
    turn = lambda x: np.pad(np.take_along_axis(x, turned, 2), ((0, 0), (0, 0), (0, 2)), constant_values=3.0)  # noqa: E731
    other = batch._replace(**{field: turn(getattr(batch, field)) for field in tokens})
    other = other._replace(mask=np.where(np.arange(7) < 5, other.mask, 0.0))
    hyper = SETTINGS[name]
    # The loss is a mean of terms of size 1 and both signs: their rounding is absolute.
    assert value(name, Policy(turn(policy.logp), policy.hidden), other, **hyper) == pytest.approx(
        value(name, policy, batch, **hyper), rel=2e-6, abs=1e-7
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_response_without_tokens_adds_nothing(name):
    """Identity 21, second half: whatever its advantage; it counts as a response (TRL), so weights stay."""
    policy, batch = at_random()
    advantage = batch.advantage.copy()
    advantage[1, 2] = 1e3
    mean, _, gradient = run(name, policy, batch, **SETTINGS[name])
    other, _, other_gradient = run(name, policy, batch._replace(advantage=advantage), **SETTINGS[name])
    assert float(mean.total) == float(other.total) and float(mean.weight) == float(other.weight)
    np.testing.assert_array_equal(gradient.logp, other_gradient.logp)


@pytest.mark.parametrize("name", NAMES)
def test_terms_add_up_to_the_loss(name):
    mean, metrics, _ = run(name, *at_random(), **SETTINGS[name])
    terms = {key: m for key, m in metrics.items() if key.startswith("term/")}
    assert set(terms) == {"term/surrogate", "term/kl"}
    assert all(isinstance(t, Mean) and float(t.weight) == float(mean.weight) for t in terms.values())
    assert float(sum(t.total for t in terms.values())) == float(mean.total)
    assert "term/kl" not in LOSSES[name](*by_hand())[1]  # beta = 0 is the default of every loss


@pytest.mark.parametrize("name", NAMES)
def test_jit_changes_nothing(name):
    policy, batch = at_random()
    plain = LOSSES[name](policy, batch, **SETTINGS[name])
    for a, b in zip(leaves(plain), leaves(run(name, policy, batch, **SETTINGS[name])[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_merged_micro_batches_equal_the_whole_batch(name):
    """Unequal micro-batches, so a mean of means would be seen: two groups, and one. The others are padding rows."""
    policy, batch = at_random()
    whole_mean, whole_metrics, whole_gradient = run(name, policy, batch, **SETTINGS[name])
    parts = [
        run(name, policy, batch._replace(weight=np.array(weight, np.float32)), **SETTINGS[name])
        for weight in ([1, 0, 1, 0], [0, 1, 0, 0])
    ]
    merged = parts[0][0].merge(parts[1][0])
    assert float(merged.result()) == pytest.approx(float(whole_mean.result()), rel=2e-6)
    assert float(merged.weight) == float(whole_mean.weight)
    for key, metric in whole_metrics.items():
        together = parts[0][1][key].merge(parts[1][1][key])
        assert float(together.result()) == pytest.approx(float(metric.result()), rel=1e-5, abs=1e-6), key
    summed = np.asarray(parts[0][2].logp) + np.asarray(parts[1][2].logp)
    np.testing.assert_allclose(summed, whole_gradient.logp, rtol=1e-6, atol=1e-7)


def test_sharded_over_prompts_equals_one_device():
    """All losses in one program over 4 devices, one group each."""
    policy, batch = at_random()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def every(policy, batch):
        return {name: LOSSES[name](policy, batch, **SETTINGS[name]) for name in NAMES}

    sharded = every(*jax.device_put((policy, batch), split))
    for name in NAMES:
        expected = leaves(run(name, policy, batch, **SETTINGS[name])[:2])
        for a, b in zip(leaves(sharded[name]), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def test_hyper_parameters_are_keywords_with_plain_defaults_and_a_line_of_help():
    for function in LOSSES.values():
        policy, batch, *hyper = inspect.signature(function).parameters.values()
        assert (policy.name, batch.name) == ("policy", "batch")
        for p in hyper:
            assert p.kind is p.KEYWORD_ONLY and isinstance(p.default, float | int | str | bool), p
            assert f"  {p.name}: " in inspect.getdoc(function).partition("Args:")[2], (function.__name__, p.name)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [(name, {"beta": bad}) for name in NAMES for bad in (-1.0, math.nan)]
    + [(name, {"epsilon": bad}) for name in ("grpo", "gspo", "gmpo", "dapo") for bad in (0.0, -0.1, math.nan)]
    + [("grpo", {"epsilon_high": -0.1}), ("cispo", {"epsilon_high": 0.28}), ("grpo", {"delta": 1.1})]
    + [("grpo", {"loss_agg_mode": "mean"}), ("dr_grpo", {"max_completion_length": -1})]
    + [("sspo", {"sspo_gate": "tanh"}), ("sapo", {"sapo_gate": "tanh"})]
    + [("sspo", {"sspo_temperature_pos": 0.0}), ("sapo", {"sapo_temperature_neg": -1.0})],
)
def test_impossible_hyper_parameters_are_refused_by_name(name, hyper):
    (field,) = hyper
    with pytest.raises(ConfigError, match=field):
        LOSSES[name](*by_hand(), **hyper)


def test_the_affine_gate_refuses_temperatures_at_which_it_would_turn_negative():
    with pytest.raises(ConfigError, match=r"sspo_temperature_neg=1\.5.*1\.571 for arctan_log_affine"):
        LOSSES["sspo"](*by_hand(), sspo_gate="arctan_log_affine", sspo_temperature_neg=1.5)
    assert value("sspo", *by_hand(), sspo_gate="arctan_log_affine", sspo_temperature_neg=1.58) < 0


# ---- what is logged --------------------------------------------------------------------------------------------------


def test_clip_metrics_count_the_tokens_without_gradient():
    """By pencil: 1.5 is above the clip under A > 0, 0.5 below it under A < 0, 0.8 inside."""
    _, metrics = LOSSES["grpo"](*by_hand())
    found = {key: float(m.result()) for key, m in metrics.items()}
    assert (found["clip/high"], found["clip/low"]) == pytest.approx((1 / 3, 1 / 3))
    assert (found["clip/fraction"], found["eur"]) == pytest.approx((2 / 3, 1 / 3))
    assert found["sequence_ratio/min"] == pytest.approx(0.5)
    assert found["sequence_ratio/max"] == pytest.approx(math.sqrt(1.2))
    assert found["sequence_ratio/mean"] == pytest.approx((0.5 + math.sqrt(1.2)) / 2)
    assert found["advantage/zero_groups"] == 0


def test_sspo_logs_the_ratio_before_the_gate_and_the_weight_after_it():
    _, metrics = LOSSES["sspo"](*by_hand(), sspo_temperature_pos=2.0, sspo_temperature_neg=3.0)
    found = {key: float(m.result()) for key, m in metrics.items()}
    u = [math.log(x) for x in (1.5, 0.8, 0.5)]
    s = [math.exp((math.atan(2 * u[0]) + math.atan(2 * u[1])) / 4), math.exp(math.atan(3 * u[2]) / 3)]
    names = ("sequence_weight/min", "sequence_weight/mean", "sequence_weight/max", "sequence_ratio/min")
    assert [found[x] for x in names] == pytest.approx([s[1], sum(s) / 2, s[0], 0.5], rel=1e-5)
    slopes = [1 / (1 + (tau * x) ** 2) for tau, x in zip((2, 2, 3), u, strict=True)]
    assert found["eur"] == pytest.approx(sum(slopes) / 3, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sspo", "sapo")])
def test_eur_of_a_hard_clip_is_one_minus_the_clip_fraction(name):
    """Identity 25: and the fraction is that of the tokens (GSPO: responses) whose surrogate has no gradient."""
    policy, batch = at_random()
    batch = batch._replace(ref_logp=policy.logp)  # where the KL has no gradient
    _, metrics, gradient = run(name, policy, batch, **SETTINGS[name])
    fraction = float(metrics["clip/fraction"].result())
    assert float(metrics["eur"].result()) == pytest.approx(1 - fraction)
    parts = float(metrics["clip/low"].result()) + float(metrics["clip/high"].result())
    assert parts == pytest.approx(fraction) and 0 < fraction < 1
    if name != "cispo":  # its capped tokens keep a gradient
        silent = (np.asarray(gradient.logp) == 0) & (batch.mask > 0)
        count = silent.any(axis=-1).sum() / 8 if name == "gspo" else silent.sum() / batch.mask.sum()
        assert fraction == pytest.approx(count)


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_eur_is_one(name):
    """Identity 25."""
    _, metrics = LOSSES[name](*on_policy())
    assert float(metrics["eur"].result()) == 1


def test_silent_groups_are_counted():
    policy, batch = at_random()
    advantage = batch.advantage.copy()
    advantage[1] = 0
    _, metrics = LOSSES["grpo"](policy, batch._replace(advantage=advantage))
    assert float(metrics["advantage/zero_groups"].result()) == pytest.approx(1 / 3)


# ---- degenerate input ------------------------------------------------------------------------------------------------


def degenerate():
    """Batches of the shape of `at_random`, so that nothing is compiled again."""
    ones, t = np.ones((4, 3, 5)), np.full((4, 3, 5), -1.0)
    sign = np.tile([2.0, -1.0, 0.5], (4, 1))
    yield "all masked", build(t, 0 * ones, advantage=sign)
    yield "padding only", build(t, 0 * ones, weight=np.zeros(4), advantage=sign)
    yield "no advantage", build(t, ones)
    yield "huge advantage", build(t, ones, advantage=1e6 * sign)
    for far in (-1e4, -100.0, -25.0, 25.0, 100.0, 1e4):
        yield f"log-ratio {far}", build(t, ones, old=t - far, ref=t - far, advantage=sign)
        yield f"one token at {far}", build(t, ones, old=np.where(np.arange(5) == 2, t - far, t), advantage=sign)
    yield "certain tokens", build(0 * t, ones, advantage=sign)
    yield "impossible tokens", build(t - 1e4, ones, ref=t, old=t, advantage=sign)


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_input_has_a_finite_value_and_gradient(name):
    for case, (policy, batch) in degenerate():
        mean, metrics, gradient = run(name, policy, batch, **SETTINGS[name])
        assert all(np.all(np.isfinite(x)) for x in leaves((mean, gradient))), case
        assert np.isfinite(mean.result()), case
        means = [m for m in metrics.values() if isinstance(m, Mean)]
        assert all(np.all(np.isfinite(x)) for x in leaves(means)), case
        norm = np.sqrt(np.sum(np.square(gradient.logp)))  # in float32, as the optimizer takes it
        assert np.isfinite(norm), case


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_survives_extreme_ratios_in_sspo(gate):
    """|u| up to 20 and far beyond, in one token and in all; whatever the sign of A."""
    for u in ([[20.0, 0.1, -0.1], [-20.0, 0.1, 0.0]], [[1e4, 1e4, 1e4], [-1e4, -1e4, 0.0]]):
        for advantage in ([1.0, -2.0], [-1.0, 2.0]):
            policy, batch = full(u, advantage)
            assert np.isfinite(value("sspo", policy, batch, sspo_gate=gate))
            assert np.all(np.isfinite(slope("sspo", policy, batch, sspo_gate=gate)))


def test_a_loss_without_any_response_is_zero_and_of_weight_zero():
    for name in NAMES:
        mean, _ = LOSSES[name](*build(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), weight=np.zeros(1)))
        assert float(mean.weight) == 0 and float(mean.result()) == 0


# ---- identities (ALGORITHMS, section 7) ------------------------------------------------------------------------------


def policy_gradient(batch):
    """-A/L per token, over the 9 responses."""
    length = np.maximum(batch.mask.sum(-1, keepdims=True), 1)
    return -batch.advantage[..., None] * batch.mask / length / 9


@pytest.mark.parametrize("gate", GATES)
def test_on_policy_every_gate_and_temperature_has_the_plain_policy_gradient(gate):
    """Identity 14, SSPO: A/L per token, raw sigmoid included, whose value there is 2/temperature."""
    policy, batch = on_policy()
    for taus in ((1.6, 3.0), (10.0, 12.0)):
        hyper = {"sspo_gate": gate, "sspo_temperature_pos": taus[0], "sspo_temperature_neg": taus[1]}
        np.testing.assert_allclose(slope("sspo", policy, batch, **hyper), policy_gradient(batch), rtol=3e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["sapo", "grpo", "gspo", "gspo_token", "gmpo"])
def test_on_policy_the_relatives_have_the_same_gradient(name):
    """Identity 14, the others. (CISPO and DAPO average over tokens.)"""
    policy, batch = on_policy()
    np.testing.assert_allclose(slope(name, policy, batch), policy_gradient(batch), rtol=3e-6, atol=1e-8)


@pytest.mark.parametrize("gate", ["arctan_log", "arctan", "sigmoid_norm"])
def test_without_temperature_sspo_is_unclipped_gspo(gate):
    """Identity 15: the error falls as the square of the temperature, value and gradient."""
    with jax.enable_x64(True):
        policy, batch = at_random()
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (policy, batch))
        plain = value("sspo", *wide, sspo_gate="identity")
        cold = [{"sspo_gate": gate, "sspo_temperature_pos": t, "sspo_temperature_neg": t} for t in (0.02, 0.04)]
        errors = [value("sspo", *wide, **hyper) - plain for hyper in cold]
        assert errors[1] / errors[0] == pytest.approx(4, rel=0.02) and abs(errors[0]) < 1e-4
        np.testing.assert_allclose(
            slope("sspo", *wide, **cold[0]), slope("sspo", *wide, sspo_gate="identity"), atol=1e-4
        )


def test_raw_sigmoid_diverges_without_temperature():
    """Identity 15, the exception: s -> 2/temperature."""
    cold = {"sspo_gate": "sigmoid", "sspo_temperature_pos": 1e-3, "sspo_temperature_neg": 1e-3}
    assert value("sspo", *by_hand(), **cold) == pytest.approx(2e3 * -(2 - 1) / 2, rel=1e-2)


@pytest.mark.parametrize("gate", [gate for gate in GATES if gate not in ("identity", "sigmoid")])
def test_a_hot_gate_turns_off_policy_updates_off(gate):
    """Identity 16: s -> 1 and the gradient -> 0 where r is not 1."""
    policy, batch = full([[0.5, -0.4, 0.3], [0.2, 0.6, -0.7]], [1.0, -0.5])
    hot = {"sspo_gate": gate, "sspo_temperature_pos": 1e4, "sspo_temperature_neg": 1e4}
    assert value("sspo", policy, batch, **hot) == pytest.approx(-(1.0 - 0.5) / 3, abs=1e-3)
    np.testing.assert_allclose(slope("sspo", policy, batch, **hot), 0, atol=1e-6)


def test_the_identity_gate_is_gspo_without_clip():
    """Identity 17, first half."""
    policy, batch = at_random()
    np.testing.assert_allclose(
        slope("sspo", policy, batch, sspo_gate="identity"),
        slope("gspo", policy, batch, epsilon=0.99, epsilon_high=50.0),
        rtol=1e-5,
        atol=1e-7,
    )


def test_the_hard_clip_gate_is_gmpo_where_only_its_side_is_reached():
    """Identity 17, second half: GMPO clips one side by the sign of A; beyond the other side the two must differ."""
    u = np.array([[1.0, 0.1, -0.2], [-1.0, 0.2, -0.1]])
    tau = math.pi / 2 / 0.4
    hyper = {"sspo_gate": "log_clip", "sspo_temperature_pos": tau, "sspo_temperature_neg": tau}
    policy, batch = full(u, [1.0, -0.5])
    assert value("sspo", policy, batch, **hyper) == pytest.approx(value("gmpo", policy, batch), rel=1e-5)
    np.testing.assert_allclose(
        slope("sspo", policy, batch, **hyper), slope("gmpo", policy, batch), rtol=1e-5, atol=1e-8
    )
    policy, batch = full(-u, [1.0, -0.5])
    assert abs(value("sspo", policy, batch, **hyper) - value("gmpo", policy, batch)) > 0.01


def test_sspo_by_arctan_log_never_leaves_its_bounds():
    """Identity 18 in the loss: |log s| < pi/(2 temperature) whatever the tokens."""
    policy, batch = full([[20.0] * 3, [-20.0] * 3], [1.0, 1.0])
    _, metrics = LOSSES["sspo"](policy, batch, sspo_temperature_pos=3.0)
    low, high = (float(metrics[f"sequence_weight/{end}"].result()) for end in ("min", "max"))
    assert math.exp(-math.pi / 6) < low < math.exp(-math.pi / 6 * 0.96)
    assert math.exp(math.pi / 6 * 0.96) < high < math.exp(math.pi / 6)


@pytest.mark.parametrize("gate", OF_RATIO)
def test_sspo_is_sapo_for_responses_of_one_token_or_one_ratio(gate):
    """Identity 19, value and gradient."""
    for u in ([[0.4], [-0.3]], [[0.4] * 3, [-0.3] * 3]):
        policy, batch = full(u, [1.0, -0.5])
        sspo = {"sspo_gate": gate, "sspo_temperature_pos": 2.0, "sspo_temperature_neg": 3.0}
        sapo = {"sapo_gate": gate, "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0}
        assert value("sspo", policy, batch, **sspo) == pytest.approx(value("sapo", policy, batch, **sapo), rel=1e-5)
        np.testing.assert_allclose(
            slope("sspo", policy, batch, **sspo), slope("sapo", policy, batch, **sapo), rtol=1e-5
        )


def test_sapo_weighs_a_token_by_sech_squared():
    """Identity 20: d gain/d log pi = A r f', f' = tau f (1 - tau/4 f) = sech^2(tau (r - 1)/2)."""
    u, tau = np.array([[0.4, -0.7, 1.2], [-0.3, 0.1, 0.9]]), 3.0
    policy, batch = full(u, [1.0, -0.5])
    found = slope("sapo", policy, batch, sapo_temperature_pos=tau, sapo_temperature_neg=tau)
    r = np.exp(u)
    f = 4 / tau / (1 + np.exp(-tau * (r - 1)))
    np.testing.assert_allclose(tau * f * (1 - tau / 4 * f), np.cosh(tau * (r - 1) / 2) ** -2, rtol=1e-9)
    expected = -np.array([[1.0], [-0.5]]) * r * np.cosh(tau * (r - 1) / 2) ** -2 / 3 / 3
    np.testing.assert_allclose(found[0, :2, :3], expected, rtol=1e-5)


def test_without_temperature_sapo_is_unclipped_grpo_up_to_a_constant():
    """Identity 20, second half: the same gradient."""
    policy, batch = at_random()
    cold = slope("sapo", policy, batch, sapo_temperature_pos=1e-2, sapo_temperature_neg=1e-2)
    plain = slope("grpo", policy, batch, epsilon=0.999, epsilon_high=1e3)
    np.testing.assert_allclose(cold, plain, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("gate", GATES)
def test_the_geometric_mean_of_the_gates_is_at_most_their_arithmetic_mean(gate):
    """Identity 22 (Jensen): so SSPO's value of a response is at most SAPO's under A > 0."""
    policy, batch = at_random()
    batch = batch._replace(advantage=np.ones_like(batch.advantage))
    sspo = {"sspo_gate": gate, "sspo_temperature_pos": 2.0}
    sapo = {"sapo_gate": gate, "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 2.0}
    assert value("sspo", policy, batch, **sspo) > value("sapo", policy, batch, **sapo) + 1e-4


def test_gspo_token_is_gspo_in_value_and_gradient():
    """Identity 23, first half."""
    a, b = (run(name, *at_random(), **SETTINGS[name]) for name in ("gspo", "gspo_token"))
    assert float(a[0].total) == pytest.approx(float(b[0].total), rel=1e-6)
    np.testing.assert_allclose(a[2].logp, b[2].logp, rtol=1e-5, atol=1e-7)


def test_dr_grpo_is_grpo_when_every_response_has_the_full_length():
    """Identity 23, second half (the std of 1 is the advantage's part)."""
    policy, batch = full(np.random.default_rng(2).normal(size=(3, 5)), [1.0, -0.5, 0.2])
    assert value("dr_grpo", policy, batch) == pytest.approx(value("grpo", policy, batch), rel=1e-6)
    assert value("dr_grpo", policy, batch, max_completion_length=10) == pytest.approx(
        value("grpo", policy, batch) / 2, rel=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_equal_rewards_give_no_loss_gradient(name):
    """Identity 24: from the reward to the gradient, off policy; at the reference, where the KL has none."""
    policy, batch = at_random()
    advantage = ADVANTAGES["grpo"](np.full((4, 3), 0.1, np.float32))
    batch = batch._replace(advantage=advantage, ref_logp=policy.logp)
    _, metrics, gradient = run(name, policy, batch, **SETTINGS[name])
    assert not np.any(gradient.logp)
    assert float(metrics["advantage/zero_groups"].result()) == 1


def test_k3_is_never_negative_and_zero_at_the_reference():
    """Identity 25."""
    logp = np.full((1, 2, 3), -1.0)
    for d in (-50.0, -2.0, -1e-3, 1e-3, 2.0, 19.0):
        found = value("grpo", *build(logp, np.ones((1, 2, 3)), ref=logp + d), beta=1.0)
        assert found > 0 and found == pytest.approx(math.expm1(d) - d, rel=2e-3)
    assert value("grpo", *build(logp, np.ones((1, 2, 3))), beta=1.0) == 0


def test_token_mean_weighs_long_responses_more_than_short_ones():
    """What sets DAPO apart from GRPO: one response of 3 tokens and one of 1, opposite advantages."""
    policy, batch = build(np.full((1, 2, 3), -1.0), [[[1, 1, 1], [1, 0, 0]]], advantage=[[1.0, -1.0]])
    assert value("grpo", policy, batch) == pytest.approx(0.0, abs=1e-7)
    assert value("dapo", policy, batch) == pytest.approx(-2 / 4)

"""Nash-MD and XPO: by pencil, against a loop from the equation, and under the input that breaks
losses."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from opponent_batches import at_random as labelled
from pair_batches import at_random, build
from running import run, value

from ssppo_jax import losses
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.opponent import LOSSES
from ssppo_jax.types import Policy

NASH_MD = ("nash_md", {"beta": 0.5, "mixture_coef": 0.25})
XPO = ("xpo", {"beta": 0.5, "alpha": 0.3})
XPO_IPO = ("xpo", {"loss_type": "ipo", "beta": 0.5, "alpha": 0.3, "mixture_coef": 0.75})
CASES = pytest.mark.parametrize(
    ("name", "hyper"), [NASH_MD, XPO, XPO_IPO], ids=["nash_md", "xpo", "xpo-ipo"]
)


def by_hand():
    """y of two tokens with r = 0.75, y' of one with r = -1; sums of log-probs -3 and -4."""
    return build(
        [[[-1.0, -2.0], [-4.0, 0.0]]], [[[1, 1], [1, 0]]], ref=[[[-1.5, -2.25], [-3.0, 0.0]]]
    )


def won_by(policy, batch, p_win):
    return policy, batch._replace(p_win=np.full(len(batch.p_win), p_win, np.float32))


# ---- by pencil -----------------------------------------------------------------------------------

# log-ratios of y: (.5, .25); D = r - r' = 1.75, beta D = .875, -log s(.875) = .3484446
KL = 0.5 * (0.5 * -1 + 0.25 * -2)
GOLDEN = [
    ("nash_md", {"beta": 0.5}, 0.9, KL + 0.4 * 3),
    ("nash_md", {"beta": 0.5, "mixture_coef": 0.0}, 0.9, KL + 0.4 * 3),
    ("nash_md", {"beta": 0.5}, 0.2, KL - 0.3 * 3),
    ("nash_md", {"beta": 0.25}, 0.5, KL / 2),
    ("xpo", {"beta": 0.5, "alpha": 0.2}, 0.9, 0.3484446 - 0.8),
    ("xpo", {"beta": 0.5, "alpha": 0.2}, 0.2, 0.875 + 0.3484446 - 0.8),
    ("xpo", {"beta": 0.5, "alpha": 0.0}, 0.5, 0.4375 + 0.3484446),
    ("xpo", {"loss_type": "ipo", "beta": 0.5, "alpha": 0.3}, 0.9, 0.75**2 - 1.2),
    ("xpo", {"loss_type": "ipo", "beta": 0.5, "alpha": 0.3}, 0.2, 2.75**2 - 1.2),
    ("xpo", {"loss_type": "ipo", "beta": 0.25, "alpha": 0.0}, 0.5, (0.25**2 + 3.75**2) / 2),
]


def test_every_loss_has_a_pencil_value_and_says_what_its_rows_hold():
    assert {name for name, *_ in GOLDEN} == set(LOSSES)
    assert {losses.ROWS[name] for name in LOSSES} == {"opponent"}


@pytest.mark.parametrize(("name", "hyper", "p_win", "expected"), GOLDEN)
def test_loss_equals_its_pencil_value(name, hyper, p_win, expected):
    assert value(name, *won_by(*by_hand(), p_win), **hyper) == pytest.approx(expected, rel=2e-6)


def test_metrics_equal_their_pencil_values():
    """Rewards .375 of the policy's sample and -.5 of the opponent's, sorted by who won."""
    for p_win, winner, loser in ((0.9, 0.375, -0.5), (0.2, -0.5, 0.375), (0.5, -0.0625, -0.0625)):
        for name in LOSSES:
            _, metrics = LOSSES[name](*won_by(*by_hand(), p_win), beta=0.5)
            got = {
                key: float(m.result()) for key, m in metrics.items() if not key.startswith("term/")
            }
            assert got == pytest.approx(
                {
                    "rewards/chosen": winner,
                    "rewards/rejected": loser,
                    "rewards/margins": winner - loser,
                    "rewards/accuracies": float(winner > loser),
                    "opponent/p_win": p_win,
                    "opponent/ties": float(p_win == 0.5),
                    "kl/ref_k1": 0.75,
                }
            )


def test_accuracy_is_of_the_rows_that_somebody_won():
    _, metrics = LOSSES["xpo"](*labelled())
    assert float(metrics["rewards/accuracies"].weight) == 2
    assert float(metrics["opponent/ties"].result()) == pytest.approx(1 / 3)


# ---- a float64 loop written from the equations, with its derivative ------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def token_lists(policy, batch, b):
    """(log pi, log pi_ref) of the policy's sample and of the opponent's, padding gone."""
    n = [int(x) for x in np.sum(batch.mask[b], axis=-1)]
    return [
        [[float(v) for v in x[b, k, : n[k]]] for x in (policy.logp, batch.ref_logp)] for k in (0, 1)
    ]


def ref_nash_md(rows, p_win, beta, mixture_coef):
    """The loss, and dL/dlog pi of each token of y and of y'."""
    (logp, ref), (other, _) = rows
    total, slopes = 0.0, []
    for p, q in zip(logp, ref, strict=True):
        slope = beta * (p - q) - (p_win - 0.5)  # the log-ratio is a constant
        total += slope * p
        slopes.append(slope)
    return total, slopes, [0.0] * len(other)


def ref_xpo(rows, p_win, beta, alpha, loss_type="sigmoid", mixture_coef=1.0):
    r = [sum(p - q for p, q in zip(*row, strict=True)) for row in rows]
    lengths, total, slope = [len(row[0]) for row in rows], 0.0, [0.0, 0.0]
    orders = (
        {(0, 1): 1.0}
        if p_win > 0.5
        else {(1, 0): 1.0}
        if p_win < 0.5
        else {(0, 1): 0.5, (1, 0): 0.5}
    )
    for (w, l), share in orders.items():
        d = r[w] - r[l]
        if loss_type == "sigmoid":
            loss, change = math.log1p(math.exp(-beta * d)), -beta * sigmoid(-beta * d)
        else:
            loss, change = (d - 1 / (2 * beta)) ** 2, 2 * (d - 1 / (2 * beta))
        total += share * loss
        slope[w] += share * change
        slope[l] -= share * change
    total += alpha * sum(rows[1][0])
    return total, [slope[0]] * lengths[0], [slope[1] + alpha] * lengths[1]


@CASES
def test_loss_and_gradient_equal_a_float64_loop_of_the_equation(name, hyper):
    policy, batch = labelled()
    mean, _, gradient = run(name, policy, batch, **hyper)
    found = [
        globals()[f"ref_{name}"](token_lists(policy, batch, b), float(batch.p_win[b]), **hyper)
        for b in range(3)
    ]
    assert float(mean.weight) == 3
    assert float(mean.total) == pytest.approx(sum(total for total, *_ in found), rel=3e-6)
    expected = np.zeros(policy.logp.shape)
    for b, (_, *slopes) in enumerate(found):
        for k, slope in enumerate(slopes):
            expected[b, k, : len(slope)] = slope
    np.testing.assert_allclose(gradient.logp, expected, rtol=2e-5, atol=1e-6)
    assert not np.any(gradient.hidden)


@CASES
def test_gradient_agrees_with_finite_differences(name, hyper):
    """For Nash-MD with the log-ratio moved out by hand, since differences would see through the
    stopped gradient."""
    policy, batch = labelled()
    with jax.enable_x64(True):
        logp = jnp.asarray(policy.logp, jnp.float64)
        loss = jax.jit(lambda x: LOSSES[name](Policy(x, policy.hidden), batch, **hyper)[0].result())
        if name == "xpo":
            check_grads(loss, (logp,), order=1, modes=["rev"], rtol=1e-5, atol=1e-6)
            return
        weight = hyper["beta"] * (logp - batch.ref_logp) - (batch.p_win - 0.5)[:, None, None]

        def frozen(x):
            return jnp.sum(jnp.where(batch.mask > 0, weight * x, 0.0)[:, 0]) / 3

        check_grads(frozen, (logp,), order=1, modes=["rev"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            jax.grad(loss)(logp), jax.grad(frozen)(logp), rtol=1e-6, atol=1e-9
        )


# ---- properties and identities -------------------------------------------------------------------


def test_nash_md_has_no_gradient_at_a_tie_with_the_reference():
    """Identity 26: P = 1/2 and pi = pi_ref."""
    policy, batch = at_random()
    policy, batch = won_by(policy, batch._replace(ref_logp=policy.logp), 0.5)
    mean, _, gradient = run("nash_md", policy, batch)
    assert not np.any(gradient.logp) and float(mean.total) == 0
    for p_win in (0.4, 0.6):
        _, _, gradient = run("nash_md", *won_by(policy, batch, p_win))
        assert np.all(gradient.logp[:3, 0, 0] != 0)


def test_nash_md_moves_the_policys_sample_only():
    _, _, gradient = run("nash_md", *labelled())
    assert np.any(gradient.logp[:, 0]) and not np.any(gradient.logp[:, 1])


@functools.cache
def sorted_pairs():
    """The rows of `labelled` that somebody won: as they are, and with the winner at 0 for a pair
    loss."""
    policy, batch = labelled()
    part = lambda tree: jax.tree.map(lambda x: x[:2], tree)  # noqa: E731
    policy, batch = part(policy), part(batch)
    turn = lambda x: np.stack([x[0], x[1, ::-1]])  # noqa: E731
    fields = ("mask", "old_logp", "ref_logp", "init_logp", "completion")
    turned = batch._replace(**{field: turn(getattr(batch, field)) for field in fields})
    return (policy, batch), (Policy(*(turn(x) for x in policy)), turned), turn


@pytest.mark.parametrize(
    ("loss_type", "pair_loss", "hyper"),
    [("sigmoid", "dpo", {}), ("ipo", "ipo", {"ipo_length_normalize": False})],
)
def test_xpo_without_exploration_is_online_dpo_on_the_sorted_pair(loss_type, pair_loss, hyper):
    """Identity 26: XPO at alpha = 0 is DPO (or IPO on sums) whose winner is the one the oracle
    preferred."""
    rows, pairs, turn = sorted_pairs()
    mean, metrics, gradient = run("xpo", *rows, loss_type=loss_type, beta=0.5, alpha=0.0)
    pair_mean, pair_metrics, pair_gradient = run(pair_loss, *pairs, beta=0.5, **hyper)
    assert float(mean.total) == pytest.approx(float(pair_mean.total), rel=1e-6)
    np.testing.assert_allclose(turn(gradient.logp), pair_gradient.logp, rtol=1e-6, atol=1e-7)
    for key in ("chosen", "rejected", "margins", "accuracies"):
        key = f"rewards/{key}"
        assert float(metrics[key].result()) == pytest.approx(
            float(pair_metrics[key].result()), abs=1e-6
        )


def test_at_a_tie_xpo_favours_neither_response():
    """Swapping the two responses changes nothing, and at r = r' there is no gradient."""
    policy, batch = won_by(*at_random(), 0.5)
    swap = lambda x: x[:, ::-1]  # noqa: E731
    swapped = batch._replace(mask=swap(batch.mask), ref_logp=swap(batch.ref_logp))
    one = value("xpo", policy, batch, alpha=0.0)
    assert value("xpo", Policy(*(swap(x) for x in policy)), swapped, alpha=0.0) == pytest.approx(
        one, rel=1e-6
    )
    _, _, gradient = run("xpo", policy, batch._replace(ref_logp=policy.logp), alpha=0.0)
    np.testing.assert_allclose(gradient.logp, 0, atol=1e-7)


def test_exploration_lowers_the_log_prob_of_the_opponents_sample_alone():
    policy, batch = labelled()
    _, _, without = run("xpo", policy, batch, beta=0.5, alpha=0.0)
    _, _, with_it = run("xpo", policy, batch, beta=0.5, alpha=0.3)
    change = np.asarray(with_it.logp) - without.logp
    np.testing.assert_allclose(change[:, 1], 0.3 * batch.mask[:, 1], atol=1e-6)
    assert not np.any(change[:, 0])


@CASES
def test_the_mixture_is_the_samplers_business(name, hyper):
    policy, batch = labelled()
    values = {
        value(name, policy, batch, **(hyper | {"mixture_coef": coef})) for coef in (0.0, 0.3, 1.0)
    }
    assert len(values) == 1


# ---- keywords ------------------------------------------------------------------------------------


def test_the_sampler_finds_the_mixture_among_the_keywords():
    assert all(
        "mixture_coef" in inspect.signature(function).parameters for function in LOSSES.values()
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_anything_but_one_sample_of_each_is_refused_with_a_remedy(name):
    policy, batch = build(np.zeros((2, 3, 4)), np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"needs K=2 .*one sample of each"):
        LOSSES[name](policy, batch)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [(name, {"beta": bad}) for name in LOSSES for bad in (0.0, -1.0, math.nan)]
    + [(name, {"mixture_coef": bad}) for name in LOSSES for bad in (-0.1, 1.1, math.nan)]
    + [("xpo", {"loss_type": "hinge"}), ("xpo", {"alpha": -1e-5})],
)
def test_impossible_hyper_parameters_are_refused_by_name(name, hyper):
    (field,) = hyper
    with pytest.raises(ConfigError, match=field):
        LOSSES[name](*by_hand(), **hyper)

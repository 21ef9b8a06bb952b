"""What theory says of a group loss's gradient, by enumerating every sequence of a tabular policy.

Three tokens of a vocabulary of three, a row of logits for every prefix. With all sequences in the
batch, each weighted by its probability and worth A = R - E[R], an on-policy surrogate has the
gradient of E[R] up to a factor.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from ssppo_jax import schema
from ssppo_jax.config import bind
from ssppo_jax.losses import LOSSES, ROWS
from ssppo_jax.models.logprobs import token_logprobs
from ssppo_jax.rollout.importance import MODES, importance_weights
from ssppo_jax.runtime import logprob_temperature, rollout_params
from ssppo_jax.steps import own_old_logp
from ssppo_jax.types import Batch, Policy

V, L = 3, 3
PREFIXES = [p for n in range(L) for p in itertools.product(range(V), repeat=n)]
SEQUENCES = list(itertools.product(range(V), repeat=L))
AT = np.array([[PREFIXES.index(s[:t]) for t in range(L)] for s in SEQUENCES])
TOKENS = np.array(SEQUENCES, np.int32)[:, None]
GROUP = sorted(name for name, rows in ROWS.items() if rows == "group")


def config(name, **overrides):
    given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return schema.load("smoke", {"loss.name": name} | given)


def problem(seed, temperature):
    """Logits, A, the probability of each sequence as sampled, and the gradient of E[R]: float64."""
    rng = np.random.default_rng(seed)
    theta, reward = 2 * rng.normal(size=(len(PREFIXES), V)), rng.normal(size=len(SEQUENCES))
    row = np.exp(theta / temperature)
    row /= row.sum(-1, keepdims=True)
    p = np.prod(row[AT, TOKENS[:, 0]], axis=1)
    worth, gradient = reward - p @ reward, np.zeros_like(theta)
    for s, at, tokens in zip(range(len(p)), AT, TOKENS[:, 0], strict=True):
        for prefix, token in zip(at, tokens, strict=True):
            gradient[prefix] += p[s] * worth[s] * (np.eye(V)[token] - row[prefix]) / temperature
    return theta.astype(np.float32), worth, p, gradient


def logp_of(theta, temperature):
    """The trainer's log-probs [S,1,L]: the logits are the states, the head is the identity."""
    hidden, head = theta[AT][:, None], jnp.eye(V)
    return token_logprobs(hidden, head, TOKENS, chunk=2, temperature=temperature).logp


def batch_of(old, worth, p):
    rows, ones = len(SEQUENCES), np.ones(TOKENS.shape, np.float32)
    pair, row = np.zeros((rows, 1), np.float32), np.zeros(rows, np.float32)
    return Batch(
        np.zeros((rows, 1), np.int32), np.ones(rows, np.int32), TOKENS, ones, old, old, old,
        pair, pair, row, row, worth[:, None].astype(np.float32), p.astype(np.float32),
    )  # fmt: skip


def surrogate(chosen, seed=0, off=0.0, on_policy=False):
    """Value and gradient of the configured loss at the policy that sampled, and E[R]'s gradient.

    `off` is what another program got differently in the old log-probs."""
    theta, worth, p, true = problem(seed, chosen.sampling.temperature)
    temperature, loss = logprob_temperature(chosen), bind(LOSSES, chosen.loss)
    noise = np.random.default_rng(1).choice([-off, off], TOKENS.shape).astype(np.float32)
    batch = batch_of(logp_of(theta, temperature) + noise, worth, p)

    def value(theta):
        policy = Policy(logp_of(theta, temperature), jnp.zeros((len(SEQUENCES), 1, 2)))
        return loss(policy, own_old_logp(policy, batch, on_policy))[0].result()

    found, gradient = jit(jax.value_and_grad(value))(theta)
    return float(found), np.asarray(gradient), true


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", GROUP)
def test_the_gradient_is_that_of_the_reward_under_the_distribution_sampled_from(name, temperature):
    _, gradient, true = surrogate(config(name, sampling__temperature=temperature))
    assert cosine(-gradient, true) == pytest.approx(1, abs=1e-5)


def test_log_probs_at_temperature_1_give_another_gradient_which_is_said():
    raw = {"sampling__temperature": 0.5, "group__logprob_temperature": "raw"}
    chosen = config("grpo", **raw)
    found = [cosine(-g, true) for _, g, true in (surrogate(chosen, seed) for seed in range(5))]
    assert min(found) < 0.97 and max(found) < 0.999
    (caution,) = schema.cautions(chosen)
    assert caution.startswith("sampling.temperature=0.5: grpo takes log-probs at temperature 1")
    assert caution.endswith("set group.logprob_temperature=sampling")


def test_the_ratio_is_the_importance_weight_of_the_distribution_sampled_from():
    """E_old[prod_t r_t] = 1, and E_old[prod_t r_t R] is the moved policy's E[R]."""
    chosen = config("rloo", sampling__temperature=0.7)
    theta, worth, p, _ = problem(0, 0.7)
    moved = (theta + 0.3 * np.random.default_rng(2).normal(size=theta.shape)).astype(np.float32)
    at = logprob_temperature(chosen)
    ratio = np.exp(np.sum(logp_of(moved, at) - logp_of(theta, at), axis=(1, 2)))
    row = np.exp(moved / 0.7)
    row /= row.sum(-1, keepdims=True)
    of_moved = np.prod(row[AT, TOKENS[:, 0]], axis=1)
    np.testing.assert_allclose([p @ ratio, (p * ratio) @ worth], [1, of_moved @ worth], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "temperature"), [("s_sppo", 1.0), ("dpo", 1.0), ("nash_md", 1.0), ("gspo", 0.7)]
)
def test_only_group_losses_take_the_samplers_temperature_and_the_gate_compares_alike(
    name, temperature
):
    chosen = config(name, sampling__temperature=0.7)
    assert logprob_temperature(chosen) == temperature
    recorded = rollout_params(chosen)
    assert (recorded.temperature, recorded.logp_temperature) == (0.7, temperature)


# ---- importance weights --------------------------------------------------------------------------


def row(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def drawn(theta, how):
    """What tokens are drawn from, float64, a row for every prefix."""
    if how != "top-2":
        return row(theta.astype(np.float64) / how)
    kept = row(theta.astype(np.float64))
    return np.where(kept > kept.min(-1, keepdims=True), kept, 0) / (1 - kept.min(-1, keepdims=True))


def weighed(chosen, how, mode="sequence_truncate", clip_max=0.0):
    """Gradient of the loss where sequences are not drawn by the policy, and are weighed; the
    problem at temperature 1, and what the tokens were drawn with, float64."""
    theta, worth, p, true = problem(0, 1.0)
    q_rows = drawn(theta, how)[AT, TOKENS[:, 0]]
    old = np.asarray(logp_of(theta, 1.0))
    sampling = np.log(np.maximum(q_rows, 1e-30))[:, None]
    weight = importance_weights(old, sampling, np.ones_like(old), mode=mode, clip_max=clip_max)
    gradient = slope_of(chosen, theta, worth, q_rows.prod(1), old, weight)
    return gradient, (theta, worth, p, true, q_rows)


def slope_of(chosen, theta, worth, rows, old, weight):
    """Gradient of the loss at `theta`, sequences having the probabilities `rows`. An opponent
    answers with another sequence, and the better one wins the more often."""
    batch = batch_of(old, worth, rows)._replace(importance_weight=weight)
    loss, other = bind(LOSSES, chosen.loss), np.random.default_rng(3).permutation(len(rows))
    two = ROWS[chosen.loss.name] == "opponent"

    def pair(x):
        return None if x is None else jnp.concatenate([x, x[other]], 1) if two else x

    fields = {name: pair(getattr(batch, name)) for name in ("mask", "completion", "old_logp")}
    fields |= {name: pair(getattr(batch, name)) for name in ("advantage", "win_rate", "target")}
    fields |= {"ref_logp": pair(old) - 0.3 * two, "init_logp": pair(old)}
    win = (1 / (1 + np.exp(worth[other] - worth))).astype(np.float32)
    batch = batch._replace(**fields, p_win=win, importance_weight=pair(weight))

    def value(logp):
        logp = pair(logp)
        return loss(Policy(logp, jnp.zeros((*logp.shape[:2], 2))), batch)[0].result()

    of_logp = np.asarray(jit(jax.grad(value))(logp_of(theta, 1.0)))[:, 0]
    gradient, own = np.zeros(theta.shape), row(theta.astype(np.float64))
    np.add.at(gradient, AT, of_logp[..., None] * (np.eye(V)[TOKENS[:, 0]] - own[AT]))
    return gradient


@pytest.mark.parametrize("name", GROUP)
def test_sequence_weights_give_the_rewards_gradient_whatever_was_sampled_from(name):
    found, (_, _, _, true, _) = weighed(config(name), 0.6)
    assert cosine(-found, true) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["nash_md", "xpo"])
def test_sequence_weights_give_an_opponent_losss_gradient_whatever_was_sampled_from(name):
    chosen = config(name, **({"loss__alpha": 0} if name == "xpo" else {}))  # of the opponent alone
    found, (theta, worth, p, *_) = weighed(chosen, 0.6)
    own = slope_of(chosen, theta, worth, p, np.asarray(logp_of(theta, 1.0)), None)
    np.testing.assert_allclose(found, own, atol=1e-6)
    assert np.abs(own).max() > 1e-3


def test_tokens_that_are_never_drawn_stay_out_which_is_said():
    found, (theta, worth, p, true, q_rows) = weighed(config("grpo"), "top-2")
    kept = q_rows.prod(1) > 0
    assert 0.2 < p[kept].sum() < 0.9
    np.testing.assert_allclose(found, by_hand(theta, worth, p * kept), atol=2e-6)
    assert cosine(-found, true) < 0.99
    cut = {"sampling__top_k": 2, "train__importance_sampling_correction": True}
    (caution,) = schema.cautions(config("grpo", **cut))
    assert "cannot bring back the tokens that are never drawn" in caution


def by_hand(theta, worth, weight):
    """GRPO's gradient at the policy itself, float64: minus the sum of weight A/L times the scores;
    a weight for every sequence, or for each of its tokens."""
    scores, own = np.zeros(theta.shape), row(theta.astype(np.float64))
    weight = np.broadcast_to(np.reshape(weight, (len(worth), -1)), (len(worth), L))
    for s, (at, tokens) in enumerate(zip(AT, TOKENS[:, 0], strict=True)):
        for t in range(L):
            score = np.eye(V)[tokens[t]] - own[at[t]]
            scores[at[t]] -= weight[s, t] * worth[s] / L * score
    return scores


@pytest.mark.parametrize("mode", MODES)
def test_a_cap_takes_away_what_is_above_it(mode):
    cap = 1.3 if mode.startswith("token") else 3.0
    found, (theta, worth, p, _, q_rows) = weighed(config("grpo"), 0.6, mode, cap)
    q, token = q_rows.prod(1), row(theta.astype(np.float64))[AT, TOKENS[:, 0]] / q_rows
    w = token if mode.startswith("token") else np.repeat((p / q)[:, None], L, 1)
    assert 0.1 < (w > cap).mean() < 0.9
    w = np.where(w > cap, 0.0 if mode.endswith("mask") else cap, w)
    np.testing.assert_allclose(found, by_hand(theta, worth, q[:, None] * w), atol=2e-6)


# ---- the first update of a rollout ---------------------------------------------------------------


@pytest.mark.parametrize("name", GROUP)
def test_in_the_first_update_the_policys_own_log_probs_give_the_on_policy_value_and_gradient(name):
    """J = E[A] = 0 and the gradient of E[R], however far another program's rounding is off: 1e-3
    is three times GSPO's clip. CISPO's J is E[A log pi], and SAPO adds a constant by A's sign."""
    chosen = config(name)
    value, gradient, true = surrogate(chosen, off=1e-3, on_policy=True)
    exact, unmoved, _ = surrogate(chosen)
    if name not in ("cispo", "sapo"):
        assert value == pytest.approx(0, abs=1e-6)
    assert value == pytest.approx(exact, abs=1e-6)
    np.testing.assert_allclose(gradient, unmoved, atol=1e-6)
    assert cosine(-gradient, true) == pytest.approx(1, abs=1e-5)


def test_scored_log_probs_that_are_off_are_clipped_as_if_the_policy_had_moved():
    _, clipped, true = surrogate(config("gspo"), off=1e-3)
    assert cosine(-clipped, true) < 0.99

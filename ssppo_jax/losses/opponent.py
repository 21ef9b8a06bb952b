"""Losses on a policy and its opponent: a sample y of the policy pi_t at k=0 and one y' of the
opponent at k=1.

They stay in this order whoever wins; `batch.p_win` is P(y > y'). The opponent is the geometric
mixture of the policy and the reference, drawn token by token from what is proportional to pi_t^(1 -
mixture_coef) * pi_ref^mixture_coef. No formula here uses `mixture_coef`: it is a keyword because it
belongs to the method, and the sampler reads it from here.

Notation: r = log pi - log pi_ref of a response, summed over its tokens (`core.sequence_logratio`);
s is the logistic function; sg stops the gradient. beta*r is the implicit reward that is logged."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ssppo_jax.losses.core import (
    clean,
    require,
    sequence_logratio,
    sequence_sum,
    sum_terms,
    weighted_mean,
)
from ssppo_jax.types import Array, Batch, Mean, Metrics, Policy

ROWS = "opponent"
LOSS_TYPES = ("sigmoid", "ipo")


def _opponents(policy: Policy, batch: Batch) -> tuple[Policy, Batch, Float[Array, "B 2"]]:
    """Clean a batch and return it with r. Raises ValueError unless K is 2."""
    if policy.logp.shape[1] != 2:
        raise ValueError(
            "an opponent loss needs K=2 (a sample of the policy at 0, of its opponent at 1), got"
            f" logp of shape {tuple(policy.logp.shape)}: draw one sample of each, or use a pair or"
            " group loss"
        )
    policy, batch = clean(policy, batch)
    return policy, batch, sequence_logratio(policy.logp, batch.ref_logp, batch.mask)


def _check(beta: float, mixture_coef: float) -> None:
    require(beta > 0, "beta", beta, "must be > 0", "give a positive number")
    rule = "must be in [0, 1]"
    remedy = "0 is the policy itself, 1 the reference"
    require(0 <= mixture_coef <= 1, "mixture_coef", mixture_coef, rule, remedy)


def _label(batch: Batch) -> Float[Array, "B"]:
    """Return 1 where the policy's sample wins, 0 where the opponent's does, 1/2 at a tie."""
    return jnp.heaviside(batch.p_win - 0.5, 0.5)


def _finish(
    terms: Mapping[str, Float[Array, "B"]], r: Float[Array, "B 2"], batch: Batch, beta: float
) -> tuple[Mean, Metrics]:
    """Average the terms over real rows; log rewards, who won, and the KL to the reference.

    At a tie winner and loser are both the mean of the two, the margin is 0, and the accuracy does
    not count the row. `kl/ref_k1` is log pi/pi_ref of the policy's sample, whose mean is KL(pi ||
    pi_ref) while pi = pi_t."""
    weight, label = batch.weight, _label(batch)
    loss, metrics = sum_terms({name: weighted_mean(term, weight) for name, term in terms.items()})
    winner = beta * (label * r[:, 0] + (1.0 - label) * r[:, 1])
    loser = beta * (label * r[:, 1] + (1.0 - label) * r[:, 0])
    tie = label == 0.5
    logged = {
        "rewards/chosen": winner,
        "rewards/rejected": loser,
        "rewards/margins": winner - loser,
        "opponent/p_win": batch.p_win,
        "opponent/ties": tie,
        "kl/ref_k1": r[:, 0],
    }
    metrics |= {name: weighted_mean(value, weight) for name, value in logged.items()}
    return loss, metrics | {"rewards/accuracies": weighted_mean(winner > loser, weight * ~tie)}


def nash_md(
    policy: Policy, batch: Batch, *, beta: float = 0.1, mixture_coef: float = 0.5
) -> tuple[Mean, Metrics]:
    """Nash-MD: beta sum_t sg(log pi/pi_ref)_t log pi_t(y) - (P(y > y') - 1/2) sum_t log pi_t(y).

    arXiv 2312.00886, Nash-MD-PG (their tau is beta, their beta mixture_coef); TRL's NashMDTrainer.
    From the paper: the policy gradient with 1/2 as its baseline, on the policy's own sample alone,
    and the opponent mixed one token at a time. From TRL: the defaults, and that a token is weighed
    by its own log-ratio where the paper weighs every token by the whole response's. TRL's way is
    the gradient of the KL at each token with the tokens before it held fixed; it varies less, and
    does not credit a token with the KL of those it leads to. For one token the two are the same.

    Only the gradient means something: the value is that of a surrogate, whatever its sign. It is a
    policy gradient at pi = pi_t, so it is meant for one update per rollout. In a tabular game one
    natural-gradient step of size mixture_coef/beta is the paper's mirror descent step, exactly
    (`tests/experiments/test_game.py`).

    Args:
      beta: strength of the tie to the reference
      mixture_coef: share of the reference in the opponent, in [0, 1]; read by the sampler alone
    """
    _check(beta, mixture_coef)
    policy, batch, r = _opponents(policy, batch)
    log_ratio = jax.lax.stop_gradient(policy.logp - batch.ref_logp)
    logp = policy.logp
    if batch.importance_weight is not None:
        logp = batch.importance_weight * logp
    terms = {
        "kl": beta * sequence_sum(log_ratio * logp, batch.mask)[:, 0],
        "preference": -(batch.p_win - 0.5) * sequence_sum(logp, batch.mask)[:, 0],
    }
    return _finish(terms, r, batch, beta)


def xpo(
    policy: Policy,
    batch: Batch,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    alpha: float = 1e-5,
    mixture_coef: float = 1.0,
) -> tuple[Mean, Metrics]:
    """XPO: online DPO, -log s(beta (r_w - r_l)), plus alpha sum_t log pi(y'), away from the
    reference.

    arXiv 2405.21046 Algorithm 1; TRL's XPOTrainer, whose `ipo` is (r_w - r_l - 1/(2 beta))^2 on
    sums over tokens. The winner w is the likelier one by p_win, a hard label as in TRL (the paper
    draws it). At exactly 1/2 both orders count half, which is the mean of the coin flip and favours
    neither; TRL takes the policy's sample for the winner. The paper sums over all rollouts so far,
    this over the rows of the batch. With alpha 0 and mixture_coef 0 it is online DPO on two samples
    of the policy.

    Args:
      loss_type: sigmoid (DPO) or ipo
      beta: strength of the tie to the reference; with ipo the margin aimed at is 1/(2 beta)
      alpha: weight of the exploration term, which lowers the log-prob of the opponent's sample; 0
        is online DPO
      mixture_coef: share of the reference in the opponent, in [0, 1]; 1 is XPO's; read by the
        sampler alone
    """
    _check(beta, mixture_coef)
    known, rule = loss_type in LOSS_TYPES, "must be sigmoid or ipo"
    require(known, "loss_type", loss_type, rule, "write 'sigmoid'")
    remedy = "it weighs the exploration term; 0 leaves it out"
    require(alpha >= 0, "alpha", alpha, "must be >= 0", remedy)
    policy, batch, r = _opponents(policy, batch)
    label, margin = _label(batch), r[:, 0] - r[:, 1]

    def loss(d: Array) -> Array:
        return -jax.nn.log_sigmoid(beta * d) if loss_type == "sigmoid" else (d - 0.5 / beta) ** 2

    preference = label * loss(margin) + (1.0 - label) * loss(-margin)
    if batch.importance_weight is not None:  # of a whole response, the same at all its tokens
        preference = preference * batch.importance_weight[:, 0, 0]
    terms = {
        "preference": preference,
        "exploration": alpha * sequence_sum(policy.logp, batch.mask)[:, 1],
    }
    return _finish(terms, r, batch, beta)


LOSSES = {function.__name__: function for function in (nash_md, xpo)}
# one sample of the policy, one of its opponent, which is made with the initial policy
COMPANIONS = {name: {"sampling.num_samples": 2, "train.reference": "initial"} for name in LOSSES}

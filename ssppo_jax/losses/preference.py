"""Losses on pairs: winner at k=0, loser at k=1.

Notation: r = log pi - log pi_ref of a response, summed over its tokens (`core.sequence_logratio`);
D = r_w - r_l; bars are means per token; s is the logistic function. Unless said otherwise beta*r is
the implicit reward that is logged."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ssppo_jax.losses.core import (
    clean,
    cosine,
    require,
    sequence_logratio,
    sequence_mean,
    sum_terms,
    weighted_mean,
)
from ssppo_jax.types import Array, Batch, Mean, Metrics, Policy

ROWS = "pair"
MIN_NLL = 1e-6  # ORPO's log-odds are infinite at probability 1


def _pair(policy: Policy, batch: Batch) -> tuple[Policy, Batch, Float[Array, "B 2"]]:
    """Clean a batch of pairs and return it with r. Raises ValueError unless K is 2."""
    if policy.logp.shape[1] != 2:
        raise ValueError(
            "a pair loss needs K=2 (winner at 0, loser at 1), got logp of shape"
            f" {tuple(policy.logp.shape)}: select two of the K samples first (pairs.make_pairs), or"
            " use a group loss"
        )
    policy, batch = clean(policy, batch)
    return policy, batch, sequence_logratio(policy.logp, batch.ref_logp, batch.mask)


def _positive(**fields: float) -> None:
    for field, value in fields.items():
        require(value > 0, field, value, "must be > 0", "give a positive number")


def _smoothing(value: float, limit: float, *, open_at_zero: bool = False) -> None:
    low = value > 0 if open_at_zero else value >= 0
    rule = f"must be in {'(' if open_at_zero else '['}0, {limit})"
    remedy = "it is the chance that a label is wrong"
    require(low and value < limit, "label_smoothing", value, rule, remedy)


def _finish(
    terms: Mapping[str, Float[Array, "B"]], reward: Float[Array, "B 2"], batch: Batch
) -> tuple[Mean, Metrics]:
    """Average the terms over real rows; log the implicit rewards, their accuracy and margin."""
    weight = batch.weight
    loss, metrics = sum_terms({name: weighted_mean(term, weight) for name, term in terms.items()})
    winner, loser = reward[:, 0], reward[:, 1]
    rewards = {
        "rewards/chosen": winner,
        "rewards/rejected": loser,
        "rewards/margins": winner - loser,
        "rewards/accuracies": winner > loser,
    }
    return loss, metrics | {name: weighted_mean(x, weight) for name, x in rewards.items()}


def _regression(
    r: Float[Array, "B 2"], win_rate: Float[Array, "B 2"], beta: float, log_z_coef: float
) -> Float[Array, "B 2"]:
    """Return the squared distance of r to (P - log_z_coef)/beta."""
    _positive(beta=beta)
    rule = "must be in [0, 1]"
    require(0 <= log_z_coef <= 1, "log_z_coef", log_z_coef, rule, "0.5 is the papers'")
    return (r - (win_rate - log_z_coef) / beta) ** 2


def _target_metrics(batch: Batch) -> Metrics:
    """Log win rates before and after the gate, and their margins, in units of probability."""
    values = {
        f"{kind}_{name}": value
        for kind, rate in (("raw", batch.win_rate), ("calibrated", batch.target))
        for name, value in (
            ("winner", rate[:, 0]),
            ("loser", rate[:, 1]),
            ("margin", rate[:, 0] - rate[:, 1]),
        )
    }
    return {f"target/{name}": weighted_mean(value, batch.weight) for name, value in values.items()}


def s_sppo(
    policy: Policy,
    batch: Batch,
    *,
    beta: float = 1e-3,
    repulsion_weight: float = 1.0,
    log_z_coef: float = 0.5,
    pair_reduction: str = "mean",
) -> tuple[Mean, Metrics]:
    """Semantic SPPO: regression onto the gated win rate plus latent repulsion of winner and loser.

        1/2 sum_y (r(y) - (P^c(y) - log_z_coef)/beta)^2 + repulsion_weight * cos(h_w, h_l)

    arXiv 2606.01561, eq. 3.1, 3.2 and Algorithm 1. P^c is `batch.target` (gated when the pairs were
    made); h are the policy's pooled hidden states, and the gradient flows through both. The 1/2
    follows from Algorithm 1's expectation over single rows (reconstruction, as in SPPO's code);
    where h is pooled is not said there and is the model's choice.

    The gate always pulls P^c to 1/2. With log_z_coef = 1/2 a pair of identical meaning is thus held
    at r = 0; with another value it is asked for r = (1/2 - log_z_coef)/beta on both responses, that
    is, both are moved together.

    Args:
      beta: 1/eta, the inverse step size of the self-play update; targets are (P - log_z_coef)/beta
      repulsion_weight: weight lambda of the cosine between the hidden states of winner and loser; 0
        turns it off
      log_z_coef: the constant put for beta * log Z, between 0.5 (fair coin flips) and 1 (a strict
        order)
      pair_reduction: mean or sum of the two squared errors of a pair
    """
    require(repulsion_weight >= 0, "repulsion_weight", repulsion_weight, "must be >= 0", "0 is off")
    known, rule = pair_reduction in ("mean", "sum"), "must be mean or sum"
    require(known, "pair_reduction", pair_reduction, rule, "write 'mean'")
    policy, batch, r = _pair(policy, batch)
    similarity = cosine(policy.hidden[:, 0], policy.hidden[:, 1])
    error = _regression(r, batch.target, beta, log_z_coef)
    terms = {
        "regression": (
            jnp.mean(error, axis=-1) if pair_reduction == "mean" else jnp.sum(error, axis=-1)
        ),
        "repulsion": repulsion_weight * similarity,
    }
    loss, metrics = _finish(terms, beta * r, batch)
    similarities = {
        "similarity/hidden": weighted_mean(similarity, batch.weight),
        "similarity/semantic": weighted_mean(batch.similarity, batch.weight),
    }
    return loss, metrics | _target_metrics(batch) | similarities


def sppo(
    policy: Policy, batch: Batch, *, beta: float = 1e-3, log_z_coef: float = 0.5
) -> tuple[Mean, Metrics]:
    """SPPO: 1/2 [(r_w - (P_w - log_z_coef)/beta)^2 + (r_l - (P_l - log_z_coef)/beta)^2], P =
    `batch.win_rate`.

    arXiv 2405.00675 eq. 4.7 and the authors' loss_type "sppo", which has the 1/2.

    Args:
      beta: 1/eta, the inverse step size of the self-play update; targets are (P - log_z_coef)/beta
      log_z_coef: the constant put for beta * log Z, between 0.5 (fair coin flips) and 1 (a strict
        order)
    """
    _, batch, r = _pair(policy, batch)
    error = _regression(r, batch.win_rate, beta, log_z_coef)
    loss, metrics = _finish({"regression": jnp.mean(error, axis=-1)}, beta * r, batch)
    return loss, metrics | _target_metrics(batch)


def sppo_single(
    policy: Policy, batch: Batch, *, beta: float = 1e-3, log_z_coef: float = 0.5
) -> tuple[Mean, Metrics]:
    """SPPO on one comparison: `sppo` with P_w = `batch.p_win` and P_l = 1 - p_win (the authors'
    "sppo_single").

    Args:
      beta: 1/eta, the inverse step size of the self-play update; targets are (P - log_z_coef)/beta
      log_z_coef: the constant put for beta * log Z, between 0.5 (fair coin flips) and 1 (a strict
        order)
    """
    _, batch, r = _pair(policy, batch)
    error = _regression(r, jnp.stack([batch.p_win, 1.0 - batch.p_win], axis=-1), beta, log_z_coef)
    return _finish({"regression": jnp.mean(error, axis=-1)}, beta * r, batch)


def sppo_hard(policy: Policy, batch: Batch, *, beta: float = 1e-3) -> tuple[Mean, Metrics]:
    """SPPO with the winner certain: (r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2, without a factor
    1/2.

    TRL's loss_type "sppo_hard": twice `sppo_single` at p_win = 1.

    Args:
      beta: 1/eta, the inverse step size of the self-play update; targets are +-1/(2 beta)
    """
    _, batch, r = _pair(policy, batch)
    error = _regression(r, jnp.broadcast_to(jnp.array([[1.0, 0.0]]), r.shape), beta, 0.5)
    return _finish({"regression": jnp.sum(error, axis=-1)}, beta * r, batch)


def dpo(
    policy: Policy, batch: Batch, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> tuple[Mean, Metrics]:
    """DPO: -(1-e) log s(beta D) - e log s(-beta D), e = label_smoothing (arXiv 2305.18290 eq. 7; e
    > 0 is cDPO).

    Args:
      beta: strength of the tie to the reference
      label_smoothing: chance that a label is flipped, in [0, 0.5)
    """
    _positive(beta=beta)
    _smoothing(label_smoothing, 0.5)
    _, batch, r = _pair(policy, batch)
    z = beta * (r[:, 0] - r[:, 1])
    loss = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(z) - label_smoothing * jax.nn.log_sigmoid(
        -z
    )
    return _finish({"preference": loss}, beta * r, batch)


def robust(
    policy: Policy, batch: Batch, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> tuple[Mean, Metrics]:
    """Robust DPO: [-(1-e) log s(beta D) + e log s(-beta D)] / (1-2e), unbiased under labels flipped
    at rate e.

    arXiv 2403.00409; TRL's "robust". The plus sign makes it unbounded below as D grows, which cDPO
    is not.

    Args:
      beta: strength of the tie to the reference
      label_smoothing: chance that a label is flipped, in [0, 0.5)
    """
    _positive(beta=beta)
    _smoothing(label_smoothing, 0.5)
    _, batch, r = _pair(policy, batch)
    z = beta * (r[:, 0] - r[:, 1])
    loss = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(z) + label_smoothing * jax.nn.log_sigmoid(
        -z
    )
    return _finish({"preference": loss / (1.0 - 2.0 * label_smoothing)}, beta * r, batch)


def ipo(
    policy: Policy, batch: Batch, *, beta: float = 0.1, ipo_length_normalize: bool = True
) -> tuple[Mean, Metrics]:
    """IPO: (r_w - r_l - 1/(2 beta))^2, the paper's tau being beta (arXiv 2310.12036).

    TRL's DPO trainer averages r over the tokens (the default here); SPPO's code and TRL's CPO
    trainer sum it.

    Args:
      beta: regularisation tau; the margin aimed at is 1/(2 beta)
      ipo_length_normalize: average log-ratios over tokens instead of summing them
    """
    _positive(beta=beta)
    policy, batch, r = _pair(policy, batch)
    if ipo_length_normalize:
        r = sequence_mean(policy.logp - batch.ref_logp, batch.mask)
    return _finish({"preference": (r[:, 0] - r[:, 1] - 0.5 / beta) ** 2}, beta * r, batch)


def hinge(policy: Policy, batch: Batch, *, beta: float = 0.1) -> tuple[Mean, Metrics]:
    """Hinge: max(0, 1 - beta D) (SLiC, arXiv 2305.10425, normalised by the reference as in RSO,
    2309.06657).

    Args:
      beta: inverse of the margin after which a pair no longer pushes
    """
    _positive(beta=beta)
    _, batch, r = _pair(policy, batch)
    return _finish({"preference": jax.nn.relu(1.0 - beta * (r[:, 0] - r[:, 1]))}, beta * r, batch)


def simpo(
    policy: Policy, batch: Batch, *, beta: float = 0.1, simpo_gamma: float = 0.5
) -> tuple[Mean, Metrics]:
    """SimPO: -log s(beta (mean log pi_w - mean log pi_l) - gamma), no reference (arXiv 2405.14734
    eq. 6).

    Defaults are TRL's; the paper works at beta 2 to 2.5 with gamma/beta near 0.5. Reward: beta *
    mean log pi.

    Args:
      beta: scale of the length-normalised log-probabilities
      simpo_gamma: margin by which the winner must lead, in units of the reward
    """
    _positive(beta=beta)
    policy, batch, _ = _pair(policy, batch)
    reward = beta * sequence_mean(policy.logp, batch.mask)
    loss = -jax.nn.log_sigmoid(reward[:, 0] - reward[:, 1] - simpo_gamma)
    return _finish({"preference": loss}, reward, batch)


def orpo(policy: Policy, batch: Batch, *, beta: float = 0.1) -> tuple[Mean, Metrics]:
    """ORPO: NLL(w) - beta log s(logodds_w - logodds_l), logodds = m - log(1 - e^m), m the mean
    token log-prob.

    arXiv 2403.07691 eq. 6-7, no reference. NLL is the winner's token mean over the completion, then
    the mean over rows (TRL averages all tokens of the batch, prompt included). m is capped at
    -1e-6, where the odds would be infinite. Reward: beta * m.

    Args:
      beta: weight lambda of the odds-ratio term
    """
    _positive(beta=beta)
    policy, batch, _ = _pair(policy, batch)
    mean_logp = sequence_mean(policy.logp, batch.mask)
    capped = jnp.minimum(mean_logp, -MIN_NLL)
    log_odds = capped - jnp.log(-jnp.expm1(capped))
    terms = {
        "nll": -mean_logp[:, 0],
        "odds_ratio": -beta * jax.nn.log_sigmoid(log_odds[:, 0] - log_odds[:, 1]),
    }
    return _finish(terms, beta * mean_logp, batch)


def kto_pair(policy: Policy, batch: Batch, *, beta: float = 0.1) -> tuple[Mean, Metrics]:
    """KTO on a pair: 1/2 [1 - s(beta (r_w - KL_l)) + 1 - s(beta (KL_w - r_l))], KL_y = max(0, r_y),
    no gradient.

    After SPPO's code (KTO: arXiv 2402.01306). There KL is the mean of r over the device's batch, so
    the loss of a pair depends on its neighbours and 8 micro-batches of 1 are not 1 of 8. Here each
    pair brings its own KL: equal to that code at one pair per device. KL carries no gradient, as in
    the KTO paper.

    Args:
      beta: strength of the tie to the reference
    """
    _positive(beta=beta)
    _, batch, r = _pair(policy, batch)
    kl = jax.lax.stop_gradient(jax.nn.relu(r))
    winner = 1.0 - jax.nn.sigmoid(beta * (r[:, 0] - kl[:, 1]))
    loser = 1.0 - jax.nn.sigmoid(beta * (kl[:, 0] - r[:, 1]))
    return _finish({"preference": 0.5 * (winner + loser)}, beta * r, batch)


def exo_pair(
    policy: Policy, batch: Batch, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> tuple[Mean, Metrics]:
    """EXO: reverse KL of q = (s(beta D), s(-beta D)) to the smoothed label (1-e, e) (arXiv
    2402.00856).

        q_w (log q_w - log(1-e)) + q_l (log q_l - log e)

    Args:
      beta: strength of the tie to the reference
      label_smoothing: probability e left to the loser, in (0, 0.5)
    """
    _positive(beta=beta)
    _smoothing(label_smoothing, 0.5, open_at_zero=True)
    _, batch, r = _pair(policy, batch)
    z = beta * (r[:, 0] - r[:, 1])
    loss = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-label_smoothing))
    loss += jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(label_smoothing))
    return _finish({"preference": loss}, beta * r, batch)


def nca_pair(policy: Policy, batch: Batch, *, beta: float = 0.1) -> tuple[Mean, Metrics]:
    """NCA: -log s(beta r_w) - 1/2 log s(-beta r_w) - 1/2 log s(-beta r_l) (arXiv 2402.05369; TRL's
    "nca_pair").

    Args:
      beta: strength of the tie to the reference
    """
    _positive(beta=beta)
    _, batch, r = _pair(policy, batch)
    reward = beta * r
    loss = -jax.nn.log_sigmoid(reward[:, 0]) - 0.5 * jnp.sum(jax.nn.log_sigmoid(-reward), axis=-1)
    return _finish({"preference": loss}, reward, batch)


def bco_pair(policy: Policy, batch: Batch, *, beta: float = 0.1) -> tuple[Mean, Metrics]:
    """BCO: -log s(beta r_w) - log s(-beta r_l) (arXiv 2404.04656), without the paper's running
    reward shift.

    Args:
      beta: strength of the tie to the reference
    """
    _positive(beta=beta)
    _, batch, r = _pair(policy, batch)
    reward = beta * r
    loss = -jax.nn.log_sigmoid(reward[:, 0]) - jax.nn.log_sigmoid(-reward[:, 1])
    return _finish({"preference": loss}, reward, batch)


def apo_zero(policy: Policy, batch: Batch, *, beta: float = 0.1) -> tuple[Mean, Metrics]:
    """APO-zero: 1 - s(beta r_w) + s(beta r_l): winner up, loser down; for a policy worse than the
    winner.

    arXiv 2408.06266.

    Args:
      beta: strength of the tie to the reference
    """
    _positive(beta=beta)
    _, batch, r = _pair(policy, batch)
    p = jax.nn.sigmoid(beta * r)
    return _finish({"preference": 1.0 - p[:, 0] + p[:, 1]}, beta * r, batch)


def apo_down(policy: Policy, batch: Batch, *, beta: float = 0.1) -> tuple[Mean, Metrics]:
    """APO-down: s(beta r_w) + 1 - s(beta D): both down, the loser more; for a policy better than
    the winner.

    arXiv 2408.06266.

    Args:
      beta: strength of the tie to the reference
    """
    _positive(beta=beta)
    _, batch, r = _pair(policy, batch)
    loss = jax.nn.sigmoid(beta * r[:, 0]) + 1.0 - jax.nn.sigmoid(beta * (r[:, 0] - r[:, 1]))
    return _finish({"preference": loss}, beta * r, batch)


def inpo(
    policy: Policy, batch: Batch, *, eta: float = 0.0075, tau: float = 0.0025
) -> tuple[Mean, Metrics]:
    """INPO: [log(pi_w/pi_l) - tau/eta log(ref_w/ref_l) - (1 - tau/eta) log(pi_t,w/pi_t,l) - 1/(2
    eta)]^2.

    arXiv 2407.00617 (reconstruction, defaults included). `batch.ref_logp` is the regularising
    reference, the initial policy, which comes with the loss (`COMPANIONS`), and `batch.old_logp`
    pi_t. With tau = 0 it is `ipo` against pi_t without length normalisation. Reward: eta times the
    bracket's contribution of one response.

    Args:
      eta: the paper's step constant; the margin aimed at is 1/(2 eta)
      tau: weight of the reference against pi_t, in [0, eta]
    """
    _positive(eta=eta)
    rule = f"must be in [0, eta], eta being {eta!r}"
    require(0 <= tau <= eta, "tau", tau, rule, "eta/3 is the default")
    policy, batch, r = _pair(policy, batch)
    r_t = sequence_logratio(policy.logp, batch.old_logp, batch.mask)
    mixed = (tau / eta) * r + (1.0 - tau / eta) * r_t
    return _finish({"preference": (mixed[:, 0] - mixed[:, 1] - 0.5 / eta) ** 2}, eta * mixed, batch)


LOSSES = {
    function.__name__: function
    for function in (
        s_sppo,
        sppo,
        sppo_single,
        sppo_hard,
        dpo,
        robust,
        ipo,
        hinge,
        simpo,
        orpo,
        kto_pair,
        exo_pair,
        nca_pair,
        bco_pair,
        apo_zero,
        apo_down,
        inpo,
    )
}
TIES = {  # losses that regress onto a win rate, which a tie has; all others have a hard label
    "s_sppo": "gated win rates of 1/2",
    "sppo": "win rates of 1/2",
    "sppo_single": "P(winner > loser) as judged: 1/2, but for a cycle",
}
COMPANIONS = {"inpo": {"train.reference": "initial"}}  # what tau weighs against pi_t

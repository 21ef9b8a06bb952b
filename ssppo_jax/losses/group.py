"""Losses on groups: K responses per prompt, each with an advantage.

Notation: u = log pi - log pi_old of a token, pi_old being the policy that sampled it
(`batch.old_logp`, fixed for all updates of a rollout); r = e^u; A the advantage of the response
(`batch.advantage`, a constant); L its length; s = exp(mean of u over its tokens), the
length-normalised sequence ratio. Papers maximise J; a loss is -J. Names of losses and keywords are
TRL's, those of `loss_agg_mode` verl's.

With `beta` > 0 every loss adds beta * KL(pi || pi_ref) by the k3 estimate, aggregated as the
surrogate is. pi_ref is the initial policy, as TRL's and verl's, unless `train.kl_reference` says
otherwise.

Means are over responses or over tokens of real rows, and merge: micro-batches of any cut give the
same gradient. A response without tokens (one masked because it was truncated) adds 0 and counts as
a response, as in TRL."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from ssppo_jax import losses
from ssppo_jax.config import entry
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses.core import (
    clean,
    require,
    sequence_mean,
    sequence_sum,
    sum_terms,
    weighted_mean,
)
from ssppo_jax.losses.ratio_gates import MAX_LOG_RATIO, Gated, ratio
from ssppo_jax.types import Array, Batch, Max, Mean, Metrics, Min, Policy

ROWS = "group"
LOSS_AGG_MODES = ("token-mean", *(f"seq-mean-token-{how}" for how in ("mean", "sum", "sum-norm")))


Tokens = Float[Array, "B K T"]
Responses = Float[Array, "B K"]


def _group(policy: Policy, batch: Batch) -> tuple[Policy, Batch, Tokens, Tokens]:
    """Clean a batch and return it with u and A spread over the tokens."""
    policy, batch = clean(policy, batch)
    u = policy.logp - batch.old_logp
    return policy, batch, u, _spread(batch.advantage, u)


def _spread(x: Float[Array, "B K"], tokens: Float[Array, "B K T"]) -> Tokens:
    """Repeat the value of each response at each of its tokens."""
    return jnp.broadcast_to(x[:, :, None], tokens.shape)


def _clip_range(epsilon: float, epsilon_high: float) -> tuple[float, float]:
    """Return (epsilon, epsilon_high); the second falls back on the first, as in TRL."""
    require(epsilon > 0, "epsilon", epsilon, "must be > 0", "it is how far a ratio may go below 1")
    rule = "must be >= 0"
    require(epsilon_high >= 0, "epsilon_high", epsilon_high, rule, "0 means the same as epsilon")
    return epsilon, epsilon_high or epsilon


def _aggregate(
    x: Float[Array, "B K T"], batch: Batch, mode: str, max_completion_length: int = 0
) -> Mean:
    """Average over tokens, or over responses their token mean, sum, or sum / max_completion_length.

    A max_completion_length of 0 stands for T."""
    allowed = "must be one of " + ", ".join(LOSS_AGG_MODES)
    remedy = "GRPO's is seq-mean-token-mean, DAPO's token-mean"
    require(mode in LOSS_AGG_MODES, "loss_agg_mode", mode, allowed, remedy)
    if mode == "token-mean":
        return weighted_mean(x, batch.mask * batch.weight[:, None, None])
    if mode == "seq-mean-token-mean":
        response = sequence_mean(x, batch.mask)
    else:
        response = sequence_sum(x, batch.mask)
        if mode == "seq-mean-token-sum-norm":
            response = response / (max_completion_length or x.shape[-1])
    return weighted_mean(response, jnp.broadcast_to(batch.weight[:, None], response.shape))


def _k3(d: Tokens) -> Tokens:
    """Return e^d - 1 - d >= 0 of d = log pi_ref - log pi, constant beyond d = 20: no overflow."""
    d = jnp.minimum(d, MAX_LOG_RATIO)
    return jnp.expm1(d) - d


def _finish(
    gain: Tokens,
    policy: Policy,
    batch: Batch,
    metrics: Metrics,
    *,
    beta: float,
    loss_agg_mode: str = "seq-mean-token-mean",
    max_completion_length: int = 0,
) -> tuple[Mean, Metrics]:
    """Return -J plus the KL term, J being the mean gain, and what every group loss logs.

    Importance weights multiply the gain and not the KL term, as in TRL."""
    remedy = "it weighs the KL to the reference; 0 leaves it out"
    require(beta >= 0, "beta", beta, "must be >= 0", remedy)
    if batch.importance_weight is not None:
        gain = gain * batch.importance_weight
    terms = {"surrogate": _aggregate(-gain, batch, loss_agg_mode, max_completion_length)}
    if beta:
        kl = _k3(batch.ref_logp - policy.logp)
        terms["kl"] = _aggregate(beta * kl, batch, loss_agg_mode, max_completion_length)
    loss, logged = sum_terms(terms)
    sequence = sequence_mean(policy.logp - batch.old_logp, batch.mask)
    return loss, logged | _over_responses("sequence_ratio", ratio(sequence), batch) | metrics


def _tokens(batch: Batch) -> Tokens:
    """Return the weight of each token."""
    return batch.mask * batch.weight[:, None, None]


def _responses(batch: Batch) -> Responses:
    """Return the weight of each response, 0 for those without tokens."""
    return jnp.any(batch.mask > 0, axis=-1) * batch.weight[:, None]


def _over_responses(name: str, x: Responses, batch: Batch) -> Metrics:
    """Log minimum, mean and maximum over responses that have tokens."""
    weight = _responses(batch)
    return {
        f"{name}/min": Min(jnp.min(jnp.where(weight > 0, x, jnp.inf))),
        f"{name}/mean": weighted_mean(x, weight),
        f"{name}/max": Max(jnp.max(jnp.where(weight > 0, x, -jnp.inf))),
    }


def _clip_metrics(
    low: Bool[Array, "*A"], high: Bool[Array, "*A"], weight: Float[Array, "*A"]
) -> Metrics:
    """Log the fractions that the clip left without gradient, and 1 minus the whole fraction."""
    return {
        "clip_ratio/region_mean": weighted_mean(low | high, weight),
        "clip_ratio/low_mean": weighted_mean(low, weight),
        "clip_ratio/high_mean": weighted_mean(high, weight),
        "effective_update_ratio": weighted_mean(~(low | high), weight),
    }


def _clipped(
    r: Float[Array, "*A"],
    advantage: Float[Array, "*A"],
    low: float,
    high: float,
    delta: float = 0.0,
) -> tuple[Float[Array, "*A"], Bool[Array, "*A"], Bool[Array, "*A"]]:
    """Return min(min(r, delta) A, clip(r, 1 - low, 1 + high) A), and where r fell out below, above.

    There the gradient is 0."""
    capped = jnp.minimum(r, delta) if delta else r
    gain = jnp.minimum(capped * advantage, jnp.clip(r, 1.0 - low, 1.0 + high) * advantage)
    over = (advantage > 0) & (r > 1.0 + high)
    if delta:
        over |= (advantage <= 0) & (r > delta)
    return gain, (advantage <= 0) & (r < 1.0 - low), over


# ---- soft gates ----------------------------------------------------------------------------------


def _gated(
    loss: str, u: Tokens, advantage: Tokens, gate: str, positive: float, negative: float
) -> Gated:
    """Apply the gate to every token, with one temperature for A > 0 and another for A <= 0."""
    try:
        function = entry(losses.RATIO_GATES, gate)
    except ConfigError as error:
        raise ConfigError(f"loss keyword {loss}_gate={gate!r}: {error}") from None
    least = math.pi / 2 if gate == "arctan_log_affine" else 0.0
    for sign, value in (("pos", positive), ("neg", negative)):
        name, rule = f"{loss}_temperature_{sign}", f"must be > 0 and >= {least:.4g} for {gate}"
        require(value > 0 and value >= least, name, value, rule, "10 is usual")
    temperature = jnp.where(advantage > 0, positive, negative).astype(u.dtype)
    return function(u, temperature)


def sspo(
    policy: Policy,
    batch: Batch,
    *,
    sspo_gate: str = "arctan_log",
    sspo_temperature_pos: float = 10.0,
    sspo_temperature_neg: float = 12.0,
    beta: float = 0.0,
) -> tuple[Mean, Metrics]:
    """SSPO: J = mean over responses of A exp(1/L sum_t log f(r_t)), f a soft gate on the token
    ratio.

    arXiv 2602.19327. Its abstracts say: a sequence-level importance weight built from soft token
    gates. The rest is a reconstruction from secondary sources, each choice an option: the geometric
    mean of SAPO's sigmoid (`sigmoid`) is the first version's, an arctan of the token log-ratio
    (`arctan_log`, the default) a reading of the third's. The gate is differentiated through, the
    sign of A stays outside and enters only by the temperature, and nothing is clipped. The
    temperatures are those of the same group's study of gates in SAPO (2602.19345), which has no
    `arctan_log`; 1.0/1.05 is SAPO's pair, and 3.93 gives `arctan_log` the reach of GMPO's 0.4. No
    KL: beta = 0.

    On-policy (r = 1) the gradient is A/L per token for every gate and temperature: that of GRPO,
    GSPO, GMPO and SAPO.

    Args:
      sspo_gate: gate on token ratios, a name of ratio_gates.RATIO_GATES; log_clip and identity are
        the hard limits
      sspo_temperature_pos: sharpness of the gate for responses of positive advantage
      sspo_temperature_neg: sharpness of the gate for the others
      beta: weight of the KL to the reference (k3); 0 leaves it out
    """
    policy, batch, u, advantage = _group(policy, batch)
    gated = _gated("sspo", u, advantage, sspo_gate, sspo_temperature_pos, sspo_temperature_neg)
    s = ratio(sequence_mean(gated.log_f, batch.mask))
    metrics = _over_responses("sequence_weight", s, batch)
    metrics["effective_update_ratio"] = weighted_mean(gated.slope, _tokens(batch))
    return _finish(_spread(s, u) * advantage, policy, batch, metrics, beta=beta)


def sapo(
    policy: Policy,
    batch: Batch,
    *,
    sapo_gate: str = "sigmoid",
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    beta: float = 0.0,
    loss_agg_mode: str = "seq-mean-token-mean",
) -> tuple[Mean, Metrics]:
    """SAPO: f(r_t) A per token, f = 4/temperature * sigmoid(temperature (r - 1)) (arXiv 2511.20347;
    TRL's "sapo").

    Other gates: arXiv 2602.19345, which finds temperatures 10/12 best. A constant added to f
      changes nothing here.

    Args:
      sapo_gate: gate on token ratios, a name of ratio_gates.RATIO_GATES
      sapo_temperature_pos: sharpness of the gate for responses of positive advantage
      sapo_temperature_neg: sharpness of the gate for the others
      beta: weight of the KL to the reference (k3); 0 leaves it out
      loss_agg_mode: token-mean, seq-mean-token-mean, seq-mean-token-sum or seq-mean-token-sum-norm
    """
    policy, batch, u, advantage = _group(policy, batch)
    gated = _gated("sapo", u, advantage, sapo_gate, sapo_temperature_pos, sapo_temperature_neg)
    gain = ratio(gated.log_f) * advantage
    metrics: Metrics = {"effective_update_ratio": weighted_mean(gated.slope, _tokens(batch))}
    return _finish(gain, policy, batch, metrics, beta=beta, loss_agg_mode=loss_agg_mode)


# ---- sequence ratios -----------------------------------------------------------------------------


def _clipped_responses(
    s: Responses, policy: Policy, batch: Batch, epsilon: float, epsilon_high: float, beta: float
) -> tuple[Mean, Metrics]:
    """Finish a loss that clips one ratio s per response, and count responses in its metrics."""
    low, high = _clip_range(epsilon, epsilon_high)
    gain, under, over = _clipped(s, batch.advantage, low, high)
    metrics = _clip_metrics(under, over, _responses(batch))
    return _finish(_spread(gain, policy.logp), policy, batch, metrics, beta=beta)


def gspo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 3e-4,
    epsilon_high: float = 4e-4,
    beta: float = 0.0,
) -> tuple[Mean, Metrics]:
    """GSPO: mean over responses of min(s A, clip(s, 1 - epsilon, 1 + epsilon_high) A) (arXiv
    2507.18071 eq. 5, 7).

    TRL's importance_sampling_level="sequence". EUR and clip fractions count responses.

    Args:
      epsilon: how far s may go below 1
      epsilon_high: how far s may go above 1; 0: the same as epsilon
      beta: weight of the KL to the reference (k3); 0 leaves it out
    """
    policy, batch, u, _ = _group(policy, batch)
    s = ratio(sequence_mean(u, batch.mask))
    return _clipped_responses(s, policy, batch, epsilon, epsilon_high, beta)


def gspo_token(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 3e-4,
    epsilon_high: float = 4e-4,
    beta: float = 0.0,
) -> tuple[Mean, Metrics]:
    """GSPO-token: GRPO's surrogate with s_t = sg[s] pi_t/sg[pi_t] for the ratio (arXiv 2507.18071
    eq. 13-14).

    sg stops the gradient. With one advantage per response, as here, value and gradient are those of
    `gspo`; it exists for advantages that differ from token to token.

    Args:
      epsilon: how far s may go below 1
      epsilon_high: how far s may go above 1; 0: the same as epsilon
      beta: weight of the KL to the reference (k3); 0 leaves it out
    """
    low, high = _clip_range(epsilon, epsilon_high)
    policy, batch, u, advantage = _group(policy, batch)
    s = jax.lax.stop_gradient(ratio(sequence_mean(u, batch.mask)))
    s_t = _spread(s, u) * jnp.exp(policy.logp - jax.lax.stop_gradient(policy.logp))
    gain, under, over = _clipped(s_t, advantage, low, high)
    return _finish(gain, policy, batch, _clip_metrics(under, over, _tokens(batch)), beta=beta)


def gmpo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 0.4,
    epsilon_high: float = 0.0,
    beta: float = 0.0,
) -> tuple[Mean, Metrics]:
    """GMPO: mean over responses of A exp(1/L sum_t c_t), c_t = u_t clipped in log space (arXiv
    2507.20673).

    One-sided, by the sign of A: c = min(u, epsilon_high) for A > 0 and max(u, -epsilon) else. The
    paper's and TRL's range of ratios is e^-0.4 to e^0.4.

    Args:
      epsilon: how far u may go below 0
      epsilon_high: how far u may go above 0; 0: the same as epsilon
      beta: weight of the KL to the reference (k3); 0 leaves it out
    """
    low, high = _clip_range(epsilon, epsilon_high)
    policy, batch, u, advantage = _group(policy, batch)
    up = advantage > 0
    s = ratio(sequence_mean(jnp.where(up, jnp.minimum(u, high), jnp.maximum(u, -low)), batch.mask))
    metrics = _clip_metrics(~up & (u < -low), up & (u > high), _tokens(batch))
    metrics |= _over_responses("sequence_weight", s, batch)
    return _finish(_spread(s, u) * advantage, policy, batch, metrics, beta=beta)


def rloo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.0,
    beta: float = 0.0,
) -> tuple[Mean, Metrics]:
    """RLOO: mean over responses of min(s A, clip(s, 1 - epsilon, 1 + epsilon_high) A), s = exp(sum
    of u over tokens).

    arXiv 2402.14740 with the clipped sequence ratio of TRL's RLOOTrainer. Its leave-one-out
    advantage comes with it (`COMPANIONS`). Differs from TRL in the KL, which is a term of the loss
    here (k3) and part of the reward there (k1). On-policy the gradient is A times the sum of the
    token scores: REINFORCE with the baseline. EUR and clip fractions count responses.

    Args:
      epsilon: how far s may go below 1
      epsilon_high: how far s may go above 1; 0: the same as epsilon
      beta: weight of the KL to the reference (k3); 0 leaves it out
    """
    policy, batch, u, _ = _group(policy, batch)
    s = ratio(sequence_sum(u, batch.mask))
    loss, metrics = _clipped_responses(s, policy, batch, epsilon, epsilon_high, beta)
    return loss, metrics | _over_responses("sequence_weight", s, batch)


# ---- token ratios --------------------------------------------------------------------------------


def _ppo(
    policy: Policy, batch: Batch, epsilon: float, epsilon_high: float, delta: float, **finish: Any
) -> tuple[Mean, Metrics]:
    """Return the clipped token surrogate, which GRPO and its relatives average differently."""
    low, high = _clip_range(epsilon, epsilon_high)
    rule = f"must be 0 or > 1 + epsilon_high = {1 + high:g}"
    require(delta == 0 or delta > 1 + high, "delta", delta, rule, "0: no cap")
    policy, batch, u, advantage = _group(policy, batch)
    gain, under, over = _clipped(ratio(u), advantage, low, high, delta)
    return _finish(gain, policy, batch, _clip_metrics(under, over, _tokens(batch)), **finish)


def grpo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.0,
    delta: float = 0.0,
    beta: float = 0.0,
    loss_agg_mode: str = "seq-mean-token-mean",
) -> tuple[Mean, Metrics]:
    """GRPO: min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) per token (arXiv 2402.03300 eq. 3).

    `delta` caps r where A < 0, which the paper leaves unbounded (INTELLECT-2, arXiv 2505.07291;
    TRL's `delta`).

    Args:
      epsilon: how far r may go below 1
      epsilon_high: how far r may go above 1; 0: the same as epsilon
      delta: cap on r for responses of negative advantage, above 1 + epsilon_high; 0: none
      beta: weight of the KL to the reference (k3); 0 leaves it out
      loss_agg_mode: token-mean, seq-mean-token-mean, seq-mean-token-sum or seq-mean-token-sum-norm
    """
    clip = (epsilon, epsilon_high, delta)
    return _ppo(policy, batch, *clip, beta=beta, loss_agg_mode=loss_agg_mode)


def dr_grpo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.0,
    delta: float = 0.0,
    beta: float = 0.0,
    max_completion_length: int = 0,
) -> tuple[Mean, Metrics]:
    """Dr. GRPO: GRPO's surrogate summed over tokens and divided by a constant length (arXiv
    2503.20783).

    Its other half, an advantage that is not divided by the std, comes with it (`COMPANIONS`).

    Args:
      epsilon: how far r may go below 1
      epsilon_high: how far r may go above 1; 0: the same as epsilon
      delta: cap on r for responses of negative advantage, above 1 + epsilon_high; 0: none
      beta: weight of the KL to the reference (k3); 0 leaves it out
      max_completion_length: the constant length; 0: T, the completion slots of the batch
    """
    given = max_completion_length
    require(given >= 0, "max_completion_length", given, "must be >= 0", "0 means T itself")
    clip, mode = (epsilon, epsilon_high, delta), "seq-mean-token-sum-norm"
    return _ppo(policy, batch, *clip, beta=beta, loss_agg_mode=mode, max_completion_length=given)


def bnpo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.0,
    delta: float = 0.0,
    beta: float = 0.0,
) -> tuple[Mean, Metrics]:
    """BNPO, as TRL names it: GRPO's surrogate averaged over all tokens of the batch.

    TRL averages within each micro-batch; here the tokens of the whole optimizer step are averaged,
    whatever its cut. (The advantage normalisation of arXiv 2506.02864, which the name comes from,
    is not part of it, nor in TRL.)

    Args:
      epsilon: how far r may go below 1
      epsilon_high: how far r may go above 1; 0: the same as epsilon
      delta: cap on r for responses of negative advantage, above 1 + epsilon_high; 0: none
      beta: weight of the KL to the reference (k3); 0 leaves it out
    """
    clip = (epsilon, epsilon_high, delta)
    return _ppo(policy, batch, *clip, beta=beta, loss_agg_mode="token-mean")


def dapo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.28,
    delta: float = 0.0,
    beta: float = 0.0,
) -> tuple[Mean, Metrics]:
    """DAPO: GRPO's surrogate with a higher upper clip, averaged over all tokens (arXiv 2503.14476
    eq. 8).

    The tokens are those of one optimizer step (TRL: of a generation batch, scaled). Its other parts
    act before the loss and come with it (`COMPANIONS`): groups of equal rewards left out
    (`advantages.zero_std`), the length reward (`advantages.soft_overlong`), truncated responses
    masked.

    Args:
      epsilon: how far r may go below 1
      epsilon_high: how far r may go above 1; 0: the same as epsilon
      delta: cap on r for responses of negative advantage, above 1 + epsilon_high; 0: none
      beta: weight of the KL to the reference (k3); 0 leaves it out
    """
    clip = (epsilon, epsilon_high, delta)
    return _ppo(policy, batch, *clip, beta=beta, loss_agg_mode="token-mean")


def cispo(
    policy: Policy,
    batch: Batch,
    *,
    epsilon_high: float = 5.0,
    beta: float = 0.0,
    loss_agg_mode: str = "token-mean",
) -> tuple[Mean, Metrics]:
    """CISPO: sg[min(r, epsilon_high)] A log pi per token (arXiv 2506.13585 eq. 4-5): all tokens
    keep a gradient.

    As in TRL the cap is `epsilon_high` itself, not 1 + epsilon_high, and there is none below.
    Capped tokens count as clipped whatever the sign of A (TRL counts A > 0), and EUR is 1 minus
    their fraction.

    Args:
      epsilon_high: the largest weight of a token, above 1
      beta: weight of the KL to the reference (k3); 0 leaves it out
      loss_agg_mode: token-mean, seq-mean-token-mean, seq-mean-token-sum or seq-mean-token-sum-norm
    """
    require(
        epsilon_high > 1,
        "epsilon_high",
        epsilon_high,
        "must be > 1",
        "it is the cap on r itself; 5.0 is usual",
    )
    policy, batch, u, advantage = _group(policy, batch)
    r = jax.lax.stop_gradient(ratio(u))
    gain = jnp.minimum(r, epsilon_high) * advantage * policy.logp
    metrics = _clip_metrics(jnp.zeros(r.shape, bool), r > epsilon_high, _tokens(batch))
    return _finish(gain, policy, batch, metrics, beta=beta, loss_agg_mode=loss_agg_mode)


LOSSES = {
    function.__name__: function
    for function in (sspo, sapo, gspo, gspo_token, gmpo, rloo, grpo, dr_grpo, bnpo, dapo, cispo)
}
COMPANIONS = {
    "rloo": {"advantage.name": "rloo"},
    "dr_grpo": {"advantage.name": "dr_grpo"},
    "dapo": {
        "group.filter_groups": True,
        "group.max_num_gen_batches": 10,  # verl's recipe
        "group.overlong_buffer_len": (
            -1
        ),  # a fifth of the response, as 4096 of 20480 tokens in the paper
        "group.mask_truncated_completions": True,
    },
}

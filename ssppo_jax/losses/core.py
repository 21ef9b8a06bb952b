"""Pieces that losses share: padding, sums over tokens, means that merge, and logged statistics."""

from __future__ import annotations

from typing import cast

import jax.numpy as jnp
from jaxtyping import Bool, Float

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Array, Batch, Max, Mean, Metrics, Min, Policy, Scalar

# exp(60) = 1.1e26: reads as "exploded", yet float32 sums of millions of them are finite.
MAX_LOG_RATIO = 60.0
MIN_SQUARED_NORM = 1e-24  # a vector shorter than 1e-12 has no direction


def float32(x: Array) -> Array:
    """Raise half precisions to float32 and leave wider types alone."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def require(ok: bool, field: str, value: object, rule: str, remedy: str) -> None:
    """Raise ConfigError naming the field, its value, the rule and the remedy."""
    if not ok:
        raise ConfigError(f"loss keyword {field}={value!r}: {rule}; {remedy}")


def clean(policy: Policy, batch: Batch) -> tuple[Policy, Batch]:
    """Replace all that must not count by constants. Losses begin with this line.

    Padding tokens and rows of weight 0 may hold anything, NaN included. Masking a result is too
    late: the gradient of the unused branch is 0 * NaN. So the inputs are masked: log-probs, hidden
    states and row values become 0, and win rates 1/2. The loss and its gradients are then
    bit-identical whatever the padding held."""
    real, importance = batch.weight > 0, batch.importance_weight
    token = (batch.mask > 0) & real[:, None, None]

    def tokens(x):
        return jnp.where(token, float32(x), 0.0)

    def rows(x, fill):
        return jnp.where(real.reshape((-1,) + (1,) * (jnp.ndim(x) - 1)), float32(x), fill)

    return Policy(logp=tokens(policy.logp), hidden=rows(policy.hidden, 0.0)), batch._replace(
        mask=token.astype(jnp.float32),
        old_logp=tokens(batch.old_logp),
        ref_logp=tokens(batch.ref_logp),
        init_logp=tokens(batch.init_logp),
        win_rate=rows(batch.win_rate, 0.5),
        target=rows(batch.target, 0.5),
        p_win=rows(batch.p_win, 0.5),
        similarity=rows(batch.similarity, 0.0),
        advantage=rows(batch.advantage, 0.0),
        weight=rows(batch.weight, 0.0),
        importance_weight=None if importance is None else tokens(importance),
    )


def sequence_sum(x: Float[Array, "B K T"], mask: Float[Array, "B K T"]) -> Float[Array, "B K"]:
    """Sum over the tokens that count. Padding may hold NaN."""
    return jnp.sum(jnp.where(mask > 0, float32(x), 0.0), axis=-1)


def sequence_mean(x: Float[Array, "B K T"], mask: Float[Array, "B K T"]) -> Float[Array, "B K"]:
    """Average over the tokens that count; 0 for a sequence without any."""
    return sequence_sum(x, mask) / jnp.maximum(sequence_sum(jnp.ones_like(mask), mask), 1.0)


def sequence_logratio(
    policy_logp: Float[Array, "B K T"], ref_logp: Float[Array, "B K T"], mask: Float[Array, "B K T"]
) -> Float[Array, "B K"]:
    """Return r(y) = log pi(y|x) - log pi_ref(y|x), summed over response tokens.

    There is no length normalisation.

    SPPO (arXiv 2405.00675) eq. 4.7: the EOS counts. The two are subtracted token by token and then
    summed, which keeps float32 digits that subtracting two long sums would lose."""
    valid = mask > 0
    return sequence_sum(
        jnp.where(valid, float32(policy_logp), 0.0) - jnp.where(valid, float32(ref_logp), 0.0), mask
    )


def weighted_mean(
    value: Float[Array, "*A"] | Bool[Array, "*A"], weight: Float[Array, "*A"]
) -> Mean:
    """Return the undivided mean of `value` under `weight`; entries of weight 0 may hold NaN."""
    weight = float32(weight)
    return Mean(jnp.sum(jnp.where(weight > 0, float32(value), 0.0) * weight), jnp.sum(weight))


def sum_terms(terms: dict[str, Mean]) -> tuple[Mean, Metrics]:
    """Add a loss's terms, all of one weight; return them again under `term/` keys.

    Raises:
      ConfigError: a term is an array, not a `Mean`.
    """
    for name, term in terms.items():
        remedy = "average it with weighted_mean(x, batch.weight)"
        require(
            isinstance(term, Mean), f"term {name}", type(term).__name__, "must be a Mean", remedy
        )
    total = cast(Scalar, sum(term.total for term in terms.values()))
    weight = next(iter(terms.values())).weight
    return Mean(total, weight), {f"term/{name}": term for name, term in terms.items()}


def unit(x: Float[Array, "*A D"]) -> Float[Array, "*A D"]:
    """Return x / |x| in float32; a vector of nearly zero length gives 0 with gradient 0."""
    x = float32(x)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    long = squared > MIN_SQUARED_NORM
    return jnp.where(long, x / jnp.sqrt(jnp.where(long, squared, 1.0)), 0.0)


def cosine(a: Float[Array, "*A D"], b: Float[Array, "*A D"]) -> Float[Array, "*A"]:
    """Return the cosine of two vectors in float32; 0 with gradient 0 if either has no direction."""
    return jnp.sum(unit(a) * unit(b), axis=-1)


def ratio_stats(policy: Policy, batch: Batch) -> Metrics:
    """Measure how far the policy has moved and how long the responses are, before any gate or clip.

    * `ratio/{min,mean,max}`: pi/pi_t per token; `ratio/gap`: the largest |pi/pi_t - 1|;
      `ratio/sequence_log`: log(pi/pi_t) summed over the response.
    * `kl/old_k1`, `kl/old_k3`: KL(pi_t || pi) per sequence. The samples are pi_t's own, so with u =
      log(pi/pi_t) the estimates -u (k1, unbiased, any sign) and e^u - 1 - u (k3, never negative)
      need no importance weight.
    * `kl/init_k1`, `kl/init_k3`: KL(pi || pi_init) per sequence from the same samples, which are
      pi's own only while pi = pi_t: with d = log(pi_init/pi), -d and e^d - 1 - d. Sequences whose
      `init_logp` is all zero were not scored and do not count.
    * those of `length_stats`.

    These estimates of KL are right where the log-probs are those of the distribution sampled from:
    at temperature 1, or for a group loss at any, and without top-k, top-p and min-p. Of pairs these
    are statistics of the winner and the loser. Log-ratios are clipped to +-60 inside
    `exp` only. Min is +inf and Max is -inf where nothing counted, so both merge."""
    policy, batch = clean(policy, batch)
    mask, valid = batch.mask, batch.mask > 0
    u = policy.logp - batch.old_logp
    ratio = _exp(u)
    real = jnp.broadcast_to(batch.weight[:, None], mask.shape[:2])
    scored = real * jnp.any(batch.init_logp != 0, axis=-1)
    d = batch.init_logp - policy.logp
    moved: Metrics = {
        "ratio/min": Min(jnp.min(jnp.where(valid, ratio, jnp.inf))),
        "ratio/mean": weighted_mean(ratio, mask * real[:, :, None]),
        "ratio/max": Max(jnp.max(jnp.where(valid, ratio, -jnp.inf))),
        "ratio/gap": Max(jnp.max(jnp.where(valid, jnp.abs(_exp_minus_1(u)), 0.0))),
        "ratio/sequence_log": weighted_mean(sequence_sum(u, mask), real),
        "kl/old_k1": weighted_mean(-sequence_sum(u, mask), real),
        "kl/old_k3": weighted_mean(_k3(u, mask), real),
        "kl/init_k1": weighted_mean(-sequence_sum(d, mask), scored),
        "kl/init_k3": weighted_mean(_k3(d, mask), scored),
    }
    return moved | length_stats(policy, batch)


def length_stats(policy: Policy, batch: Batch) -> Metrics:
    """Measure `length/{min,mean,max}`: tokens per response, EOS included."""
    policy, batch = clean(policy, batch)
    length = sequence_sum(jnp.ones_like(batch.mask), batch.mask)
    real, some = jnp.broadcast_to(batch.weight[:, None], length.shape), length > 0
    return {
        "length/min": Min(jnp.min(jnp.where(some, length, jnp.inf))),
        "length/mean": weighted_mean(length, real),
        "length/max": Max(jnp.max(jnp.where(some, length, -jnp.inf))),
    }


def _exp(u: Array) -> Array:
    return jnp.exp(jnp.clip(u, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _k3(u: Array, mask: Array) -> Array:
    """Sum e^u - 1 - u over tokens -> [B,K]; expm1 keeps the digits near u = 0."""
    return sequence_sum(_exp_minus_1(u) - u, mask)


def _exp_minus_1(u: Array) -> Array:
    return jnp.expm1(jnp.clip(u, -MAX_LOG_RATIO, MAX_LOG_RATIO))

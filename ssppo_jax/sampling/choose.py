"""Choose the next token: temperature, top-k, top-p, min-p, and addressed random keys.

Contract: a token's key is fold_in of (run key, prompt address, sample index, token index). It does
not depend on the row's neighbours, its place in the batch, padding, or a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key, UInt32

from ssppo_jax.types import Array

WHOLE_BLOCKS = 64  # of a vocabulary; fewer are not worth a cut


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Settings of how tokens are drawn, and of the log-probs recorded beside those as sampled.

    Attributes:
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: keep the k most likely tokens (0 keeps all).
      top_p: keep the smallest set of tokens whose probability reaches p (1 keeps all).
      min_p: keep tokens at least min_p times as likely as the most likely one (0 keeps all).
      max_new_tokens: T, the completion slots.
      logp_temperature: of the recorded log-probs over the full vocabulary, whatever the rest says:
        what a trainer computes for the same tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 64
    logp_temperature: float = 1.0

    @property
    def raw(self) -> bool:
        """Say if log-probs as sampled are those that are recorded beside them."""
        return self.temperature == self.logp_temperature and not self.truncated

    @property
    def truncated(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


def row_keys(
    key: Key[jax.Array, ""], address: UInt32[Array, "B"], k: int, first: int = 0
) -> Key[jax.Array, "B {k}"]:
    """Return fold_in(fold_in(key, prompt address), sample index) for k samples from `first` on."""
    fold = jax.random.fold_in
    return jax.vmap(
        lambda a: jax.vmap(lambda i: fold(fold(key, a), i))(jnp.arange(first, first + k))
    )(address)


def mixture(
    logits: Sequence[Float[Array, "*A V"]], weights: Sequence[float]
) -> Float[Array, "*A V"]:
    """Return sum_i w_i log pi_i: logits, not normalised, of the geometric mixture of policies.

    One policy's logits are returned as they are. The sum is written as a matrix product because a
    compiler computes that once. A sum it may compute again for each reader, rounded differently,
    and `restrict` would lose the token that is its threshold."""
    if len(logits) == 1:
        return logits[0]
    each = jnp.stack([jax.nn.log_softmax(x, axis=-1) for x in logits], axis=-1)
    return jnp.matmul(each, jnp.asarray(weights, each.dtype), precision="highest")


def log_prob(logits: Float[Array, "*A V"], token: Int[Array, "*A"]) -> Float[Array, "*A"]:
    """Return log softmax(logits)[token]."""
    return _at(logits, token) - jax.nn.logsumexp(logits, axis=-1)


def restrict(logits: Float[Array, "*A V"], params: SamplingParams) -> Float[Array, "*A V"]:
    """Set tokens outside top-k, min-p and top-p, in this order, to -inf.

    `logits` are already divided by the temperature. The likeliest token always stays; ties stay
    together."""
    if params.top_k > 0:
        kth = jax.lax.top_k(logits, min(params.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if params.min_p > 0.0:
        floor = logits.max(-1, keepdims=True) + jnp.log(params.min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if params.top_p < 1.0:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        before = jnp.concatenate([jnp.zeros_like(mass[..., :1]), mass[..., :-1]], axis=-1)
        edge = jnp.min(jnp.where(before < params.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < edge, -jnp.inf, logits)
    return logits


def choose(
    keys: Key[jax.Array, "B K"], logits: Float[Array, "B K V"], params: SamplingParams
) -> tuple[Int[Array, "B K"], Float[Array, "B K"], Float[Array, "B K"]]:
    """Draw one token per row from the softmax of its restricted logits.

    Return the token, its log-prob at `logp_temperature` over all tokens, and its log-prob as
    sampled. `keys` are this token's."""
    if params.temperature == 0.0:
        best = jnp.argmax(logits, axis=-1)
        logp = log_prob(logits / params.logp_temperature, best)
        return best, logp, jnp.zeros_like(logp)
    scaled = logits / params.temperature
    kept = restrict(scaled, params) if params.truncated else scaled
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys)
    top = kept.max(-1)
    token, mass = invert(jnp.exp(kept - top[..., None]), uniform)
    sampling_logp = _at(kept, token) - (top + jnp.log(mass))
    if params.raw:
        return token, sampling_logp, sampling_logp
    return token, log_prob(logits / params.logp_temperature, token), sampling_logp


def invert(
    weights: Float[Array, "*A V"], uniform: Float[Array, "*A"]
) -> tuple[Int[Array, "*A"], Float[Array, "*A"]]:
    """Return the first index whose cumulative weight exceeds uniform * total, and the total.

    Weights are >= 0 and not all 0; `uniform` is in [0,1): one random number a row, not V. Two
    levels of about sqrt(V) keep the running sums short: quick, and accurate in float32. An index of
    weight 0 is never returned.

    Many blocks are made a multiple of 16: then a vocabulary that is cut over devices stays where it
    is, and only the sums of blocks pass between them."""
    size = weights.shape[-1]
    width = 1 << ((size - 1).bit_length() + 1) // 2
    blocks = -(-size // width)
    if blocks > WHOLE_BLOCKS:
        blocks = -(-blocks // 16) * 16
    pad = [(0, 0)] * (weights.ndim - 1) + [(0, blocks * width - size)]
    table = jnp.pad(weights, pad).reshape(*weights.shape[:-1], blocks, width)
    mass = table.sum(-1)
    total = mass.sum(-1)
    block, left = _first_above(mass, uniform * total)
    row = jnp.take_along_axis(table, block[..., None, None], axis=-2)[..., 0, :]
    inside, _ = _first_above(row, left)
    return block * width + inside, total


def _first_above(
    weights: Float[Array, "*A n"], target: Float[Array, "*A"]
) -> tuple[Int[Array, "*A"], Float[Array, "*A"]]:
    """Return the first index whose running sum exceeds target, and what remains of the target.

    If rounding hides it, it is the last of positive weight. A parallel running sum is not exactly
    monotone, so weights of 0 are excluded explicitly."""
    running, positive = jnp.cumsum(weights, axis=-1), weights > 0
    above = positive & (running > target[..., None])
    last = weights.shape[-1] - 1 - jnp.argmax(jnp.flip(positive, axis=-1), axis=-1)
    index = jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last)
    return index.astype(jnp.int32), target - (_at(running, index) - _at(weights, index))


def _at(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]

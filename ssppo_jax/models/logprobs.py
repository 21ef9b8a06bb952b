"""Token log-probs of given targets in chunks, so that no [.., T, V] array is ever materialised."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssppo_jax.models.layers import matmul, soft_cap
from ssppo_jax.types import Array


class TokenLogprobs(NamedTuple):
    logp: Array  # [B,K,T] float32
    entropy: Array | None  # [B,K,T] float32, of the full next-token distribution, nats


def logits_of(
    hidden: Array,  # [...,D]
    kernel: Array,  # [D,V]
    softcap: float | None = None,
) -> Array:  # [...,V] float32
    """hidden @ kernel, accumulated to float32 whatever the compute dtype; bounded by softcap * tanh(x / softcap)."""
    return soft_cap(matmul(hidden, kernel.astype(hidden.dtype), accumulate=jnp.float32), softcap)


def token_logprobs(
    hidden: Array,  # [B,K,T,D], the states that predict `targets`
    kernel: Array,  # [D,V]
    targets: Array,  # [B,K,T] int32
    *,
    chunk: int,
    softcap: float | None = None,
    entropy: bool = False,
    constrain: Callable[[Array, str], Array] = lambda x, kind: x,
) -> TokenLogprobs:
    """log softmax(hidden @ kernel)[target], `chunk` token columns at a time; the backward pass recomputes the logits.

    Peak extra memory is one [B,K,chunk,V] float32 array (two in the backward pass) instead of [B,K,T,V].
    """
    b, k, t, d = hidden.shape
    chunk = min(chunk, t)
    chunks = -(-t // chunk)
    pad = chunks * chunk - t
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, pad)))
    hidden = jnp.moveaxis(hidden.reshape(b, k, chunks, chunk, d), 2, 0)
    targets = jnp.moveaxis(targets.reshape(b, k, chunks, chunk), 2, 0)

    @jax.checkpoint
    def body(kernel, hidden, targets):
        logits = constrain(logits_of(hidden, kernel, softcap), "logits")
        total = jax.nn.logsumexp(logits, axis=-1)
        logp = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - total
        if not entropy:
            return logp, None
        return logp, jax.lax.stop_gradient(total - jnp.sum(jax.nn.softmax(logits) * logits, axis=-1))

    def scanned(carry, xs):
        return carry, body(kernel, *xs)

    _, (logp, h) = jax.lax.scan(scanned, None, (hidden, targets))

    def whole(x):
        return None if x is None else jnp.moveaxis(x, 0, 2).reshape(b, k, chunks * chunk)[:, :, :t]

    return TokenLogprobs(whole(logp), whole(h))

"""Token log-probs of given targets, a part of the vocabulary at a time: no [.., T, V] array is ever materialised."""

from __future__ import annotations

import functools
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
    parts: int = 1,
    constrain: Callable[[Array, str], Array] = lambda x, kind: x,
) -> TokenLogprobs:
    """log softmax(hidden @ kernel)[target], about `chunk` entries of the vocabulary at a time.

    The largest and the sum of the exponentials run along; the backward pass is written out and computes the logits of
    a chunk again:

        d logp / d hidden       = kernel[:, target] - sum_v p_v kernel[:, v]
        d logp / d kernel[:, v] = (1[v = target] - p_v) hidden

    Peak extra memory is a few [B,K,T,chunk] float32 arrays. Of a kernel that is cut over a mesh (fsdp), a chunk is
    gathered at a time. The entropy carries no gradient.

    Args:
      chunk: vocabulary entries whose logits exist at one time.
      softcap: bounds the logits.
      entropy: whether it is wanted.
      parts: ways the vocabulary is cut over the mesh; every chunk takes an equal share of each part.
      constrain: places sharding constraints: kinds "logits" [B,K,T,parts,v] and "head" [D,parts,v].
    """
    d, v = kernel.shape
    setting = _Setting(max(1, min(-(-chunk // parts), v // parts)), parts, softcap, entropy, constrain)
    logp, h = _logprobs(setting, hidden, kernel.astype(hidden.dtype).reshape(d, parts, v // parts), targets)
    return TokenLogprobs(logp, jax.lax.stop_gradient(h) if entropy else None)


class _Setting(NamedTuple):
    width: int  # entries of each part in a chunk
    parts: int
    softcap: float | None
    entropy: bool
    constrain: Callable[[Array, str], Array]


class _Running(NamedTuple):
    """Over the chunks so far, [B,K,T] float32 each."""

    top: Array  # the largest logit
    total: Array  # sum exp(logit - top)
    weighted: Array  # sum exp(logit - top) logit
    target: Array  # the target's logit, once its chunk has come


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(setting: _Setting, hidden: Array, kernel: Array, targets: Array) -> tuple[Array, Array]:
    return _forward(setting, hidden, kernel, targets)[0]


def _forward(setting, hidden, kernel, targets):
    def body(seen: _Running, index: Array):
        logits, fresh, ids = _chunk(setting, hidden, kernel, index)
        logits = jnp.where(fresh, logits, -jnp.inf)
        top = jnp.maximum(seen.top, logits.max((-2, -1)))
        each, old = jnp.exp(logits - top[..., None, None]), jnp.exp(seen.top - top)
        weighted = seen.weighted
        if setting.entropy:
            weighted = weighted * old + jnp.sum(each * jnp.where(fresh, logits, 0.0), (-2, -1))
        here = jnp.where(ids == targets[..., None, None], logits, 0.0)  # an entry seen before is not here twice
        target = seen.target + jnp.sum(jnp.where(fresh, here, 0.0), (-2, -1))
        return _Running(top, seen.total * old + each.sum((-2, -1)), weighted, target), None

    zero = jnp.zeros(targets.shape, jnp.float32)
    first = _Running(jnp.full(targets.shape, -jnp.inf, jnp.float32), zero, zero, zero)
    seen, _ = jax.lax.scan(body, first, jnp.arange(_chunks(setting, kernel)))
    total = seen.top + jnp.log(seen.total)
    return (seen.target - total, total - seen.weighted / seen.total), (hidden, kernel, targets, total)


def _backward(setting, saved, cotangents):
    hidden, kernel, targets, total = saved
    of_logp = cotangents[0][..., None, None]

    def body(grads, index: Array):
        of_hidden, of_kernel = grads
        logits, fresh, ids = _chunk(setting, hidden, kernel, index)
        error = (ids == targets[..., None, None]) - jnp.exp(logits - total[..., None, None])
        error = jnp.where(fresh, error * of_logp, 0.0)
        if setting.softcap is not None:
            error = error * (1.0 - jnp.square(logits / setting.softcap))
        error = error.astype(hidden.dtype).reshape(-1, setting.parts * setting.width)
        part, start = _part(setting, kernel, index)
        flat = hidden.reshape(-1, hidden.shape[-1])
        back = jnp.dot(error, part.reshape(part.shape[0], -1).T, preferred_element_type=jnp.float32)
        more = jnp.dot(flat.T, error, preferred_element_type=jnp.float32).reshape(part.shape)
        more = setting.constrain(more.astype(kernel.dtype), "head")
        at = (0, 0, start)  # where chunks overlap, the entries that are not fresh add zero
        old = jax.lax.dynamic_slice(of_kernel, at, part.shape)
        return (of_hidden + back.reshape(hidden.shape), jax.lax.dynamic_update_slice(of_kernel, old + more, at)), None

    zero = jnp.zeros(hidden.shape, jnp.float32), setting.constrain(jnp.zeros_like(kernel), "head")
    (of_hidden, of_kernel), _ = jax.lax.scan(body, zero, jnp.arange(_chunks(setting, kernel)))
    return of_hidden.astype(hidden.dtype), of_kernel, None


_logprobs.defvjp(_forward, _backward)


def _chunks(setting: _Setting, kernel: Array) -> int:
    return -(-kernel.shape[-1] // setting.width)


def _part(setting: _Setting, kernel: Array, index: Array) -> tuple[Array, Array]:
    """Columns [D,parts,width] of a chunk, and where they start in each part. The last chunk overlaps the one before."""
    start = jnp.minimum(index * setting.width, kernel.shape[-1] - setting.width)
    return jax.lax.dynamic_slice_in_dim(kernel, start, setting.width, axis=-1), start


def _chunk(setting: _Setting, hidden: Array, kernel: Array, index: Array) -> tuple[Array, Array, Array]:
    """Logits [B,K,T,parts,width] of a chunk, and of its entries, with leading axes of 1, which no chunk before had, and
    their vocabulary ids."""
    part, start = _part(setting, kernel, index)
    logits = setting.constrain(logits_of(hidden, part, setting.softcap), "logits")
    column = start + jnp.arange(setting.width)
    ids = jnp.arange(setting.parts)[:, None] * kernel.shape[-1] + column[None, :]
    fresh = column >= index * setting.width
    return logits, fresh[None, None, None, None], ids[None, None, None]

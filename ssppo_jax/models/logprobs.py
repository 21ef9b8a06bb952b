"""Token log-probs of given targets, a part of the vocabulary at a time.

No [.., T, V] array is ever materialised."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from ssppo_jax.models.layers import matmul, soft_cap
from ssppo_jax.types import Array


class TokenLogprobs(NamedTuple):
    """Log-probs of the targets."""

    logp: Float[Array, "B K T"]
    entropy: Float[Array, "B K T"] | None  # of the full next-token distribution, nats


def logits_of(
    hidden: Float[Array, "*A D"], kernel: Float[Array, "D ..."], softcap: float | None = None
) -> Float[Array, "..."]:
    """Return hidden @ kernel in float32, bounded by softcap * tanh(x / softcap)."""
    return soft_cap(matmul(hidden, kernel.astype(hidden.dtype), accumulate=jnp.float32), softcap)


def token_logprobs(
    hidden: Float[Array, "B K T D"],  # the states that predict `targets`
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B K T"],
    *,
    chunk: int,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    parts: int = 1,
    constrain: Callable[[Array, str], Array] = lambda x, kind: x,
) -> TokenLogprobs:
    """Return log softmax(hidden @ kernel / temperature)[target], about `chunk` vocabulary entries
    at a time.

    The largest logit and the sum of the exponentials run along. The backward pass is written out
    and computes the logits of a chunk again. At temperature 1:

        d logp / d hidden       = kernel[:, target] - sum_v p_v kernel[:, v]
        d logp / d kernel[:, v] = (1[v = target] - p_v) hidden

    Peak extra memory is a few [B,K,T,chunk] float32 arrays. Of a kernel that is cut over a mesh
    (fsdp), a chunk is gathered at a time. The entropy carries no gradient.

    Args:
      chunk: vocabulary entries whose logits exist at one time.
      softcap: bounds the logits.
      temperature: divides the logits, after the soft cap, as the sampler does.
      entropy: whether it is wanted.
      parts: ways the vocabulary is cut over the mesh; every chunk takes an equal share of each
        part.
      constrain: places sharding constraints: kind "logits" [B,K,T,parts,v].
    """
    d, v = kernel.shape
    width = max(1, min(-(-chunk // parts), v // parts))
    setting = _Setting(width, parts, softcap, temperature, entropy, constrain)
    cut = kernel.astype(hidden.dtype).reshape(d, parts, v // parts)
    logp, h = _logprobs(setting, hidden, cut, targets)
    return TokenLogprobs(logp, h if entropy else None)


class _Setting(NamedTuple):
    width: int  # entries of each part in a chunk
    parts: int
    softcap: float | None
    temperature: float
    entropy: bool
    constrain: Callable[[Array, str], Array]


class _Running(NamedTuple):
    """What is known after the chunks so far."""

    top: Float[Array, "B K T"]  # the largest logit
    total: Float[Array, "B K T"]  # sum exp(logit - top)
    weighted: Float[Array, "B K T"]  # sum exp(logit - top) logit
    target: Float[Array, "B K T"]  # the target's logit, once its chunk has come


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(
    setting: _Setting, hidden: Array, kernel: Array, targets: Array
) -> tuple[Array, Array]:
    return _forward(setting, hidden, kernel, targets)[0]


def _forward(setting, hidden, kernel, targets):
    def body(seen: _Running, index: Array):
        part = _part(setting, hidden, kernel, index)
        here = jnp.where(part.fresh & (part.ids == targets[..., None, None]), part.logits, 0.0)
        logits = jnp.where(part.fresh, part.logits, -jnp.inf)
        top = jnp.maximum(seen.top, logits.max((-2, -1)))
        each, old = jnp.exp(logits - top[..., None, None]), jnp.exp(seen.top - top)
        total, target = seen.total * old + each.sum((-2, -1)), seen.target + here.sum((-2, -1))
        weighted = seen.weighted
        if setting.entropy:
            weighted = weighted * old + jnp.sum(each * jnp.where(part.fresh, logits, 0.0), (-2, -1))
        return _Running(top, total, weighted, target), None

    zero = jnp.zeros(targets.shape, jnp.float32)
    first = _Running(jnp.full(targets.shape, -jnp.inf, jnp.float32), zero, zero, zero)
    seen, _ = jax.lax.scan(body, first, jnp.arange(_chunks(setting, kernel)))
    total = seen.top + jnp.log(seen.total)
    saved = (hidden, kernel, targets, total)
    return (seen.target - total, total - seen.weighted / seen.total), saved


def _backward(setting, saved, cotangents):
    hidden, kernel, targets, total = saved
    of_logp = cotangents[0][..., None, None]

    def body(grads, index: Array):
        of_hidden, of_kernel = grads
        part = _part(setting, hidden, kernel, index)
        p = jnp.exp(part.logits - total[..., None, None])
        error = (part.ids == targets[..., None, None]) - p
        error = jnp.where(part.fresh, error * (of_logp / setting.temperature), 0.0)
        if setting.softcap is not None:
            capped = part.logits * setting.temperature / setting.softcap
            error = error * (1.0 - jnp.square(capped))
        error = error.astype(hidden.dtype).reshape(-1, setting.parts * setting.width)
        flat = hidden.reshape(-1, hidden.shape[-1])
        columns = part.kernel.reshape(part.kernel.shape[0], -1)
        back = jnp.dot(error, columns.T, preferred_element_type=jnp.float32)
        more = jnp.dot(flat.T, error, preferred_element_type=jnp.float32).reshape(part.kernel.shape)
        more = more.astype(kernel.dtype)
        at = (0, 0, part.start)  # where chunks overlap, the entries that are not fresh add zero
        old = jax.lax.dynamic_slice(of_kernel, at, part.kernel.shape)
        return (
            of_hidden + back.reshape(hidden.shape),
            jax.lax.dynamic_update_slice(of_kernel, old + more, at),
        ), None

    zero = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(kernel)
    (of_hidden, of_kernel), _ = jax.lax.scan(body, zero, jnp.arange(_chunks(setting, kernel)))
    return of_hidden.astype(hidden.dtype), of_kernel, None


_logprobs.defvjp(_forward, _backward)


def _chunks(setting: _Setting, kernel: Array) -> int:
    return -(-kernel.shape[-1] // setting.width)


class _Part(NamedTuple):
    """A chunk: an equal share of each part of the vocabulary. The last overlaps the one before."""

    kernel: Float[Array, "D parts width"]
    start: Int[Array, ""]  # where its columns start in each part
    logits: Float[Array, "B K T parts width"]  # divided by the temperature
    fresh: Bool[Array, "1 1 1 1 width"]  # entries that no chunk before had
    ids: Int[Array, "1 1 1 parts width"]  # of the vocabulary


def _part(setting: _Setting, hidden: Array, kernel: Array, index: Array) -> _Part:
    size = kernel.shape[-1]
    start = jnp.minimum(index * setting.width, size - setting.width)
    columns = jax.lax.dynamic_slice_in_dim(kernel, start, setting.width, axis=-1)
    logits = setting.constrain(logits_of(hidden, columns, setting.softcap), "logits")
    logits = logits / setting.temperature
    column = start + jnp.arange(setting.width)
    ids = jnp.arange(setting.parts)[:, None] * size + column[None, :]
    fresh = column >= index * setting.width
    return _Part(columns, start, logits, fresh[None, None, None, None], ids[None, None, None])

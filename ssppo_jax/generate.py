"""Sampling: a prompt is computed once, its K completions share its keys and values, decoding ends when all have."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssppo_jax.models.decoder import KV, Cache, Decoder, output_kernel
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.sampling import SamplingParams, choose, log_prob, mixture, row_keys
from ssppo_jax.types import FINISH_EOS, FINISH_LENGTH, Array, Prompts, PyTree, Samples


class _Loop(NamedTuple):
    step: Array  # [] int32, tokens chosen so far
    token: Array  # [B,K] int32, the newest
    done: Array  # [B,K] bool
    own: tuple[KV, ...]  # of each policy, [N,B,K,G,T,E]
    samples: Samples


def make_generate(
    decoder: Decoder,
    *,
    num_samples: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    sampling: SamplingParams,
    weights: tuple[float, ...] = (1.0,),
    first_sample: int = 0,
) -> Callable[[PyTree, Prompts, Array], Samples]:
    """generate(params, prompts, key) -> Samples: K completions per prompt.

    `key` belongs to (seed, iteration); each token's key is addressed from it by prompt, sample and position. EOS ids
    are looked for at completion positions only. A row that ends early is padded with `pad_id` beyond its length.

    With several `weights`, `params` is a tuple of as many parameters of the one architecture, and every token is drawn
    from their geometric mixture, proportional to prod_i pi_i^w_i; temperature, top-k, top-p and min-p act on it. Each
    policy reads the tokens drawn so far and keeps its own keys and values. `Samples.logp` stays the raw log-prob under
    the first policy, which a trainer can check, and `Samples.sampling_logp` is the log-prob as drawn.

    Args:
      decoder: the architecture of every policy.
      num_samples: K.
      eos_ids: tokens that end a completion.
      pad_id: what is written behind it.
      sampling: how a token is drawn.
      weights: exponent of each policy in the mixture, >= 0 and 1 in sum.
      first_sample: index of the first of the K samples in their random address. An opponent beside K samples of the
        policy is sample K, so that it is drawn independently of them.

    Raises:
      ValueError: weights that are not of a mixture, or (when generating) another number of parameters than of weights.
    """
    if not weights or not (min(weights) >= 0 and abs(sum(weights) - 1.0) <= 1e-6):
        raise ValueError(f"weights={weights!r}: the exponents of a mixture are >= 0 and add up to 1, as in (0.5, 0.5)")
    k, t = num_samples, sampling.max_new_tokens
    stops = jnp.asarray(eos_ids, jnp.int32)

    def pick(keys, step, logits):
        at_step = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
        logits = [decoder.constrain(x, "logits") for x in logits]
        token, logp, sampling_logp = choose(at_step, mixture(logits, weights), sampling)
        return token, (log_prob(logits[0], token) if len(weights) > 1 else logp), sampling_logp

    def is_stop(token):
        return (token[..., None] == stops[None, None, :]).any(-1)

    def generate(params: PyTree, prompts: Prompts, key: Array) -> Samples:
        policies = (params,) if len(weights) == 1 else tuple(params)
        if len(policies) != len(weights):
            raise ValueError(f"{len(weights)} weights and {len(policies)} parameters: give a tuple with one tree each")
        b, keys = prompts.tokens.shape[0], row_keys(key, prompts.address, k, first_sample)
        logits, shared = zip(*(_prefill(decoder, policy, prompts, k) for policy in policies), strict=True)
        token, logp, sampling_logp = pick(keys, 0, logits)
        samples = _record(_blank(b, k, t, pad_id), 0, token, logp, sampling_logp, jnp.zeros((b, k), bool))

        def body(loop: _Loop) -> _Loop:
            caches = [Cache(kv, own, loop.step - 1) for kv, own in zip(shared, loop.own, strict=True)]
            read = [_read(decoder, p, prompts, loop.token, cache) for p, cache in zip(policies, caches, strict=True)]
            logits, new = zip(*read, strict=True)
            own = jax.tree.map(lambda old, x: _write(old, x, loop.step - 1), loop.own, new)
            token, logp, sampling_logp = pick(keys, loop.step, logits)
            samples = _record(loop.samples, loop.step, token, logp, sampling_logp, loop.done)
            return _Loop(loop.step + 1, token, loop.done | is_stop(token), own, samples)

        own = jax.tree.map(lambda x: jnp.zeros((x.shape[0], b, k, x.shape[2], t, x.shape[4]), x.dtype), shared)
        first = _Loop(jnp.int32(1), token, is_stop(token), own, samples)
        loop = jax.lax.while_loop(lambda l: (l.step < t) & ~l.done.all(), body, first)
        finish = jnp.where(loop.done, FINISH_EOS, FINISH_LENGTH).astype(jnp.int8)
        return loop.samples._replace(finish=finish)

    return generate


def _prefill(decoder: Decoder, params: PyTree, prompts: Prompts, k: int) -> tuple[Array, KV]:
    """Logits [B,K,V] of the first token, and the prompts' keys and values."""
    forward = decoder.apply({"params": params}, prompts.tokens, prompts.length, return_kv=True)
    last = jnp.take_along_axis(forward.prompt, (prompts.length - 1)[:, None, None], axis=1)
    logits = _logits(decoder, params, last)
    return jnp.broadcast_to(logits, (len(last), k, logits.shape[-1])), forward.kv


def _read(decoder: Decoder, params: PyTree, prompts: Prompts, token: Array, cache: Cache) -> tuple[Array, KV]:
    """Logits [B,K,V] of what follows `token` [B,K], and its keys and values."""
    out = decoder.apply({"params": params}, None, prompts.length, token[..., None], cache, return_kv=True)
    return _logits(decoder, params, out.completion[:, :, 0]), out.kv


def _logits(decoder: Decoder, params: PyTree, hidden: Array) -> Array:
    """The head, taken inside the decoding loop: a tied one, transposed in front of it, would be copied into a layout
    that products with few rows read at half the speed."""
    return logits_of(hidden, output_kernel(params, decoder.arch), decoder.arch.final_softcap)


def _write(cache: Array, new: Array, step: Array) -> Array:
    """Put the newest token's keys [N,B,K,G,1,E] at slot `step`, in place inside the decoding loop."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), step, axis=-2)


def _blank(b: int, k: int, t: int, pad_id: int) -> Samples:
    zeros = jnp.zeros((b, k, t), jnp.float32)
    return Samples(
        tokens=jnp.full((b, k, t), pad_id, jnp.int32),
        length=jnp.zeros((b, k), jnp.int32),
        logp=zeros,
        sampling_logp=zeros,
        finish=jnp.full((b, k), FINISH_LENGTH, jnp.int8),
    )


def _record(samples: Samples, step, token, logp, sampling_logp, done) -> Samples:
    """Write one token column; rows already done keep their padding."""

    def column(old, new):
        new = jnp.where(done, old[:, :, step], new.astype(old.dtype))
        return jax.lax.dynamic_update_slice_in_dim(old, new[..., None], step, axis=2)

    return samples._replace(
        tokens=column(samples.tokens, token),
        length=samples.length + jnp.where(done, 0, 1),
        logp=column(samples.logp, logp),
        sampling_logp=column(samples.sampling_logp, sampling_logp),
    )

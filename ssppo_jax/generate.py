"""Sampling: a prompt is computed once, its K completions share its keys and values, decoding ends when all have."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssppo_jax.models.decoder import KV, Cache, Decoder, output_kernel
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.sampling import SamplingParams, choose, row_keys
from ssppo_jax.types import FINISH_EOS, FINISH_LENGTH, Array, Prompts, PyTree, Samples


class _Loop(NamedTuple):
    step: Array  # [] int32, tokens chosen so far
    token: Array  # [B,K] int32, the newest
    done: Array  # [B,K] bool
    own: KV  # [N,B,K,T,G,E]
    samples: Samples


def make_generate(
    decoder: Decoder,
    *,
    num_samples: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    sampling: SamplingParams,
) -> Callable[[PyTree, Prompts, Array], Samples]:
    """generate(params, prompts, key) -> Samples: K completions per prompt.

    `key` belongs to (seed, iteration); each token's key is addressed from it by prompt, sample and position. EOS ids
    are looked for at completion positions only. A row that ends early is padded with `pad_id` beyond its length.
    """
    t = sampling.max_new_tokens
    stops = jnp.asarray(eos_ids, jnp.int32)

    def pick(keys, step, logits):
        at_step = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
        return choose(at_step, decoder.constrain(logits, "logits"), sampling)

    def is_stop(token):
        return (token[..., None] == stops[None, None, :]).any(-1)

    def generate(params: PyTree, prompts: Prompts, key: Array) -> Samples:
        kernel = output_kernel(params, decoder.arch)
        b, k = prompts.tokens.shape[0], num_samples
        keys = row_keys(key, prompts.address, k)
        forward = decoder.apply({"params": params}, prompts.tokens, prompts.length, return_kv=True)
        last = jnp.take_along_axis(forward.prompt, (prompts.length - 1)[:, None, None], axis=1)
        logits = jnp.broadcast_to(logits_of(last, kernel), (b, k, kernel.shape[1]))
        token, logp, sampling_logp = pick(keys, 0, logits)
        samples = _record(_blank(b, k, t, pad_id), 0, token, logp, sampling_logp, jnp.zeros((b, k), bool))

        def body(loop: _Loop) -> _Loop:
            cache = Cache(forward.kv, loop.own, loop.step - 1)
            out = decoder.apply({"params": params}, None, prompts.length, loop.token[..., None], cache, return_kv=True)
            own = jax.tree.map(lambda old, new: _write(old, new, loop.step - 1), loop.own, out.kv)
            token, logp, sampling_logp = pick(keys, loop.step, logits_of(out.completion[:, :, 0], kernel))
            samples = _record(loop.samples, loop.step, token, logp, sampling_logp, loop.done)
            return _Loop(loop.step + 1, token, loop.done | is_stop(token), own, samples)

        own = jax.tree.map(lambda x: jnp.zeros((x.shape[0], b, k, t, *x.shape[3:]), x.dtype), forward.kv)
        first = _Loop(jnp.int32(1), token, is_stop(token), own, samples)
        loop = jax.lax.while_loop(lambda l: (l.step < t) & ~l.done.all(), body, first)
        finish = jnp.where(loop.done, FINISH_EOS, FINISH_LENGTH).astype(jnp.int8)
        return loop.samples._replace(finish=finish)

    return generate


def _write(cache: Array, new: Array, step: Array) -> Array:
    """Put the newest token's keys [N,B,K,1,G,E] at slot `step`, in place inside the decoding loop."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), step, axis=3)


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

"""Sampling: a prompt is computed once, its K completions share its keys and values, and its slot is
free when all end.

A batch is so many slots, each with one prompt at a step of its own. `Sampler.run` decodes until
enough slots are free, `Sampler.refill` gives them to prompts that wait; so a long completion does
not hold up the others. Tokens do not depend on any of it: their keys are addressed by prompt,
sample and position, and rows never mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssppo_jax.models.decoder import KV, Cache, Decoder, output_kernel
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.sampling.choose import SamplingParams, choose, log_prob, mixture, row_keys
from ssppo_jax.types import FINISH_EOS, FINISH_LENGTH, Array, Prompts, PyTree, Samples


class Slots(NamedTuple):
    """Prompts that are being answered, one a slot."""

    length: Array  # [B] int32, of the prompts
    keys: Array  # [B,K,words] uint32, the completions' random keys
    shared: tuple[KV, ...]  # of each policy, the prompts': [N,B,G,P,E]
    own: tuple[KV, ...]  # of each policy, the completions': [N,B,K,G,T,E]
    step: Array  # [B] int32, tokens chosen so far
    token: Array  # [B,K] int32, the newest
    done: Array  # [B,K] bool
    samples: Samples
    steps: Array  # [] int32, decoding steps of the whole batch so far
    used: Array  # [] int32, slots that had something to decode, summed over these steps


class Sampler(NamedTuple):
    """Pure functions on slots; jit them."""

    start: Callable[
        [PyTree, Prompts, Array, Array], Slots
    ]  # (params, prompts, key, real [B]): one prompt a slot
    run: Callable[
        [PyTree, Slots, Array], Slots
    ]  # (params, slots, enough): decode until so many slots are free
    refill: Callable[
        [PyTree, Slots, Prompts, Array, Array], Slots
    ]  # (params, slots, prompts [R], key, which [R])
    look: Callable[[Slots], tuple[Array, Samples]]  # which are `free` [B], and what they hold


def free(slots: Slots) -> Array:  # [B] bool
    """Slots whose completions have all ended, by a stop id or by length."""
    return slots.done.all(-1) | (slots.step >= slots.samples.tokens.shape[2])


def finished(slots: Slots) -> Samples:
    """What the slots hold; complete where they are free."""
    return slots.samples._replace(
        finish=jnp.where(slots.done, FINISH_EOS, FINISH_LENGTH).astype(jnp.int8)
    )


def make_generate(decoder: Decoder, **settings) -> Callable[[PyTree, Prompts, Array], Samples]:
    """`in_one_batch` of `make_sampler(decoder, **settings)`."""
    return in_one_batch(make_sampler(decoder, **settings))


def in_one_batch(sampler: Sampler) -> Callable[[PyTree, Prompts, Array], Samples]:
    """generate(params, prompts, key) -> Samples: K completions of each prompt of one batch, no slot
    taken twice."""

    def generate(params: PyTree, prompts: Prompts, key: Array) -> Samples:
        b = len(prompts.length)
        slots = sampler.start(params, prompts, key, jnp.ones((b,), bool))
        return finished(sampler.run(params, slots, jnp.int32(b)))

    return generate


def make_sampler(
    decoder: Decoder,
    *,
    num_samples: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    sampling: SamplingParams,
    weights: tuple[float, ...] = (1.0,),
    first_sample: int = 0,
) -> Sampler:
    """K completions per prompt, on slots.

    `key` belongs to (seed, iteration); each token's key is addressed from it by prompt, sample and
    position. EOS ids are looked for at completion positions only. A row that ends early is padded
    with `pad_id` beyond its length.

    With several `weights`, `params` is a tuple of as many parameters of the one architecture, and
    every token is drawn from their geometric mixture, proportional to prod_i pi_i^w_i; temperature,
    top-k, top-p and min-p act on it. Each policy reads the tokens drawn so far and keeps its own
    keys and values. `Samples.logp` stays the raw log-prob under the first policy, which a trainer
    can check, and `Samples.sampling_logp` is the log-prob as drawn.

    Args:
      decoder: the architecture of every policy.
      num_samples: K.
      eos_ids: tokens that end a completion.
      pad_id: what is written behind it.
      sampling: how a token is drawn.
      weights: exponent of each policy in the mixture, >= 0 and 1 in sum.
      first_sample: index of the first of the K samples in their random address. An opponent beside
        K samples of the policy is sample K, so that it is drawn independently of them.

    Raises:
      ValueError: weights that are not of a mixture, or (when generating) another number of
        parameters than of weights.
    """
    if not weights or not (min(weights) >= 0 and abs(sum(weights) - 1.0) <= 1e-6):
        raise ValueError(
            f"weights={weights!r}: the exponents of a mixture are >= 0 and add up to 1, as in (0.5,"
            " 0.5)"
        )
    k, t = num_samples, sampling.max_new_tokens
    stops = jnp.asarray(eos_ids, jnp.int32)

    def pick(keys, step, logits):
        keys = jax.random.wrap_key_data(keys)
        at_step = jax.vmap(lambda row, s: jax.vmap(lambda key: jax.random.fold_in(key, s))(row))(
            keys, step
        )
        logits = [decoder.constrain(x, "logits") for x in logits]
        token, logp, sampling_logp = choose(at_step, mixture(logits, weights), sampling)
        return token, (log_prob(logits[0], token) if len(weights) > 1 else logp), sampling_logp

    def is_stop(token):
        return (token[..., None] == stops[None, None, :]).any(-1)

    def begin(params: PyTree, prompts: Prompts, key: Array) -> Slots:
        """Prompts read and their first tokens chosen; no room for further keys yet."""
        policies = _policies(params, weights)
        b, keys = (
            prompts.tokens.shape[0],
            jax.random.key_data(row_keys(key, prompts.address, k, first_sample)),
        )
        logits, shared = zip(
            *(_prefill(decoder, policy, prompts, k) for policy in policies), strict=True
        )
        zero = jnp.zeros((b,), jnp.int32)
        token, *logps = pick(keys, zero, logits)
        samples = _record(_blank(b, k, t, pad_id), zero, token, *logps, jnp.zeros((b, k), bool))
        nothing = jnp.int32(0)
        return Slots(
            prompts.length,
            keys,
            shared,
            (),
            zero + 1,
            token,
            is_stop(token),
            samples,
            nothing,
            nothing,
        )

    def start(params: PyTree, prompts: Prompts, key: Array, real: Array) -> Slots:
        slots = begin(params, prompts, key)
        room = jax.tree.map(lambda x: _room(x, k, t), slots.shared)
        return slots._replace(
            own=room, done=slots.done | ~real[:, None]
        )  # nobody waits for filler rows

    def body(params: PyTree, slots: Slots) -> Slots:
        policies, waiting = _policies(params, weights), free(slots)
        head = slots.steps % t
        caches = [
            Cache(kv, own, slots.step - 1, head)
            for kv, own in zip(slots.shared, slots.own, strict=True)
        ]
        read = [
            _read(decoder, policy, slots.length, slots.token, cache)
            for policy, cache in zip(policies, caches, strict=True)
        ]
        logits, new = zip(*read, strict=True)
        token, *logps = pick(slots.keys, slots.step, logits)
        own = jax.tree.map(lambda old, x: _write(old, x, head), slots.own, new)
        ended = slots.done | waiting[:, None]
        return slots._replace(
            own=own,
            step=jnp.where(waiting, slots.step, slots.step + 1),
            token=token,
            done=slots.done | (~waiting[:, None] & is_stop(token)),
            samples=_record(slots.samples, slots.step, token, *logps, ended),
            steps=slots.steps + 1,
            used=slots.used + jnp.sum(~waiting, dtype=jnp.int32),
        )

    def run(params: PyTree, slots: Slots, enough: Array) -> Slots:
        return jax.lax.while_loop(
            lambda s: free(s).sum() < enough, lambda s: body(params, s), slots
        )

    def refill(params: PyTree, slots: Slots, prompts: Prompts, key: Array, which: Array) -> Slots:
        fresh = begin(params, prompts, key)
        rows = {
            name: _put(getattr(slots, name), getattr(fresh, name), which, 0) for name in PER_SLOT
        }
        shared = jax.tree.map(lambda old, new: _put(old, new, which, 1), slots.shared, fresh.shared)
        samples = jax.tree.map(
            lambda old, new: _put(old, new, which, 0), slots.samples, fresh.samples
        )
        return slots._replace(**rows, shared=shared, samples=samples)

    def settled(step):
        """`step` with its slots cut over the mesh in one way, whoever made them: the others are
        compiled once."""
        return lambda *args: _settle(decoder.constrain, step(*args))

    def look(slots: Slots) -> tuple[Array, Samples]:
        return free(slots), finished(slots)

    return Sampler(settled(start), settled(run), settled(refill), look)


PER_SLOT = (
    "length",
    "keys",
    "step",
    "token",
    "done",
)  # fields of `Slots` with a leading axis of slots


def _put(old: Array, new: Array, which: Array, axis: int) -> Array:
    """Rows `new` in the places `which`; places beyond the last are of filler rows and are
    dropped."""
    where = (slice(None),) * axis + (which,)
    return old.at[where].set(new, mode="drop")


def _settle(constrain: Callable[[Array, str], Array], slots: Slots) -> Slots:
    kinds = dict.fromkeys(Slots._fields, "rows") | dict.fromkeys(("shared", "own"), "cache")
    kinds |= dict.fromkeys(("steps", "used"), "count")

    def placed(field: str) -> PyTree:
        return jax.tree.map(lambda x: constrain(x, kinds[field]), getattr(slots, field))

    return Slots(*map(placed, Slots._fields))


def _policies(params: PyTree, weights: tuple[float, ...]) -> tuple[PyTree, ...]:
    policies = (params,) if len(weights) == 1 else tuple(params)
    if len(policies) != len(weights):
        raise ValueError(
            f"{len(weights)} weights and {len(policies)} parameters: give a tuple with one tree"
            " each"
        )
    return policies


def _prefill(decoder: Decoder, params: PyTree, prompts: Prompts, k: int) -> tuple[Array, KV]:
    """Logits [B,K,V] of the first token, and the prompts' keys and values."""
    forward = decoder.apply({"params": params}, prompts.tokens, prompts.length, return_kv=True)
    last = jnp.take_along_axis(forward.prompt, (prompts.length - 1)[:, None, None], axis=1)
    logits = _logits(decoder, params, last)
    return jnp.broadcast_to(logits, (len(last), k, logits.shape[-1])), forward.kv


def _read(
    decoder: Decoder, params: PyTree, length: Array, token: Array, cache: Cache
) -> tuple[Array, KV]:
    """Logits [B,K,V] of what follows `token` [B,K], and its keys and values."""
    out = decoder.apply({"params": params}, None, length, token[..., None], cache, return_kv=True)
    return _logits(decoder, params, out.completion[:, :, 0]), out.kv


def _room(shared: Array, k: int, t: int) -> Array:
    """[...,B,G,P,E], a prompt's keys -> zeros [...,B,K,G,T,E] for its completions'."""
    *layers, b, g, _, e = shared.shape
    return jnp.zeros((*layers, b, k, g, t, e), shared.dtype)


def _logits(decoder: Decoder, params: PyTree, hidden: Array) -> Array:
    return logits_of(hidden, output_kernel(params, decoder.arch), decoder.arch.final_softcap)


def _write(cache: Array, new: Array, head: Array) -> Array:
    """Put the newest token's keys [N,B,K,G,1,E] at slot `head`, in place inside the decoding
    loop."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), head, axis=-2)


def _blank(b: int, k: int, t: int, pad_id: int) -> Samples:
    zeros = jnp.zeros((b, k, t), jnp.float32)
    return Samples(
        tokens=jnp.full((b, k, t), pad_id, jnp.int32),
        length=jnp.zeros((b, k), jnp.int32),
        logp=zeros,
        sampling_logp=zeros,
        finish=jnp.full((b, k), FINISH_LENGTH, jnp.int8),
    )


def _record(
    samples: Samples, step: Array, token: Array, logp: Array, sampling_logp: Array, ended: Array
) -> Samples:
    """Write each row's token at its `step` [B]; completions that have ended keep their padding."""
    here = (jnp.arange(samples.tokens.shape[2])[None, None, :] == step[:, None, None]) & ~ended[
        :, :, None
    ]

    def column(old, new):
        return jnp.where(here, new[..., None].astype(old.dtype), old)

    return samples._replace(
        tokens=column(samples.tokens, token),
        length=samples.length + jnp.where(ended, 0, 1),
        logp=column(samples.logp, logp),
        sampling_logp=column(samples.sampling_logp, sampling_logp),
    )

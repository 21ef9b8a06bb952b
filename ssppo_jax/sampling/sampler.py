"""Sample K completions of each prompt, on slots.

A batch has a fixed number of slots. A slot holds one prompt, whose keys and values are computed
once and shared by its K completions, and is at a step of its own. `Sampler.run` decodes until
enough slots are free, and `Sampler.refill` gives them to prompts that wait, so a long completion
does not hold up the others. The tokens do not depend on any of this: random keys are addressed by
prompt, sample and position, and rows never mix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, Key, UInt32

from ssppo_jax.models.decoder import KV, Cache, Decoder, Forward, output_kernel
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.sampling.choose import SamplingParams, choose, log_prob, mixture, row_keys
from ssppo_jax.types import FINISH_EOS, FINISH_LENGTH, Array, Prompts, PyTree, Samples


class Slots(NamedTuple):
    """Prompts that are being answered, one a slot."""

    length: Int[Array, "B"]  # of the prompts
    keys: UInt32[jax.Array, "B K words"]  # the completions' random keys
    shared: tuple[KV, ...]  # of each policy, the prompts'
    own: tuple[KV, ...]  # of each policy, the completions'
    step: Int[Array, "B"]  # tokens chosen so far
    token: Int[Array, "B K"]  # the newest
    done: Bool[Array, "B K"]
    samples: Samples
    steps: Int[Array, ""]  # decoding steps of the whole batch so far
    used: Int[Array, ""]  # slots that had something to decode, summed over these steps


def free(slots: Slots) -> Bool[Array, "B"]:
    """Say which slots' completions have all ended, by a stop id or by length."""
    return slots.done.all(-1) | (slots.step >= slots.samples.tokens.shape[2])


def finished(slots: Slots) -> Samples:
    """Return what the slots hold; it is complete where they are free."""
    return slots.samples._replace(
        finish=jnp.where(slots.done, FINISH_EOS, FINISH_LENGTH).astype(jnp.int8)
    )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sampler:
    """Draw K completions per prompt. Methods are pure; `Runtime.make_sampler` compiles them.

    The key given to `start` and `refill` belongs to (seed, iteration). Each token's key is
    addressed from it by prompt, sample and position. EOS ids are looked for at completion positions
    only. A row that ends early is padded with `pad_id` beyond its length.

    With several `weights`, `params` is a tuple of as many parameters of the one architecture, and
    every token is drawn from their geometric mixture, proportional to prod_i pi_i^w_i. Temperature,
    top-k, top-p and min-p act on the mixture. Each policy reads the tokens drawn so far and keeps
    its own keys and values. `Samples.logp` is the raw log-prob under the first policy, which a
    trainer can check. `Samples.sampling_logp` is the log-prob as drawn.

    Attributes:
      decoder: the architecture of every policy.
      num_samples: K.
      eos_ids: tokens that end a completion.
      pad_id: what is written behind it.
      sampling: how a token is drawn.
      weights: exponent of each policy in the mixture, >= 0 and 1 in sum.
      cache_dtype: of the keys and values that are kept; None for the decoder's compute dtype.
      first_sample: index of the first of the K samples in their random address. An opponent beside
        K samples of the policy is sample K, so that it is drawn independently of them.

    Raises:
      ValueError: weights that are not of a mixture, or (when sampling) another number of
        parameters than of weights.
    """

    decoder: Decoder
    num_samples: int
    eos_ids: tuple[int, ...]
    pad_id: int
    sampling: SamplingParams
    weights: tuple[float, ...] = (1.0,)
    cache_dtype: DTypeLike | None = None
    first_sample: int = 0

    def __post_init__(self):
        weights = self.weights
        if not weights or not (min(weights) >= 0 and abs(sum(weights) - 1.0) <= 1e-6):
            raise ValueError(
                f"weights={weights!r}: the exponents of a mixture are >= 0 and add up to 1, as in"
                " (0.5, 0.5)"
            )

    def start(
        self,
        params: PyTree[Array],
        prompts: Prompts,
        key: Key[jax.Array, ""],
        real: Bool[Array, "B"],
    ) -> Slots:
        """Give each prompt a slot and choose its first tokens; rows not `real` are done at once."""
        slots = self._begin(params, prompts, key)
        own = jax.tree.map(self._room, slots.shared)
        return self._placed(slots._replace(own=own, done=slots.done | ~real[:, None]))

    def run(self, params: PyTree[Array], slots: Slots, enough: Int[Array, ""]) -> Slots:
        """Decode until `enough` slots are free."""
        return self._placed(
            jax.lax.while_loop(
                lambda s: free(s).sum() < enough, lambda s: self._decode(params, s), slots
            )
        )

    def step(self, params: PyTree[Array], slots: Slots) -> Slots:
        """Decode one token, for a reader who waits for it."""
        return self._placed(self._decode(params, slots))

    def refill(
        self,
        params: PyTree[Array],
        slots: Slots,
        prompts: Prompts,
        key: Key[jax.Array, ""],
        which: Int[Array, "R"],
    ) -> Slots:
        """Give the slots `which` to new prompts; filler rows name a slot beyond the last."""
        fresh = self._begin(params, prompts, key)
        fields = ("length", "keys", "shared", "step", "token", "done", "samples")

        def put(field: str) -> PyTree:
            where = (slice(None), which) if field == "shared" else which
            old, new = getattr(slots, field), getattr(fresh, field)
            return jax.tree.map(lambda x, y: x.at[where].set(y, mode="drop"), old, new)

        return self._placed(slots._replace(**{field: put(field) for field in fields}))

    @staticmethod
    def look(slots: Slots) -> tuple[Bool[Array, "B"], Samples]:
        """Return which slots are `free`, and what they hold."""
        return free(slots), finished(slots)

    def _begin(self, params: PyTree, prompts: Prompts, key: jax.Array) -> Slots:
        """Read the prompts and choose their first tokens; no room for further keys yet."""
        b, k = prompts.tokens.shape[0], self.num_samples
        keys = jax.random.key_data(row_keys(key, prompts.address, k, self.first_sample))
        read = [self._prefill(policy, prompts) for policy in self._policies(params)]
        logits, shared = zip(*read, strict=True)
        if self.cache_dtype is not None:
            shared = jax.tree.map(lambda x: x.astype(self.cache_dtype), shared)
        zero, nothing = jnp.zeros((b,), jnp.int32), jnp.int32(0)
        token, logp, sampling_logp = self._pick(keys, zero, logits)
        none_ended = jnp.zeros((b, k), bool)
        return Slots(
            length=prompts.length,
            keys=keys,
            shared=shared,
            own=(),
            step=zero + 1,
            token=token,
            done=self._is_stop(token),
            samples=_record(self._blank(b), zero, token, logp, sampling_logp, none_ended),
            steps=nothing,
            used=nothing,
        )

    def _decode(self, params: PyTree, slots: Slots) -> Slots:
        """Choose one more token of every completion that has not ended."""
        waiting = free(slots)
        head = slots.steps % self.sampling.max_new_tokens
        read = [
            self._read(policy, slots, Cache(shared, own, slots.step - 1, head))
            for policy, shared, own in zip(
                self._policies(params), slots.shared, slots.own, strict=True
            )
        ]
        logits, new = zip(*read, strict=True)
        token, logp, sampling_logp = self._pick(slots.keys, slots.step, logits)
        ended = slots.done | waiting[:, None]
        return slots._replace(
            own=jax.tree.map(lambda old, x: _write(old, x, head), slots.own, new),
            step=jnp.where(waiting, slots.step, slots.step + 1),
            token=token,
            done=slots.done | (~waiting[:, None] & self._is_stop(token)),
            samples=_record(slots.samples, slots.step, token, logp, sampling_logp, ended),
            steps=slots.steps + 1,
            used=slots.used + jnp.sum(~waiting, dtype=jnp.int32),
        )

    def _policies(self, params: PyTree) -> tuple[PyTree, ...]:
        policies = (params,) if len(self.weights) == 1 else tuple(params)
        if len(policies) != len(self.weights):
            raise ValueError(
                f"{len(self.weights)} weights and {len(policies)} parameters: give a tuple with one"
                " tree each"
            )
        return policies

    def _prefill(self, params: PyTree, prompts: Prompts) -> tuple[Float[Array, "B K V"], KV]:
        """Return the logits of the first token, and the prompts' keys and values."""
        out = self._forward(params, prompts.tokens, prompts.length)
        states = cast(Array, out.prompt)
        last = jnp.take_along_axis(states, (prompts.length - 1)[:, None, None], axis=1)
        logits = self._logits(params, last)
        shape = (len(last), self.num_samples, logits.shape[-1])
        return jnp.broadcast_to(logits, shape), cast(KV, out.kv)

    def _read(self, params: PyTree, slots: Slots, cache: Cache) -> tuple[Float[Array, "B K V"], KV]:
        """Return the logits of what follows the newest token, and its keys and values."""
        out = self._forward(params, None, slots.length, slots.token[..., None], cache)
        states = cast(Array, out.completion)
        return self._logits(params, states[:, :, 0]), cast(KV, out.kv)

    def _forward(self, params: PyTree, *streams: Array | Cache | None) -> Forward:
        return cast(Forward, self.decoder.apply({"params": params}, *streams, return_kv=True))

    def _logits(self, params: PyTree, hidden: Array) -> Array:
        arch = self.decoder.arch
        return logits_of(hidden, output_kernel(params, arch), arch.final_softcap)

    def _pick(
        self,
        keys: UInt32[jax.Array, "B K words"],
        step: Int[Array, "B"],
        logits: tuple[Float[Array, "B K V"], ...],
    ) -> tuple[Int[Array, "B K"], Float[Array, "B K"], Float[Array, "B K"]]:
        """Draw a token of each completion; return it, its raw log-prob, its log-prob as drawn."""
        typed = jax.random.wrap_key_data(keys)
        at_step = jax.vmap(lambda row, s: jax.vmap(lambda key: jax.random.fold_in(key, s))(row))(
            typed, step
        )
        logits = tuple(self.decoder.constrain(x, "logits") for x in logits)
        token, logp, sampling_logp = choose(at_step, mixture(logits, self.weights), self.sampling)
        if len(self.weights) > 1:
            logp = log_prob(logits[0] / self.sampling.logp_temperature, token)
        return token, logp, sampling_logp

    def _is_stop(self, token: Int[Array, "B K"]) -> Bool[Array, "B K"]:
        stops = jnp.asarray(self.eos_ids, jnp.int32)
        return (token[..., None] == stops[None, None, :]).any(-1)

    def _blank(self, b: int) -> Samples:
        """Return the samples of B prompts before any token is chosen."""
        k, t = self.num_samples, self.sampling.max_new_tokens
        zeros = jnp.zeros((b, k, t), jnp.float32)
        return Samples(
            tokens=jnp.full((b, k, t), self.pad_id, jnp.int32),
            length=jnp.zeros((b, k), jnp.int32),
            logp=zeros,
            sampling_logp=zeros,
            finish=jnp.full((b, k), FINISH_LENGTH, jnp.int8),
        )

    def _room(self, shared: Array) -> Array:
        """Return zeros [...,B,K,G,T,E] for completions' keys, from a prompt's [...,B,G,P,E]."""
        *layers, b, g, _, e = shared.shape
        t = self.sampling.max_new_tokens
        return jnp.zeros((*layers, b, self.num_samples, g, t, e), shared.dtype)

    def _placed(self, slots: Slots) -> Slots:
        """Shard slots in one way, whichever method made them, so that each compiles once."""
        kinds = dict.fromkeys(Slots._fields, "rows") | dict.fromkeys(("shared", "own"), "cache")
        kinds |= dict.fromkeys(("steps", "used"), "count")

        def placed(field: str) -> PyTree:
            return jax.tree.map(
                lambda x: self.decoder.constrain(x, kinds[field]), getattr(slots, field)
            )

        return Slots(*map(placed, Slots._fields))


class CompiledSampler(NamedTuple):
    """The methods of a `Sampler`, jitted, and the prompts of a batch."""

    slots: int
    start: Callable[[PyTree, Prompts, jax.Array, Array], Slots]
    run: Callable[[PyTree, Slots, Array], Slots]
    refill: Callable[[PyTree, Slots, Prompts, jax.Array, Array], Slots]
    look: Callable[[Slots], tuple[Array, Samples]]
    step: Callable[[PyTree, Slots], Slots]


Generate = Callable[[PyTree, Prompts, jax.Array], Samples]


def in_one_batch(sampler: Sampler | CompiledSampler) -> Generate:
    """Return generate(params, prompts, key) -> Samples of one batch, no slot taken twice."""

    def generate(params: PyTree, prompts: Prompts, key: jax.Array) -> Samples:
        b = len(prompts.length)
        slots = sampler.start(params, prompts, key, jnp.ones((b,), bool))
        return finished(sampler.run(params, slots, jnp.int32(b)))

    return generate


def make_generate(decoder: Decoder, **settings) -> Generate:
    """Return `in_one_batch(Sampler(decoder=decoder, **settings))`."""
    return in_one_batch(Sampler(decoder=decoder, **settings))


def _write(cache: Array, new: Array, head: Array) -> Array:
    """Put the newest token's keys [N,B,K,G,1,E] at slot `head`, in place inside the loop."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), head, axis=-2)


def _record(
    samples: Samples,
    step: Int[Array, "B"],
    token: Int[Array, "B K"],
    logp: Float[Array, "B K"],
    sampling_logp: Float[Array, "B K"],
    ended: Bool[Array, "B K"],
) -> Samples:
    """Write each row's token at its `step`; completions that have ended keep their padding."""
    at_step = jnp.arange(samples.tokens.shape[2])[None, None, :] == step[:, None, None]
    here = at_step & ~ended[:, :, None]

    def column(old, new):
        return jnp.where(here, new[..., None].astype(old.dtype), old)

    return samples._replace(
        tokens=column(samples.tokens, token),
        length=samples.length + jnp.where(ended, 0, 1),
        logp=column(samples.logp, logp),
        sampling_logp=column(samples.sampling_logp, sampling_logp),
    )

"""One decoder forward for prefill, decoding and training, so that sampler and trainer cannot drift
apart.

A prompt is computed once. Its K completions are a second stream of tokens that attends to the
prompt's keys and to their own. The two streams are laid side by side, [B, P + K*T], through every
dense layer (one matrix product, one gather of sharded weights) and part only inside attention."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssppo_jax.models.arch import Arch
from ssppo_jax.models.attention import KeyBlock, attend
from ssppo_jax.models.layers import Heads, Merge, Mlp, RMSNorm, rotary_table, rotate
from ssppo_jax.models.lora import Lora
from ssppo_jax.models.masks import Masks, Scope, layer_kinds
from ssppo_jax.models.splash import attend_stream
from ssppo_jax.types import Array, PyTree

REMAT_POLICIES = ("none", "dots", "offload", "full")


_KEPT = {  # what the backward pass finds, by policy
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": None,
}


class KV(NamedTuple):
    """Keys and values of all layers."""

    k: Array  # [N,B,G,P,E] for a prompt, [N,B,K,G,T,E] for completions
    v: Array  # like k


class Cache(NamedTuple):
    """What decoding has seen so far: the prompts, once, and of each row's completions the `filled`
    tokens.

    `own` is a ring: the newest token of every row lies in front of slot `head`, the one before it
    in front of that. So rows that began at different times are written by one update, at one place.
    """

    prompt: KV  # [N,B,G,P,E]
    own: KV  # [N,B,K,G,T,E]
    filled: Array  # [B] int32, or [] where it is the same for all rows
    head: Array  # [] int32, the slot that is written next


class Forward(NamedTuple):
    """What the decoder returns; streams that were not given are None."""

    prompt: Array | None  # [B,P,D] after the final norm
    completion: Array | None  # [B,K,T,D] after the final norm
    tap: Array | None  # [B,K,T,D] output of block `tap_layer`, before any further norm
    kv: KV | None  # of the prompt if it was given, else of the completion tokens


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the token axis is divided: `p` prompt tokens, then `k` completions of `t` tokens
    (static)."""

    p: int
    k: int
    t: int

    def split(self, x: Array) -> tuple[Array | None, Array | None]:
        """[B,P+K*T,...] -> [B,P,...], [B,K,T,...]"""
        prompt = x[:, : self.p] if self.p else None
        rest = x[:, self.p :].reshape(x.shape[0], self.k, self.t, *x.shape[2:]) if self.k else None
        return prompt, rest

    def join(self, prompt: Array | None, completion: Array | None) -> Array:
        """The inverse of `split`."""
        parts = [] if prompt is None else [prompt]
        if completion is not None:
            b, k, t = completion.shape[:3]
            parts.append(completion.reshape(b, k * t, *completion.shape[3:]))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


class Unsharded:
    """The constraint hook of a model on one device."""

    vocab_parts = 1  # ways the vocabulary is cut

    def __call__(self, x: Array, kind: str) -> Array:
        del kind
        return x

    def per_device(self, kernel: Callable[..., Array]) -> Callable[..., Array]:
        """A kernel that works on whole arrays: here they are whole."""
        return kernel


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); some families norm again before adding."""

    arch: Arch
    layout: Layout
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    constrain: Callable[[Array, str], Array]
    tap_layer: int | None
    return_kv: bool
    lora: Lora | None
    attention: str
    attention_chunk: int

    @nn.compact
    def __call__(self, carry, past, kind, scope):
        x, tap, index = carry
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def norm(y, name):
            layer = RMSNorm(self.arch.norm_eps, **kinds, plus_one=self.arch.family.gemma, name=name)
            return layer(y)

        how = {
            "constrain": self.constrain,
            "implementation": self.attention,
            "chunk": self.attention_chunk,
        }
        attention = Attention(self.arch, self.layout, **kinds, lora=self.lora, **how, name="attn")
        y, kv = attention(norm(x, "attn_norm"), past, kind, scope)
        y = norm(y, "attn_post_norm") if self.arch.family.post_norms else y
        x = self.constrain(x + y, "tokens")
        mlp = Mlp(
            self.arch.mlp_dim, **kinds, lora=self.lora, gelu=self.arch.family.gemma, name="mlp"
        )
        y = mlp(norm(x, "mlp_norm"))
        y = norm(y, "mlp_post_norm") if self.arch.family.post_norms else y
        x = self.constrain(x + y, "tokens")
        if self.tap_layer is not None:
            tap = jnp.where(index == self.tap_layer, x, tap)
        return (x, tap, index + 1), (kv if self.return_kv else None)


class Attention(nn.Module):
    """Causal attention in which K completions share one prompt's keys (contract: prompt once)."""

    arch: Arch
    layout: Layout
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    constrain: Callable[[Array, str], Array]
    lora: Lora | None
    implementation: str
    chunk: int

    @nn.compact
    def __call__(self, x, past, kind, scope):
        a, layout = self.arch, self.layout
        table = scope.table
        if scope.local is not None:
            table = jax.tree.map(
                lambda whole, local: jnp.where(kind.local, local, whole), table, scope.local
            )

        def ready(y, name):
            if a.family.qk_norm and name != "v":
                norm = RMSNorm(
                    a.norm_eps, self.dtype, self.param_dtype, a.family.gemma, name=f"{name}_norm"
                )
                y = norm(y)
            return self.constrain(y, "heads")

        counts = {"q": a.num_heads, "k": a.num_kv_heads, "v": a.num_kv_heads}
        q, k, v = (ready(self._heads(x, n, name), name) for name, n in counts.items())
        q, k = rotate(q, table), rotate(k, table)
        (q_prompt, q_own), (k_prompt, k_own), (v_prompt, v_own) = (
            layout.split(part) for part in (q, k, v)
        )
        k_prompt, v_prompt, k_own, v_own = (
            None if x is None else jnp.swapaxes(x, -3, -2)
            for x in (k_prompt, v_prompt, k_own, v_own)
        )
        if self.implementation == "splash" and past is None:
            look = functools.partial(
                attend_stream, layout=layout, scale=a.score_scale, softcap=a.attn_softcap
            )
            out = self.constrain.per_device(look)(q, k, v, scope.prompt_length)
        else:
            masks = Masks(scope, None if kind is None else kind.window)
            own = KV(k_prompt, v_prompt), KV(k_own, v_own)
            out = self._products(masks, q_prompt, q_own, *own, past)
        y = self.constrain(out, "heads")
        y = Merge(a.hidden_size, self.dtype, self.param_dtype, self.lora, name="o")(y)
        return y, (KV(k_prompt, v_prompt) if layout.p else KV(k_own, v_own))

    def _heads(self, x: Array, heads: int, name: str) -> Array:  # [B,S,heads,E]
        a = self.arch
        kinds = (self.dtype, self.param_dtype, self.lora)
        return Heads(heads, a.head_dim, a.family.qkv_bias, *kinds, name=name)(x)

    def _products(
        self, masks: Masks, q_prompt, q_own, prompt: KV, own: KV, past: _Past | None
    ) -> Array:
        """Each stream's queries over the blocks of keys that it may see; a decoding step has too
        few for a kernel."""
        a, layout, out_prompt, out_own = self.arch, self.layout, None, None
        implementation = self.implementation if past is None else "einsum"
        settings = {"scale": a.score_scale, "softcap": a.attn_softcap, "chunk": self.chunk}
        look = functools.partial(attend, **settings, implementation=implementation)
        if layout.p:
            out_prompt = look(q_prompt[:, None], (KeyBlock(*prompt, masks.prompt(layout.p)),))[:, 0]
        if layout.k:
            shared = prompt if past is None else past.prompt
            blocks = [KeyBlock(*shared, masks.of_prompt(layout.t, shared.k.shape[-2]))]
            if past is not None:
                blocks.append(KeyBlock(*past.own, masks.of_past(layout.t, past.own.k.shape[-2])))
            blocks.append(KeyBlock(*own, masks.own(layout.t)))
            out_own = look(q_own, tuple(blocks))
        return layout.join(out_prompt, out_own)


class Decoder(nn.Module):
    """The decoder of every family, with scanned layers. Parameters are a plain dict; the cache is
    an ordinary argument.

    Attributes:
      arch: the architecture.
      dtype: compute dtype. Norm statistics, softmax and rotary angles are float32 whatever it is.
      param_dtype: dtype parameters are initialised in.
      remat: what the backward pass recomputes: nothing ("none"), all but matrix products ("dots";
        "offload" keeps these in the host's memory), all ("full").
      unroll: layers inlined per scan step; compiles slower, and may decode faster.
      constrain: (array, kind) -> array, places sharding constraints; kinds "tokens" [B,S,D],
        "heads" [B,S,H,E], "logits" [...,V], the embeddings as looked up "columns" [B,S,D], and
        between the steps of sampling "rows" [B,...], "cache" (see `KV`) and "count" [].
      lora: low-rank adapters beside some projections; None for none.
      attention: how prompts are read and completions trained on, one of
        `attention.IMPLEMENTATIONS`; a decoding step is always "einsum".
      attention_chunk: with "einsum", queries whose attention scores exist at one time; 0: all.
    """

    arch: Arch
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    unroll: int = 1
    constrain: Callable[[Array, str], Array] = Unsharded()
    lora: Lora | None = None
    attention: str = "einsum"
    attention_chunk: int = 0

    @nn.compact
    def __call__(
        self,
        prompt: Array | None,  # [B,P] int32, right-padded
        prompt_length: Array,  # [B] int32
        completion: Array | None = None,  # [B,K,T] int32, right-padded
        cache: Cache | None = None,
        *,
        tap_layer: int | None = None,
        return_kv: bool = False,
    ) -> Forward:
        """Hidden states of prompts, of completions, or of both.

        Training gives both streams; prefill only the prompt; decoding only the next tokens and a
        cache. Completion token t of a row sits at position prompt_length + (filled so far) + t."""
        layout = Layout(
            0 if prompt is None else prompt.shape[1],
            *((0, 0) if completion is None else completion.shape[1:]),
        )
        filled = jnp.broadcast_to(
            jnp.int32(0) if cache is None else cache.filled, prompt_length.shape
        )
        positions = _positions(layout, prompt_length, filled)
        embed = nn.Embed(
            self.arch.vocab_size,
            self.arch.hidden_size,
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(stddev=0.02),
            name="embed",
        )
        x = jnp.take(embed.embedding.astype(self.dtype), layout.join(prompt, completion), axis=0)
        x = self.constrain(x, "columns")
        if self.arch.family.gemma:
            x = x * jnp.asarray(
                self.arch.hidden_size**0.5, self.dtype
            )  # rounded to the dtype, as transformers does
        x = self.constrain(x, "tokens")
        # A head is used through `output_kernel` or `score_kernel`; declared here so that init makes
        # it.
        if self.arch.num_labels:
            _Head((self.arch.hidden_size, self.arch.num_labels), self.param_dtype, name="score")()
        elif not self.arch.tie_embeddings:
            _Head((self.arch.hidden_size, self.arch.vocab_size), self.param_dtype, name="head")()
        kinds = self.arch, layout, self.dtype, self.param_dtype, self.constrain
        attention = self.attention, self.attention_chunk
        settings = *kinds, tap_layer, return_kv, self.lora, *attention
        blocks = self._scanned()(*settings, name="layers")
        past = None if cache is None else _Past(cache.prompt, cache.own)
        slots = (
            layout.p + layout.t
            if cache is None
            else sum(kv.k.shape[-2] for kv in cache[:2]) + layout.t
        )
        tap = x if tap_layer is not None else None
        scope = Scope(
            *_tables(positions, self.arch),
            prompt_length,
            filled,
            None if cache is None else cache.head,
        )
        (x, tap, _), kv = blocks((x, tap, jnp.int32(0)), past, layer_kinds(self.arch, slots), scope)
        x = RMSNorm(
            self.arch.norm_eps, self.dtype, self.param_dtype, self.arch.family.gemma, name="norm"
        )(x)
        tapped = None if tap is None else layout.split(tap)[1]
        return Forward(*layout.split(x), tapped, kv)

    def _scanned(self):
        """Block, remat'ed by policy and scanned over layers: one body to lower and compile whatever
        N is."""
        block = Block
        if self.remat != "none":
            block = nn.remat(block, policy=_KEPT[self.remat], prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast),
            length=self.arch.num_layers,
            unroll=self.unroll,
        )


class _Past(NamedTuple):
    prompt: KV
    own: KV


class _Head(nn.Module):
    shape: tuple[int, int]
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self):
        return self.param(
            "kernel",
            nn.initializers.normal(stddev=self.shape[0] ** -0.5),
            self.shape,
            self.param_dtype,
        )


def _positions(layout: Layout, prompt_length: Array, filled: Array) -> Array:  # [B,P+K*T]
    b = prompt_length.shape[0]
    prompt = jnp.broadcast_to(jnp.arange(layout.p)[None, :], (b, layout.p)) if layout.p else None
    own = None
    if layout.k:
        own = (prompt_length + filled)[:, None, None] + jnp.arange(layout.t)[None, None, :]
        own = jnp.broadcast_to(own, (b, layout.k, layout.t))
    return layout.join(prompt, own)


def _tables(positions: Array, arch: Arch) -> tuple[tuple[Array, Array], tuple[Array, Array] | None]:
    """Rotary tables of layers in general, and of those with a window where these have their own."""
    table = rotary_table(positions, arch.head_dim, arch.rope_theta, arch.rope_scaling)
    local = arch.local_rope_theta
    return table, None if local is None else rotary_table(positions, arch.head_dim, local)


def output_kernel(params: PyTree, arch: Arch) -> Array:  # [D,V]
    """The matrix that turns hidden states into logits: the embedding transposed, or a head of its
    own."""
    return params["embed"]["embedding"].T if arch.tie_embeddings else params["head"]["kernel"]


def init_params(decoder: Decoder, key: Array) -> PyTree:
    """Random parameters, for tests, smoke runs and abstract shapes (`jax.eval_shape`)."""
    prompt, length = jnp.zeros((1, 2), jnp.int32), jnp.ones((1,), jnp.int32)
    decoder = decoder.clone(
        attention="einsum"
    )  # one prompt cannot be divided over a mesh, as a kernel would
    return decoder.init(key, prompt, length)["params"]

"""One decoder forward for prefill, decoding and training, so that sampler and trainer agree.

A prompt is computed once. Its K completions are a second stream of tokens that attends to the
prompt's keys and to their own. The two streams lie side by side, [B, P + K*T], in every dense layer
(one matrix product, one gather of sharded weights) and part only inside attention. There they can
also lie without padding, as a stream of tokens (`packing`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Key

from ssppo_jax.models.arch import Arch
from ssppo_jax.models.attention import KeyBlock, attend
from ssppo_jax.models.layers import Heads, Merge, Mlp, RMSNorm, rotary_table, rotate
from ssppo_jax.models.lora import Lora
from ssppo_jax.models.masks import Kind, Masks, Scope, Table, layer_kinds
from ssppo_jax.models.packing import Packing
from ssppo_jax.models.splash import attend_stream
from ssppo_jax.types import Array, PyTree

REMAT_POLICIES = ("none", "dots", "offload", "full")


_KEPT = {  # what the backward pass finds, by policy
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": None,
}


class KV(NamedTuple):
    """Keys and values of all layers, of a prompt or of completions; inside a layer without N."""

    k: Float[Array, "N B G P E"] | Float[Array, "N B K G T E"]
    v: Float[Array, "N B G P E"] | Float[Array, "N B K G T E"]


class Cache(NamedTuple):
    """Keys and values of the prompts and of the tokens decoded so far.

    `own` is a ring: the newest token of every row lies in front of slot `head`, the one before it
    in front of that. So rows that began at different times are written by one update, at one place.
    """

    prompt: KV
    own: KV
    filled: Int[Array, "B"] | Int[Array, ""]  # tokens of each row; one number if all have as many
    head: Int[Array, ""]  # the slot that is written next


class Forward(NamedTuple):
    """The decoder's results; streams that were not given are None."""

    prompt: Float[Array, "B P D"] | None  # after the final norm
    completion: Float[Array, "B K T D"] | None  # after the final norm
    # Output of block `tap_layer`, before any further norm.
    tap: Float[Array, "B K T D"] | Float[Array, "W S D"] | None
    kv: KV | None  # of the prompt if it was given, else of the completion tokens
    stream: Float[Array, "W S D"] | None = None  # with a packing, in place of both streams


@dataclasses.dataclass(frozen=True)
class Layout:
    """The token axis: `p` prompt tokens, then `k` completions of `t` tokens (static)."""

    p: int
    k: int
    t: int

    def split(self, x: Array) -> tuple[Array | None, Array | None]:
        """Cut [B,P+K*T,...] into [B,P,...] and [B,K,T,...]."""
        prompt = x[:, : self.p] if self.p else None
        rest = x[:, self.p :].reshape(x.shape[0], self.k, self.t, *x.shape[2:]) if self.k else None
        return prompt, rest

    def join(self, prompt: Array | None, completion: Array | None) -> Array:
        """Invert `split`."""
        parts = [] if prompt is None else [prompt]
        if completion is not None:
            b, k, t = completion.shape[:3]
            parts.append(completion.reshape(b, k * t, *completion.shape[3:]))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


class Sharding(Protocol):
    """The hook that places sharding constraints on activations (`distributed.mesh.Constrain`)."""

    @property
    def vocab_parts(self) -> int: ...

    def __call__(self, x: Array, kind: str) -> Array: ...

    def per_device(self, kernel: Callable[..., Array]) -> Callable[..., Array]: ...


class Unsharded:
    """The sharding hook of a model on one device."""

    vocab_parts = 1  # ways the vocabulary is cut

    def __call__(self, x: Array, kind: str) -> Array:
        del kind
        return x

    def per_device(self, kernel: Callable[..., Array]) -> Callable[..., Array]:
        """Return the kernel itself: arrays are whole here."""
        return kernel


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); some families norm again before adding."""

    arch: Arch
    layout: Layout
    dtype: DTypeLike
    param_dtype: DTypeLike
    constrain: Sharding
    tap_layer: int | None
    return_kv: bool
    lora: Lora | None
    attention: str
    attention_chunk: int

    @nn.compact
    def __call__(self, carry, past: _Past | None, kind: Kind | None, scope: Scope):
        x, tap, index = carry
        arch, family, kinds = self.arch, self.arch.family, (self.dtype, self.param_dtype)
        norm = functools.partial(RMSNorm, arch.norm_eps, *kinds, family.gemma)
        attention = Attention(
            arch,
            self.layout,
            *kinds,
            self.constrain,
            self.lora,
            self.attention,
            self.attention_chunk,
            name="attn",
        )
        y, kv = attention(norm(name="attn_norm")(x), past, kind, scope)
        y = norm(name="attn_post_norm")(y) if family.post_norms else y
        x = self.constrain(x + y, "tokens")
        mlp = Mlp(arch.mlp_dim, *kinds, family.gemma, self.lora, name="mlp")
        y = mlp(norm(name="mlp_norm")(x))
        y = norm(name="mlp_post_norm")(y) if family.post_norms else y
        x = self.constrain(x + y, "tokens")
        if self.tap_layer is not None:
            tap = jnp.where(index == self.tap_layer, x, tap)
        return (x, tap, index + 1), (kv if self.return_kv else None)


class Attention(nn.Module):
    """Causal attention in which K completions share one prompt's keys (contract: prompt once)."""

    arch: Arch
    layout: Layout
    dtype: DTypeLike
    param_dtype: DTypeLike
    constrain: Sharding
    lora: Lora | None
    implementation: str
    chunk: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], past: _Past | None, kind: Kind | None, scope: Scope
    ) -> tuple[Float[Array, "B S D"], KV | None]:
        a, layout = self.arch, self.layout
        table = scope.table
        if scope.local is not None and kind is not None:
            table = jax.tree.map(
                lambda whole, local: jnp.where(kind.local, local, whole), table, scope.local
            )

        q = rotate(self._heads(x, a.num_heads, "q"), table)
        k = rotate(self._heads(x, a.num_kv_heads, "k"), table)
        v = self._heads(x, a.num_kv_heads, "v")
        packing = scope.packing
        if packing is not None:
            rows = scope.prompt_length.shape[0]
            # [B,P+K*T,heads,E]
            q, k, v = (self.constrain(packing.unpack(x, rows), "heads") for x in (q, k, v))
        prompt, own = (_kv(*parts) for parts in zip(layout.split(k), layout.split(v), strict=True))
        if self.implementation == "splash" and past is None:
            look = functools.partial(
                attend_stream, layout=layout, scale=a.score_scale, softcap=a.attn_softcap
            )
            out = self.constrain.per_device(look)(q, k, v, scope.prompt_length)
        else:
            masks = Masks(scope, None if kind is None else kind.window)
            out = self._products(masks, q, prompt, own, past)
        if packing is not None:
            out = packing.pack(self.constrain(out, "heads"))
        y = self.constrain(out, "heads")
        y = Merge(a.hidden_size, self.dtype, self.param_dtype, self.lora, name="o")(y)
        return y, own if prompt is None else prompt

    def _heads(self, x: Array, heads: int, name: str) -> Array:  # [B,S,heads,E]
        a, kinds = self.arch, (self.dtype, self.param_dtype)
        y = Heads(heads, a.head_dim, a.family.qkv_bias, *kinds, self.lora, name=name)(x)
        if a.family.qk_norm and name != "v":
            y = RMSNorm(a.norm_eps, *kinds, a.family.gemma, name=f"{name}_norm")(y)
        return self.constrain(y, "heads")

    def _products(
        self, masks: Masks, q: Array, prompt: KV | None, own: KV | None, past: _Past | None
    ) -> Array:
        """Let each stream's queries look at the blocks of keys that they may see.

        A decoding step has too few queries for a kernel."""
        look = functools.partial(
            attend,
            scale=self.arch.score_scale,
            softcap=self.arch.attn_softcap,
            chunk=self.chunk,
            implementation=self.implementation if past is None else "einsum",
        )
        layout = self.layout
        q_prompt, q_own = layout.split(q)
        if q_prompt is not None and prompt is not None:
            block = KeyBlock(*prompt, masks.prompt(layout.p))
            q_prompt = look(q_prompt[:, None], (block,))[:, 0]
        if q_own is not None and own is not None:
            shared = prompt if past is None else past.prompt
            blocks = [KeyBlock(*own, masks.own(layout.t))]
            if past is not None:
                past_mask = masks.of_past(layout.t, past.own.k.shape[-2])
                blocks.insert(0, KeyBlock(*past.own, past_mask))
            if shared is not None:
                shared_mask = masks.of_prompt(layout.t, shared.k.shape[-2])
                blocks.insert(0, KeyBlock(*shared, shared_mask))
            q_own = look(q_own, tuple(blocks))
        return layout.join(q_prompt, q_own)


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
      constrain: places sharding constraints; kinds "tokens" [B,S,D],
        "heads" [B,S,H,E], "logits" [...,V], the embeddings as looked up "columns" [B,S,D], and
        between the steps of sampling "rows" [B,...], "cache" (see `KV`) and "count" [].
      lora: low-rank adapters beside some projections; None for none.
      attention: how prompts are read and completions trained on, one of
        `attention.IMPLEMENTATIONS`; a decoding step is always "einsum".
      attention_chunk: with "einsum", queries whose attention scores exist at one time; 0: all.
    """

    arch: Arch
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str = "none"
    unroll: int = 1
    constrain: Sharding = Unsharded()
    lora: Lora | None = None
    attention: str = "einsum"
    attention_chunk: int = 0

    @nn.compact
    def __call__(
        self,
        prompt: Int[Array, "B P"] | None,  # right-padded, as is `completion`
        prompt_length: Int[Array, "B"],
        completion: Int[Array, "B K T"] | None = None,
        cache: Cache | None = None,
        *,
        tap_layer: int | None = None,
        return_kv: bool = False,
        packing: Packing | None = None,
    ) -> Forward:
        """Return hidden states of prompts, of completions, or of both.

        Training gives both streams; prefill only the prompt; decoding only the next tokens and a
        cache. Completion token t of a row sits at position prompt_length + (filled so far) + t.
        With a `packing` (training only) dense layers see its streams, and `Forward.stream` holds
        the result."""
        p = 0 if prompt is None else prompt.shape[1]
        k, t = (0, 0) if completion is None else completion.shape[1:]
        layout = Layout(p, k, t)
        filled = jnp.int32(0) if cache is None else cache.filled
        filled = jnp.broadcast_to(filled, prompt_length.shape)
        positions = _positions(layout, prompt_length, filled)
        embed = nn.Embed(
            self.arch.vocab_size,
            self.arch.hidden_size,
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(stddev=0.02),
            name="embed",
        )
        tokens = layout.join(prompt, completion)
        if packing is not None:
            tokens, positions = packing.pack(tokens), packing.pack(positions)
        x: Array = jnp.take(embed.embedding.astype(self.dtype), tokens, axis=0)
        x = self.constrain(x, "columns")
        if self.arch.family.gemma:  # the factor is rounded to the dtype, as transformers does
            x = x * jnp.asarray(self.arch.hidden_size**0.5, self.dtype)
        x = self.constrain(x, "tokens")
        # A head is used through `output_kernel` or `score_kernel`; init makes it here.
        if self.arch.num_labels:
            _Head((self.arch.hidden_size, self.arch.num_labels), self.param_dtype, name="score")()
        elif not self.arch.tie_embeddings:
            _Head((self.arch.hidden_size, self.arch.vocab_size), self.param_dtype, name="head")()
        kinds = self.arch, layout, self.dtype, self.param_dtype, self.constrain
        attention = self.attention, self.attention_chunk
        settings = *kinds, tap_layer, return_kv, self.lora, *attention
        blocks = self._scanned()(*settings, name="layers")
        past, head, slots = None, None, layout.p + layout.t
        if cache is not None:
            past, head = _Past(cache.prompt, cache.own), cache.head
            slots = sum(kv.k.shape[-2] for kv in past) + layout.t
        tap = x if tap_layer is not None else None
        scope = Scope(*_tables(positions, self.arch), prompt_length, filled, head, packing)
        (x, tap, _), kv = blocks((x, tap, jnp.int32(0)), past, layer_kinds(self.arch, slots), scope)
        norm = RMSNorm(self.arch.norm_eps, *kinds[2:4], self.arch.family.gemma, name="norm")
        x = norm(x)
        if packing is not None:
            return Forward(None, None, tap, None, x)
        tapped = None if tap is None else layout.split(tap)[1]
        return Forward(*layout.split(x), tapped, kv)

    def _scanned(self):
        """Return the block, rematerialised by policy and scanned: one body to compile for all N."""
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
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self):
        init = nn.initializers.normal(stddev=self.shape[0] ** -0.5)
        return self.param("kernel", init, self.shape, self.param_dtype)


def _kv(k: Array | None, v: Array | None) -> KV | None:
    """Put the head axis of keys and values in front of their tokens, as attention reads them."""
    if k is None or v is None:
        return None
    return KV(jnp.swapaxes(k, -3, -2), jnp.swapaxes(v, -3, -2))


def _positions(
    layout: Layout, prompt_length: Int[Array, "B"], filled: Int[Array, "B"]
) -> Int[Array, "B S"]:
    b = prompt_length.shape[0]
    prompt = jnp.broadcast_to(jnp.arange(layout.p)[None, :], (b, layout.p)) if layout.p else None
    own = None
    if layout.k:
        own = (prompt_length + filled)[:, None, None] + jnp.arange(layout.t)[None, None, :]
        own = jnp.broadcast_to(own, (b, layout.k, layout.t))
    return layout.join(prompt, own)


def _tables(positions: Int[Array, "B S"], arch: Arch) -> tuple[Table, Table | None]:
    """Return rotary tables of layers in general, and of those with a window if they differ."""
    table = rotary_table(positions, arch.head_dim, arch.rope_theta, arch.rope_scaling)
    local = arch.local_rope_theta
    return table, None if local is None else rotary_table(positions, arch.head_dim, local)


def output_kernel(params: PyTree, arch: Arch) -> Float[Array, "D V"]:
    """Return the matrix from hidden states to logits: the embedding transposed, or a head."""
    return params["embed"]["embedding"].T if arch.tie_embeddings else params["head"]["kernel"]


def init_params(decoder: Decoder, key: Key[jax.Array, ""]) -> PyTree[Array]:
    """Make random parameters, for tests, smoke runs and abstract shapes (`jax.eval_shape`)."""
    prompt, length = jnp.zeros((1, 2), jnp.int32), jnp.ones((1,), jnp.int32)
    # One prompt cannot be divided over a mesh, as a kernel would.
    decoder = decoder.clone(attention="einsum")
    return decoder.init(key, prompt, length)["params"]

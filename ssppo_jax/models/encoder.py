"""Sentence encoders, BERT and Nomic BERT: from tokens to one vector a text.

The frozen encoder phi of S-SPPO's semantic gate (arXiv 2606.01561, section 3.1). Used as a
function:

    encoder.apply({"params": params}, tokens, length) -> embeddings [R,D] float32

Letters beyond `types.py`: R texts (rows), S token slots. Masks come from `length`, never from
`tokens != pad`."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from ssppo_jax.models.layers import rotary_table, rotate
from ssppo_jax.models.masks import Table
from ssppo_jax.types import Array

POOLINGS = ("mean", "cls", "max")


@dataclasses.dataclass(frozen=True)
class EncoderArch:
    """The shape of an encoder and how its token vectors become one sentence vector.

    With `rope_theta` it is Nomic BERT (arXiv 2402.01613): rotary positions in place of a table,
    W2(silu(Wg x) * (W1 x)) in place of W2 gelu(W1 x), and no biases outside the norms."""

    vocab_size: int
    width: int  # D
    layers: int  # N
    heads: int  # H
    mlp: int  # F
    positions: int  # longest text in tokens, [CLS] and [SEP] included
    token_types: int = 2
    norm_eps: float = 1e-12
    pooling: str = "mean"  # one of POOLINGS
    normalize: bool = True  # L2-normalise the sentence vector
    rope_theta: float | None = None  # base of the rotary positions; None: BERT

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is not one of {', '.join(POOLINGS)}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")


class Encoder(nn.Module):
    """Sentence vectors of right-padded texts, as BERT (arXiv 1810.04805) with post-LayerNorm blocks
    and erf GELU.

    x = LN(word[t] + position[s] + type[0]), then N times x = LN(x + attention(x)); x = LN(x + W2
    gelu(W1 x)), then pooling over the real tokens, then x / |x| if `arch.normalize`. There is no
    dropout: the encoder is frozen.

    A row of length 0 (padding of the batch) gives the zero vector. Softmax, LayerNorm statistics
    and pooling are float32 whatever `dtype`; with dtype float32 the matrix products ask for full
    precision, because accelerators otherwise round their inputs (TPU to bfloat16, GPU to TF32)."""

    arch: EncoderArch
    dtype: str = "float32"  # compute dtype; parameters stay as given

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "R S"],
        length: Int[Array, "R"],
    ) -> Float[Array, "R D"]:
        arch, slots = self.arch, tokens.shape[1]
        if slots > arch.positions:
            raise ValueError(
                f"{slots} token slots, but the encoder has {arch.positions} positions: truncate the"
                " texts"
            )
        mask = jnp.arange(slots)[None, :] < length[:, None]  # [R,S]
        x = _Embeddings(arch, self.dtype, name="embeddings")(tokens)
        table = None
        if arch.rope_theta is not None:
            places = jnp.arange(slots)[None]
            table = rotary_table(places, arch.width // arch.heads, arch.rope_theta)
        stack = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=arch.layers,
        )
        x, _ = stack(arch, self.dtype, name="layers")(x, mask, table)
        return _pool(x.astype(jnp.float32), mask, arch)


class _Embeddings(nn.Module):
    arch: EncoderArch
    dtype: str

    @nn.compact
    def __call__(self, tokens: Int[Array, "R S"]) -> Float[Array, "R S D"]:
        arch = self.arch
        normed = norm(arch.norm_eps, self.dtype, "norm")
        word = nn.Embed(arch.vocab_size, arch.width, dtype=self.dtype, name="word")(tokens)
        kind = nn.Embed(arch.token_types, arch.width, dtype=self.dtype, name="type")(
            jnp.zeros((1, 1), jnp.int32)
        )
        if arch.rope_theta is not None:
            return normed(word + kind)
        position = nn.Embed(arch.positions, arch.width, dtype=self.dtype, name="position")(
            jnp.arange(tokens.shape[1])[None, :]
        )
        return normed(word + position + kind)


class _Layer(nn.Module):
    """One post-LN block. It returns (x, None), the carry form that `nn.scan` wants."""

    arch: EncoderArch
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "R S D"], mask: Bool[Array, "R S"], table: Table | None
    ) -> tuple[Float[Array, "R S D"], None]:
        arch = self.arch
        attended = self._attention(x, mask, table)
        x = norm(arch.norm_eps, self.dtype, "attention_norm")(x + attended)
        if table is None:
            hidden = jax.nn.gelu(self._dense(arch.mlp, "up")(x), approximate=False)
        else:
            hidden = jax.nn.silu(self._dense(arch.mlp, "gate")(x)) * self._dense(arch.mlp, "up")(x)
        y = x + self._dense(arch.width, "down")(hidden)
        return norm(arch.norm_eps, self.dtype, "mlp_norm")(y), None

    def _dense(self, features: int, name: str) -> nn.Dense:
        return dense(features, self.dtype, name, bias=self.arch.rope_theta is None)

    def _attention(self, x: Array, mask: Array, table: Table | None) -> Array:
        heads, head_dim = self.arch.heads, self.arch.width // self.arch.heads
        query, key, value = (
            self._dense(self.arch.width, name)(x).reshape(*x.shape[:2], heads, head_dim)
            for name in ("query", "key", "value")
        )
        if table is not None:
            query, key = rotate(query, table), rotate(key, table)
        precision = precision_of(self.dtype)
        scores = jnp.einsum("rqhe,rkhe->rhqk", query, key, precision=precision)
        scores = scores.astype(jnp.float32) / head_dim**0.5
        # A finite floor, not -inf: a row of length 0 must stay finite.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("rhqk,rkhe->rqhe", weights, value, precision=precision)
        return self._dense(self.arch.width, "out")(mixed.reshape(x.shape))


def _pool(
    x: Float[Array, "R S D"], mask: Bool[Array, "R S"], arch: EncoderArch
) -> Float[Array, "R D"]:
    kept = jnp.where(mask[:, :, None], x, 0.0)
    if arch.pooling == "mean":
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        pooled = jnp.sum(kept, axis=1) / count
    elif arch.pooling == "cls":
        pooled = kept[:, 0]
    else:
        lowest = jnp.where(mask[:, :, None], x, jnp.finfo(jnp.float32).min)
        pooled = jnp.where(mask[:, :1], jnp.max(lowest, axis=1), 0.0)
    if not arch.normalize:
        return pooled
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


def dense(features: int, dtype: str, name: str, *, bias: bool = True) -> nn.Dense:
    """Make a projection, in full precision where the compute dtype is float32."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, precision=precision_of(dtype), name=name)


def norm(eps: float, dtype: str, name: str) -> nn.LayerNorm:
    """Make a LayerNorm of two passes: the fast variance E[x^2] - E[x]^2 cancels digits."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def precision_of(dtype: str) -> jax.lax.Precision | None:
    """Return the precision of products whose inputs accelerators would otherwise round."""
    return jax.lax.Precision.HIGHEST if dtype == "float32" else None

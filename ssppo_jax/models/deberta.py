"""DeBERTa-v3 with disentangled attention (arXiv 2006.03654, 2111.09543) and the head of PairRM
(arXiv 2306.02561).

    logit = head([h_source, h_candidate1]) - head([h_source, h_candidate2])        P(first is
    better) = sigmoid(logit)

h are the last hidden states at the three marker tokens of "<source> ... <candidate1> ...
<candidate2> ...". Used as a function: ranker.apply({"params": params}, tokens, length) -> logits
[R]. Letters: R pairs (rows), S token slots."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ssppo_jax.models.encoder import dense, norm, precision_of
from ssppo_jax.types import Array


@dataclasses.dataclass(frozen=True)
class RankerArch:
    """The shape of the ranker, and the ids of its marker tokens."""

    vocab_size: int
    width: int  # D
    layers: int
    heads: int
    mlp: int
    buckets: int  # relative positions on either side that are told apart
    reach: int  # distance at which the buckets end
    norm_eps: float
    tasks: int  # outputs of the head, averaged
    source_id: int
    first_id: int
    second_id: int
    norm_positions: bool = True  # LayerNorm over the position embeddings


class Ranker(nn.Module):
    """PairRM's comparison of two candidates. It has no dropout: the ranker is frozen.

    Softmax, LayerNorm statistics and the head are float32 whatever `dtype`. A row of length 0 gives
    logit 0."""

    arch: RankerArch
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "R S"],  # right-padded
        length: Int[Array, "R"],
    ) -> Float[Array, "R"]:
        arch, slots = self.arch, tokens.shape[1]
        mask = jnp.arange(slots)[None, :] < length[:, None]
        word = nn.Embed(arch.vocab_size, arch.width, dtype=self.dtype, name="word")(tokens)
        x = norm(arch.norm_eps, self.dtype, "norm")(word)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (2 * arch.buckets, arch.width)
        )
        if arch.norm_positions:
            positions = norm(arch.norm_eps, self.dtype, "positions_norm")(
                positions.astype(self.dtype)
            )
        stack = nn.scan(
            _Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=arch.layers,
        )
        x, _ = stack(arch, self.dtype, name="layers")(x, mask, positions)
        source, first, second = (
            _at(x, tokens == token, mask)
            for token in (arch.source_id, arch.first_id, arch.second_id)
        )
        sides = [jnp.concatenate([source, y], axis=-1) for y in (first, second)]
        both = _Head(arch, name="head")(jnp.stack(sides))  # [2,R,tasks]
        return jnp.where(length > 0, jnp.mean(both[0] - both[1], axis=-1), 0.0)


class _Layer(nn.Module):
    """One post-LN block. It returns (x, None), the carry form that `nn.scan` wants."""

    arch: RankerArch
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "R S D"], mask: Bool[Array, "R S"], positions: Float[Array, "p D"]
    ) -> tuple[Float[Array, "R S D"], None]:
        arch = self.arch
        attended = self._attention(x, mask, positions)
        x = norm(arch.norm_eps, self.dtype, "attention_norm")(x + attended)
        hidden = jax.nn.gelu(dense(arch.mlp, self.dtype, "up")(x), approximate=False)
        y = x + dense(arch.width, self.dtype, "down")(hidden)
        return norm(arch.norm_eps, self.dtype, "mlp_norm")(y), None

    def _attention(self, x: Array, mask: Array, positions: Array) -> Array:
        """Attend with scores (q_i.k_j + q_i.pk_d + k_j.pq_d) / sqrt(3 E).

        d is the bucket of i - j; pk and pq are its key and query."""
        heads, head_dim = self.arch.heads, self.arch.width // self.arch.heads
        query, key, value = (
            dense(self.arch.width, self.dtype, name) for name in ("query", "key", "value")
        )

        def split(y):
            return y.reshape(*y.shape[:-1], heads, head_dim)

        q, k, v = split(query(x)), split(key(x)), split(value(x))
        position_q, position_k = split(query(positions)), split(key(positions))  # [2 buckets,H,E]
        bucket = relative_buckets(x.shape[1], self.arch.buckets, self.arch.reach)
        precision = precision_of(self.dtype)
        scores = jnp.einsum("rqhe,rkhe->rhqk", q, k, precision=precision)
        to_position = jnp.einsum("rqhe,phe->rhqp", q, position_k, precision=precision)
        from_position = jnp.einsum("rkhe,phe->rhkp", k, position_q, precision=precision)
        scores = scores + jnp.take_along_axis(to_position, bucket[None, None], axis=3)
        back = jnp.take_along_axis(from_position, bucket.T[None, None], axis=3)  # [R,H,key,query]
        scores = (scores + back.swapaxes(2, 3)).astype(jnp.float32) / (3 * head_dim) ** 0.5
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("rhqk,rkhe->rqhe", weights, v, precision=precision)
        return dense(self.arch.width, self.dtype, "out")(mixed.reshape(x.shape))


class _Head(nn.Module):
    arch: RankerArch

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = jnp.tanh(dense(self.arch.width, "float32", "hidden")(x.astype(jnp.float32)))
        return dense(self.arch.tasks, "float32", "out")(hidden)


def relative_buckets(slots: int, buckets: int, reach: int) -> Int[np.ndarray, "{slots} {slots}"]:
    """Return the bucket, in [0, 2 buckets), of i - j for query i and key j.

    Buckets are exact up to half of `buckets`, then logarithmic up to `reach`; the rest is at the
    ends. In float32 as the models were trained: a rounded logarithm decides where a bucket ends."""
    distance = np.arange(slots)[:, None] - np.arange(slots)[None, :]
    middle = buckets // 2
    size = np.where(np.abs(distance) < middle, middle - 1, np.abs(distance)).astype(np.float32)
    scale = np.log(np.float32((reach - 1) / middle))
    far = np.ceil(np.log(size / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
    bucket = np.where(size <= middle, distance, far * np.sign(distance)).astype(np.int32)
    return np.clip(bucket + buckets, 0, 2 * buckets - 1)


def _at(
    x: Float[Array, "R S D"], marker: Bool[Array, "R S"], mask: Bool[Array, "R S"]
) -> Float[Array, "R D"]:
    """Return the state at the marker token of each row."""
    index = jnp.argmax(marker & mask, axis=1)
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]

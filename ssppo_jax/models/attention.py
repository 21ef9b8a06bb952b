"""Attention over blocks of keys: one softmax over several blocks, by products or a fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from ssppo_jax.models.layers import soft_cap
from ssppo_jax.types import Array

# einsum: the reference, anywhere. xla, cudnn: `jax.nn.dot_product_attention` by these
# implementations (cuDNN's flash attention needs an NVIDIA GPU and a 16-bit dtype). splash: Pallas
# splash attention, TPU (`models.splash`).
IMPLEMENTATIONS = ("einsum", "xla", "cudnn", "splash")

_MASKED = -1e30  # finite, so that a fully masked row stays finite, forward and backward


class KeyBlock(NamedTuple):
    """Keys and values that queries may look at, their axes as the products read them.

    A prompt's are shared by its K completions and never repeated."""

    k: Float[Array, "B G S E"] | Float[Array, "B K G S E"]
    v: Float[Array, "B G S E"] | Float[Array, "B K G S E"]
    mask: Bool[Array, "#B #K #T S"]


def attend(
    q: Float[Array, "B K T H E"],
    blocks: tuple[KeyBlock, ...],
    *,
    scale: float,
    softcap: float | None = None,
    chunk: int = 0,
    implementation: str = "einsum",
) -> Float[Array, "B K T H E"]:
    """Return softmax([q.k_1, q.k_2, ...] * scale) [v_1; v_2; ...], the softmax in float32.

    Grouped queries: H/G query heads share a key head. Query heads are ordered group-major, as in
    Hugging Face files.

    Args:
      scale: of the scores; 1 / sqrt(E) in most families.
      softcap: bounds the scaled scores, before masking, to softcap * tanh(score / softcap). Not in
        fused kernels.
      chunk: queries of each completion whose scores exist at one time, in the backward pass too; 0:
        all. A fused kernel has a way of its own.
      implementation: "einsum", "xla" or "cudnn".
    """
    if implementation != "einsum":
        return _fused(q, blocks, scale, implementation)
    count = q.shape[2]
    if not chunk or count <= chunk:
        return _attend(q, blocks, scale, softcap)
    chunks = -(-count // chunk)

    def cut(x: Array) -> Array:  # [.,.,count,.,...] -> [chunks,.,.,chunk,.,...]
        pad = [(0, 0), (0, 0), (0, chunks * chunk - count), *((0, 0),) * (x.ndim - 3)]
        x = jnp.pad(x, pad)
        return jnp.moveaxis(x.reshape(*x.shape[:2], chunks, chunk, *x.shape[3:]), 2, 0)

    masks = [block.mask for block in blocks]
    by_query = [cut(mask) for mask in masks if mask.shape[2] == count]

    @jax.checkpoint
    def one(part):
        rest = iter(part[1])
        mine = [next(rest) if mask.shape[2] == count else mask for mask in masks]
        masked = tuple(b._replace(mask=m) for b, m in zip(blocks, mine, strict=True))
        return _attend(part[0], masked, scale, softcap)

    out = jnp.moveaxis(jax.lax.map(one, (cut(q), by_query)), 0, 2)
    return out.reshape(*out.shape[:2], chunks * chunk, *out.shape[4:])[:, :, :count]


def _attend(q: Array, blocks: tuple[KeyBlock, ...], scale: float, softcap: float | None) -> Array:
    b, k, t, h, e = q.shape
    g = blocks[0].k.shape[-3]
    q = q.reshape(b, k, t, g, h // g, e) * scale
    scores = [_scores(q, block, softcap) for block in blocks]
    weights = _weights(scores, q.dtype)
    out = _mix(weights[0], blocks[0])
    for part, block in zip(weights[1:], blocks[1:], strict=True):
        out = out + _mix(part, block)
    return out.reshape(b, k, t, h, e)


def _weights(scores: Sequence[Array], dtype: DTypeLike) -> Sequence[Array]:
    """Take one softmax over the scores of all blocks, in float32; return a part for each block."""
    whole = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(dtype)
    return jnp.split(whole, np.cumsum([score.shape[-1] for score in scores])[:-1], axis=-1)


def _fused(q: Array, blocks: tuple[KeyBlock, ...], scale: float, implementation: str) -> Array:
    """Call `jax.nn.dot_product_attention` with a row for each completion.

    The kernel wants all keys of a query in one array, so a prompt's are written out for each of its
    completions (1/G of the queries' size a head)."""
    b, k, t, h, e = q.shape

    def rows(x: Array) -> Array:  # [B,G,S,E] or [B,K,G,S,E] -> [B*K,S,G,E]
        x = jnp.broadcast_to(x[:, None], (b, k, *x.shape[1:])) if x.ndim == 4 else x
        return jnp.swapaxes(x, -3, -2).reshape(b * k, x.shape[-2], x.shape[-3], e)

    keys, values = (
        jnp.concatenate([rows(x) for x in xs], axis=1)
        for xs in zip(*(b[:2] for b in blocks), strict=True)
    )
    masks = [jnp.broadcast_to(block.mask, (b, k, t, block.k.shape[-2])) for block in blocks]
    mask = jnp.concatenate(masks, axis=-1).reshape(b * k, 1, t, -1)
    kernel = cast(Literal["xla", "cudnn"], implementation)
    out = jax.nn.dot_product_attention(
        q.reshape(b * k, t, h, e), keys, values, mask=mask, scale=scale, implementation=kernel
    )
    return out.reshape(b, k, t, h, e)


def _scores(
    q: Float[Array, "B K T G R E"], block: KeyBlock, softcap: float | None
) -> Float[Array, "B G K R T S"]:
    equation = "bktgre,bgse->bgkrts" if block.k.ndim == 4 else "bktgre,bkgse->bgkrts"
    scores = jnp.einsum(equation, q, block.k, preferred_element_type=jnp.float32)
    return jnp.where(block.mask[:, None, :, None], soft_cap(scores, softcap), _MASKED)


def _mix(weights: Float[Array, "B G K R T S"], block: KeyBlock) -> Float[Array, "B K T G R E"]:
    equation = "bgkrts,bgse->bktgre" if block.v.ndim == 4 else "bgkrts,bkgse->bktgre"
    return jnp.einsum(equation, weights, block.v)

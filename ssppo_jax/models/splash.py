"""Pallas splash attention on TPU over a prompt and its completions as one stream.

The mask is known before the compile, so blocks that nobody may look at are never computed: a
completion's queries meet the prompt and their own past, not the other completions. What is only
known when it runs, how long a prompt is, is told by segment ids."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ssppo_jax.types import Array

_LANES = 128  # what the kernel's blocks are multiples of
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class SharedPrompt:
    """The mask [size,size] of a stream P + K*T, in the form that splash attention cuts into blocks.

    A prompt's query looks at its past, a completion's at the prompt and its own past. What lies
    beyond P + K*T looks at itself."""

    p: int
    k: int
    t: int
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.size, self.size)

    def __getitem__(self, index) -> np.ndarray:
        rows, columns = (np.arange(self.size)[i] for i in index)
        q, key = rows[:, None], columns[None, :]
        own = np.maximum(self.t, 1)  # without completions nothing is beyond the prompt but padding
        stream = np.where(np.arange(self.size) < self.p, -1, (np.arange(self.size) - self.p) // own)
        same = stream[rows][:, None] == stream[columns][None, :]
        real = (q < self.p + self.k * self.t) & ((key < self.p) | same)
        return (key <= q) & (real | (q == key))


def attend_stream(
    q: Float[Array, "B S H E"],  # S = P + K*T
    k: Float[Array, "B S G E"],
    v: Float[Array, "B S G E"],
    prompt_length: Int[Array, "B"],
    *,
    layout: Any,  # p, k, t: the lengths of the stream's parts
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B S H E"]:
    """Compute what `attention.attend` gives each stream, by one kernel. The mask has no windows.

    Args:
      layout: P, K and T, as `decoder.Layout` has them.
      scale: of the scores.
      softcap: bounds the scaled scores to softcap * tanh(score / softcap).
      interpret: run the kernel without a TPU, slowly, to test it.
    """
    # Pallas loads slowly
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    size = q.shape[1]
    block = min(_BLOCK, -(-size // _LANES) * _LANES)
    padded = -(-size // block) * block
    kernel = _kernel(
        SharedPrompt(layout.p, layout.k, layout.t, padded), q.shape[2], block, softcap, interpret
    )

    def heads_first(x):  # [B,S,H,E] -> [B,H,padded,E]
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padded - size), (0, 0)))

    slot = jnp.arange(padded)[None, :]
    seen = ((slot >= layout.p) | (slot < prompt_length[:, None])).astype(jnp.int32)
    segments = SegmentIds(jnp.ones_like(seen), seen)
    out = jax.vmap(kernel)(heads_first(q * scale), heads_first(k), heads_first(v), segments)
    return jnp.swapaxes(out[:, :, :size], 1, 2).astype(q.dtype)


def _kernel(mask: SharedPrompt, heads: int, block: int, softcap: float | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    class Mask(splash.Mask):
        """`SharedPrompt` as the kernel's own kind of mask."""

        shape = mask.shape
        __getitem__ = staticmethod(mask.__getitem__)

    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    one = Mask()  # the same for all heads, and one object, so that its blocks are looked at once
    return splash.make_splash_mha(
        splash.MultiHeadMask([one] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )

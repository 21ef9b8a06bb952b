"""Rows without their padding: one stream of tokens a device for the dense layers.

Attention alone reads padded rows. Its masks, windows and kernels are so the same as without
packing, and a token's result does not depend on what lies beside it in the stream."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped

from ssppo_jax.types import Array


class Packing(NamedTuple):
    """Say where the tokens of padded rows lie in streams, one for each of W devices.

    A device has N padded places, those of its rows of P + K*T. Its stream has S slots."""

    source: Int[Array, "W S"]  # the padded place of each slot; N: an empty slot
    slot: Int[Array, "W N"]  # the slot of each padded place; S: padding
    predictor: Int[Array, "W S"]  # the slot of the state that predicts a slot's token

    def pack(self, rows: Shaped[Array, "B _ ..."]) -> Shaped[Array, "W S ..."]:
        """Move padded rows into streams; empty slots hold 0."""
        ways = self.slot.shape[0]
        places = rows.reshape(ways, -1, *rows.shape[2:])
        return _moved(places, self.source, self.slot)

    def unpack(self, stream: Shaped[Array, "W S ..."], rows: int) -> Shaped[Array, "{rows} _ ..."]:
        """Move streams into `rows` padded rows; padding holds 0."""
        places = _moved(stream, self.slot, self.source)
        return places.reshape(rows, -1, *stream.shape[2:])

    def predictors(self, stream: Shaped[Array, "W S D"]) -> Shaped[Array, "W S D"]:
        """Return the states that predict each slot's token; of no use for a prompt's tokens."""
        return self.at(stream, self.predictor)

    @staticmethod
    def at(stream: Shaped[Array, "W S D"], slots: Int[Array, "W M"]) -> Shaped[Array, "W M D"]:
        """Return what streams hold in some slots, each of which may be asked for often."""
        return _take(stream, slots)


@jax.custom_vjp
def _moved(x: Array, there: Array, back: Array) -> Array:
    """Return x[there], and 0 where `there` points beyond x.

    `back` is the inverse, so the gradient is read by `back` and not added up place by place."""
    return _take(x, there)


def _moved_forward(x, there, back):
    return _take(x, there), back


def _moved_backward(back, cotangent):
    return _take(cotangent, back), None, None


_moved.defvjp(_moved_forward, _moved_backward)


def _take(x: Array, index: Array) -> Array:
    one = jax.vmap(lambda x, index: jnp.take(x, index, axis=0, mode="fill", fill_value=0))
    return one(x, index)


def make_packing(
    prompt: np.ndarray,  # [B] tokens of each prompt; 0 for a filler row
    own: np.ndarray,  # [B,K] tokens of each completion
    *,
    p: int,
    t: int,
    ways: int,
    stream: int,
) -> Packing:
    """Return the packing of rows padded to P + K*T slots, on the host.

    The rows of each of `ways` devices lie in their order, a prompt before its completions.

    Raises:
      ValueError: a device's rows have more tokens than its stream has slots.
    """
    b, k = own.shape
    real = np.concatenate(
        [
            np.arange(p) < prompt[:, None],
            (np.arange(t) < own[:, :, None]).reshape(b, k * t),
        ],
        axis=1,
    )
    # The padded place, in its own row, of the token that predicts each place's token.
    before = np.broadcast_to(np.arange(p + k * t) - 1, real.shape).copy()
    before[:, p::t] = np.maximum(prompt - 1, 0)[:, None]
    before = np.maximum(before, 0) + np.arange(b)[:, None] % (b // ways) * (p + k * t)
    real, before = real.reshape(ways, -1), before.reshape(ways, -1)
    used = real.sum(1)
    if used.max() > stream:
        raise ValueError(f"{used.max()} tokens do not fit a stream of {stream}")
    slot = np.where(real, real.cumsum(1) - 1, stream)
    source = np.full((ways, stream), real.shape[1])
    predictor = np.zeros((ways, stream), int)
    for way, (mine, count) in enumerate(zip(real, used, strict=True)):
        source[way, :count] = np.flatnonzero(mine)
        predictor[way, :count] = np.minimum(slot[way, before[way, mine]], stream - 1)
    return Packing(*(x.astype(np.int32) for x in (source, slot, predictor)))

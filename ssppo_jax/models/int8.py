"""Weights in 8 bits for sampling: W = scale * Q, one scale for each output channel.

With s = max |W| of a channel's inputs / 127, Q = round(W / s) is in [-127, 127] and |W - s Q| is at
most s/2. The scale does not depend on the inputs that are summed over, so it multiplies the product
and no kernel is written out in more than 8 bits. Activations keep their dtype.

Kernels of the layers are quantised. The embedding, the head, norms, biases and adapters are not:
they are a small part of a large model, and the logits are most sensitive to them."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int8

from ssppo_jax.types import Array, PyTree

SCALE = "kernel_scale"  # the leaf beside a kernel in 8 bits
MOST = 127  # the largest |Q|: symmetric, so that -W is -Q
INPUTS = {"o": (1, 2)}  # axes that a projection sums over, axis 0 being the layers; others: 1


def quantize(
    kernel: Float[Array, "N ..."], inputs: tuple[int, ...]
) -> tuple[Int8[Array, "N ..."], Float[Array, "N ..."]]:
    """Return (Q, scale) with kernel = scale * Q up to half a scale; `inputs` are summed over.

    A channel of zeros has scale 1."""
    kernel = jnp.asarray(kernel, jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=inputs, keepdims=True)
    scale = jnp.where(largest > 0, largest / MOST, 1.0)
    return jnp.round(kernel / scale).astype(jnp.int8), jnp.squeeze(scale, inputs)


def quantized(params: PyTree, rest: DTypeLike) -> PyTree:
    """Return a decoder's parameters with the layers' kernels in 8 bits and the others in `rest`."""

    def cast(tree: PyTree, name: str, inside: bool) -> PyTree:
        if not isinstance(tree, dict):
            return tree.astype(rest)
        out = {key: cast(value, key, inside or key == "layers") for key, value in tree.items()}
        if inside and "kernel" in tree:
            out["kernel"], out[SCALE] = quantize(tree["kernel"], INPUTS.get(name, (1,)))
        return out

    return cast(params, "", False)

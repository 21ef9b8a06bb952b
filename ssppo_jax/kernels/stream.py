"""Attention of whole sequences on a CPU, as calls of stream.c. float32, with the gradient.

`library.missing()` says whether they can be called here, and has to be asked first.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssppo_jax.kernels.library import check_float32
from ssppo_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attend(
    q: Array,  # [B,S,H,E] float32, S = P + K*T
    k: Array,  # [B,S,G,E] float32
    v: Array,  # like k
    prompt_length: Array,  # [B] int32
    p: int,
    completions: int,
    scale: float,
) -> Array:  # [B,S,H,E]
    """softmax(scale q k) v where a prompt's tokens see their past, and a completion's the prompt and their own past.

    Scores exist for a few tokens at a time, in the backward pass too, which computes them again from q and k.

    Raises:
      TypeError: something is not float32.
    """
    return _call(q, k, v, prompt_length, p, completions, scale)


def _call(q, k, v, prompt_length, p, completions, scale):
    check_float32(q, k, v)
    call = jax.ffi.ffi_call("ssppo_attend", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    return call(q, k, v, prompt_length, **_numbers(p, completions, scale))


def _attend_forward(q, k, v, prompt_length, p, completions, scale):
    return _call(q, k, v, prompt_length, p, completions, scale), (q, k, v, prompt_length)


def _attend_backward(p, completions, scale, saved, d_out):
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in saved[:3]]
    return (*jax.ffi.ffi_call("ssppo_attend_back", shapes)(*saved, d_out, **_numbers(p, completions, scale)), None)


attend.defvjp(_attend_forward, _attend_backward)


def _numbers(p, completions, scale):
    return {"completions": np.int64(completions), "prompt": np.int64(p), "scale": np.float32(scale)}

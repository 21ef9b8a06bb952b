"""A decoding step's products and attention on a CPU, as calls of decode.c. float32, and without gradients.

`library.missing()` says whether they can be called here, and has to be asked first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ssppo_jax.kernels.library import check_float32
from ssppo_jax.types import Array

PANEL = 48  # columns of the weights that lie together, as in tile.h
UNBOUNDED = 2**30  # a window that never binds


def packed_shape(depth: int, columns: int) -> tuple[int, int, int]:
    """[panels,D,PANEL] of a kernel [D,F]."""
    return -(-columns // PANEL), depth, PANEL


def pack(
    kernel: Array,  # [...,D,F]
) -> Array:  # [...,panels,D,PANEL]
    """A kernel's columns in panels, each read from memory in one go; the last is filled up with zeros."""
    *lead, depth, columns = kernel.shape
    panels = packed_shape(depth, columns)[0]
    wide = jnp.pad(kernel, [(0, 0)] * (len(lead) + 1) + [(0, panels * PANEL - columns)])
    return jnp.moveaxis(wide.reshape(*lead, depth, panels, PANEL), -2, -3)


def product(
    x: Array,  # [...,D] float32
    packed: Array,  # [panels,D,PANEL] float32
    columns: int,
) -> Array:  # [...,columns]
    """x times the kernel that was packed. A row's result does not depend on the rows beside it, to the last bit.

    Raises:
      TypeError: something is not float32.
    """
    check_float32(x, packed)
    rows = x.reshape(-1, x.shape[-1])
    y = jax.ShapeDtypeStruct((len(rows), columns), jnp.float32)
    return jax.ffi.ffi_call("ssppo_product", y)(rows, packed).reshape(*x.shape[:-1], columns)


def attend_token(
    q: Array,  # [B,K,H,E] float32
    prompt: tuple[Array, Array],  # keys and values [B,G,P,E]
    own: tuple[Array, Array],  # [B,K,G,T,E], rings
    new: tuple[Array, Array],  # [B,K,G,E], of the token itself
    *,
    length: Array,  # [B] int32, the prompts' real tokens
    filled: Array,  # [B] int32, tokens of each row's completions that the rings hold
    head: Array,  # [] int32, the slot that is written next: the newest token is in front of it
    window: Array | int = UNBOUNDED,  # [] int32, positions a token sees, its own included
    scale: float,
    softcap: float | None = None,
) -> Array:  # [B,K,H,E]
    """softmax(scale q k) v over the prompt, the completion so far and the token itself; scores soft-capped on request.

    Only keys that may be seen are read: no padding, nothing of the ring that is not filled.

    Raises:
      TypeError: something is not float32.
    """
    check_float32(q, *prompt, *own, *new)
    call = jax.ffi.ffi_call("ssppo_attend_token", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    numbers = (jnp.asarray(x, jnp.int32) for x in (length, filled, head, window))
    return call(q, *prompt, *own, *new, *numbers, scale=np.float32(scale), softcap=np.float32(softcap or 0.0))

"""Log-probs of given tokens on a CPU, as calls of vocabulary.c. float32, with the gradient.

`library.missing()` says whether they can be called here, and has to be asked first.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ssppo_jax.kernels.library import check_float32
from ssppo_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def logprobs(
    hidden: Array,  # [N,D] float32
    table: Array,  # [V,D] float32, the output kernel turned
    targets: Array,  # [N] int32
    chunk: int,
) -> tuple[Array, Array]:  # [N], [N]
    """log softmax(hidden table^T)[target], and the entropy of the distribution, which carries no gradient.

    Logits exist for a few hundred entries of the vocabulary at a time, in the backward pass for `chunk` of them.

    Raises:
      TypeError: something is not float32.
    """
    del chunk
    return tuple(_call(hidden, table, targets)[:2])


def _call(hidden, table, targets):
    check_float32(hidden, table)
    each = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
    return jax.ffi.ffi_call("ssppo_logprobs", (each, each, each))(hidden, table, targets)


def _forward(hidden, table, targets, chunk):
    del chunk
    *found, total = _call(hidden.value, table.value, targets.value)
    trained = () if table.perturbed else None  # a frozen table gets no gradient
    return tuple(found), (hidden.value, table.value, targets.value, total, trained)


def _backward(chunk, saved, cotangents):
    *arrays, trained = saved
    hidden, table = arrays[:2]
    rows = len(table) if trained is not None else 0
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (hidden.shape, (rows, table.shape[1]))]
    of_logp = cotangents[0]
    if isinstance(of_logp, SymbolicZero):  # the entropy alone was used
        of_logp = jnp.zeros(of_logp.shape, of_logp.dtype)
    d_hidden, d_table = jax.ffi.ffi_call("ssppo_logprobs_back", shapes)(*arrays, of_logp, chunk=np.int64(chunk))
    return d_hidden, d_table if rows else None, None


logprobs.defvjp(_forward, _backward, symbolic_zeros=True)

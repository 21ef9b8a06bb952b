"""TrainState in its shardings: abstract (for restoring and compiling) and fresh (for a new run)."""

from __future__ import annotations

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ssppo_jax.distributed.mesh import abstract, put_whole, replicated
from ssppo_jax.types import PyTree, TrainState


def abstract_state(mesh: Mesh, params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and shardings of everything a train step updates; optimizer scalars are replicated explicitly."""
    opt_state = abstract(mesh, jax.eval_shape(optimizer.init, params))
    return TrainState(params, opt_state, jax.ShapeDtypeStruct((), np.int32, sharding=replicated(mesh)))


def fresh_optimizer(mesh: Mesh, params: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
    """The optimizer's initial state, created in its shardings."""
    wanted = abstract_state(mesh, params, optimizer).opt_state
    return jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda s: s.sharding, wanted))(params)


def fresh_state(mesh: Mesh, params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state a new run starts from. `params` becomes part of it and is donated by the first train step."""
    return TrainState(params, fresh_optimizer(mesh, params, optimizer), put_whole(mesh, np.int32(0)))

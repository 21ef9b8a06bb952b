"""Make the steps of a run for compiling: the real functions with abstract arrays in their
shardings.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssppo_jax.distributed.mesh import replicated, row_sharding
from ssppo_jax.losses import ROWS
from ssppo_jax.losses.core import ratio_stats
from ssppo_jax.models import flops
from ssppo_jax.models.arch import Arch
from ssppo_jax.optimizer import make_run_optimizer
from ssppo_jax.runtime import ROUNDING, Runtime, rollout_params
from ssppo_jax.sampling.sampler import in_one_batch
from ssppo_jax.steps import abstract_state, make_score_step, make_train_step
from ssppo_jax.types import Batch, Prompts, PyTree

PHASES = ("generate", "score", "train")


class Planned(NamedTuple):
    """Hold one phase's step and what it needs."""

    phase: str
    step: Any  # jitted
    arguments: tuple  # jax.ShapeDtypeStruct, with shardings
    flops: float  # of all devices, as computed: padding and recomputation included
    useful: float  # of those, what is no recomputation
    tokens: int  # of completions, that one step advances


def plan_step(runtime: Runtime, phase: str) -> Planned:
    """Return the step of "generate", "score" or "train" at the widest bucket and full responses."""
    return {"generate": _generate, "score": _score, "train": _train}[phase](runtime)


def rows_per_prompt(runtime: Runtime) -> int:
    """Return the completions of one training row, by the loss's kind of row."""
    return (
        runtime.config.sampling.num_samples if ROWS.get(runtime.config.loss.name) == "group" else 2
    )


def _generate(runtime: Runtime) -> Planned:
    c = runtime.config
    k = 1 if ROWS.get(c.loss.name) == "opponent" else c.sampling.num_samples
    b, p, t = c.sampling.batch_size, c.data.prompt_buckets[-1], c.sampling.max_new_tokens
    rows = partial(_rows, runtime)
    fields: dict[str, Any] = {
        "tokens": rows((b, p), jnp.int32),
        "length": rows((b,), jnp.int32),
        "address": rows((b,), jnp.uint32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(runtime.mesh))
    step = jax.jit(in_one_batch(runtime.make_sampler(num_samples=k, sampling=rollout_params(c))))
    work = flops.forward(runtime.arch, np.full(b, p), np.full((b, k), t))
    return Planned(
        "generate", step, (runtime.abstract_params, Prompts(**fields), key), work, work, b * k * t
    )


def _score(runtime: Runtime) -> Planned:
    c = runtime.config
    b, k = c.train.batch_size // c.train.micro_batches, rows_per_prompt(runtime)
    p, t = c.data.prompt_buckets[-1], c.sampling.max_new_tokens
    rows = partial(_rows, runtime)
    fields = (
        rows((b, p), jnp.int32),
        rows((b,), jnp.int32),
        rows((b, k, t), jnp.int32),
        rows((b, k, t), jnp.float32),
    )
    step = jax.jit(make_score_step(runtime.make_apply()))
    work = flops.forward(runtime.arch, np.full(b, p), np.full((b, k), t))
    return Planned("score", step, (runtime.abstract_params, *fields), work, work, b * k * t)


def _train(runtime: Runtime) -> Planned:
    c = runtime.config
    m, k = c.train.micro_batches, rows_per_prompt(runtime)
    b, p, t = c.train.batch_size // m, c.data.prompt_buckets[-1], c.sampling.max_new_tokens
    optimizer = make_run_optimizer(c, runtime.key(ROUNDING))
    step = jax.jit(
        make_train_step(runtime.make_apply(), runtime.loss, ratio_stats, optimizer),
        donate_argnums=0,
    )
    frozen, trained = runtime.parted(runtime.abstract_params)
    state = abstract_state(runtime.mesh, trained, optimizer)
    shapes = dict.fromkeys(
        ("mask", "old_logp", "ref_logp", "init_logp", "completion"), (m, b, k, t)
    )
    shapes |= dict.fromkeys(("win_rate", "target", "advantage"), (m, b, k)) | {"prompt": (m, b, p)}
    whole = ("prompt", "prompt_length", "completion")
    batch = Batch(
        **{
            name: _rows(
                runtime,
                shapes.get(name, (m, b)),
                jnp.int32 if name in whole else jnp.float32,
                axis=1,
            )
            for name in Batch._fields
        }
    )
    lengths = np.full(m * b, p), np.full((m * b, k), t)
    useful = flops.train_step(runtime.arch, *lengths, adapters=frozen is not None)
    arguments = (state, batch) if frozen is None else (state, batch, frozen)
    work = useful + recomputed(runtime.arch, c.model.remat, *lengths)
    return Planned("train", step, arguments, work, useful, m * b * k * t)


def recomputed(arch: Arch, remat: str, prompt: np.ndarray, completion: np.ndarray) -> float:
    """Count the operations done again in the backward pass: logits always, layers or attention by
    remat.
    """
    again = flops.head(arch, float(completion.sum()))
    if remat == "full":
        again += flops.forward(arch, prompt, completion) - flops.head(arch, float(completion.sum()))
    elif remat in ("dots", "offload"):
        again += flops.attention(arch, np.zeros_like(prompt), prompt)
        again += flops.attention(arch, prompt[:, None], completion)
    return again


def _rows(runtime: Runtime, shape: tuple[int, ...], dtype, axis: int = 0) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(runtime.mesh, axis))


def shard_bytes(tree: PyTree) -> int:
    """Return the bytes that one device holds of a tree of abstract arrays."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )

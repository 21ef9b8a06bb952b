"""Make the steps of a run for compiling: the real functions with abstract arrays in their
shardings.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax.distributed.mesh import replicated, row_sharding, shard_bytes, ways_of
from ssppo_jax.losses import ROWS
from ssppo_jax.losses.core import ratio_stats
from ssppo_jax.models import flops
from ssppo_jax.models.arch import Arch
from ssppo_jax.optimizer import make_run_optimizer
from ssppo_jax.runtime import ROUNDING, Runtime, rollout_params
from ssppo_jax.sampling.sampler import in_one_batch
from ssppo_jax.steps import make_score_step, make_train_step
from ssppo_jax.types import Batch, Prompts

PHASES = ("relay", "generate", "score", "train")


class Planned(NamedTuple):
    """Hold one phase's step and what it needs."""

    phase: str
    step: Any  # jitted
    arguments: tuple  # jax.ShapeDtypeStruct, with shardings
    flops: float  # of all devices, as computed: padding and recomputation included
    useful: float  # of those, what is no recomputation
    tokens: int  # of completions, that one step advances
    beside: int = 0  # bytes that one chip holds besides the step's own


def plan_step(runtime: Runtime, phase: str) -> Planned | None:
    """Return one of `PHASES` at the widest bucket and full responses.

    None stands for a `relay` where sampling reads the parameters as training holds them."""
    makers = {"relay": _relay, "generate": _generate, "score": _score, "train": _train}
    return makers[phase](runtime)


def rows_per_prompt(runtime: Runtime) -> int:
    """Return the completions of one training row, by the loss's kind of row."""
    kind = ROWS.get(runtime.config.loss.name)
    return {"group": runtime.config.sampling.num_samples, "response": 1}.get(kind or "", 2)


def samples_per_prompt(config: ConfigDict) -> int:
    """Return the responses to a prompt that one batch of sampling makes."""
    return 1 if ROWS.get(config.loss.name) == "opponent" else config.sampling.num_samples


def micro_batches(runtime: Runtime) -> tuple[int, int]:
    """Return how many micro-batches a step of full rows has, and the rows of one.

    By train.max_token_len a micro-batch has as many rows of full length as fit."""
    c, ways = runtime.config, ways_of(runtime.mesh)
    rows = c.train.batch_size // c.train.micro_batches
    if c.train.max_token_len:
        width = c.data.prompt_buckets[-1]
        width += rows_per_prompt(runtime) * c.sampling.max_new_tokens
        rows = min(rows, ways * max(1, c.train.max_token_len // width))
    return -(-c.train.batch_size // rows), rows


def _relay(runtime: Runtime) -> Planned | None:
    if runtime.relay is None:
        return None
    beside = shard_bytes(runtime.abstract_state.opt_state)
    return Planned("relay", runtime.relay, (runtime.abstract_params,), 0.0, 0.0, 0, beside)


def _generate(runtime: Runtime) -> Planned:
    c, mesh = runtime.config, runtime.sampling_mesh
    k = samples_per_prompt(c)
    sampler = runtime.make_sampler(num_samples=k, sampling=rollout_params(c))
    b, p, t = sampler.slots, c.data.prompt_buckets[-1], c.sampling.max_new_tokens
    rows = partial(_rows, mesh)
    prompts = Prompts(
        tokens=rows((b, p), jnp.int32),
        length=rows((b,), jnp.int32),
        address=rows((b,), jnp.uint32),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    step = jax.jit(in_one_batch(sampler))
    work = flops.forward(runtime.arch, np.full(b, p), np.full((b, k), t))
    beside = runtime.beside_sampling
    arguments = (runtime.abstract_sampling_params, prompts, key)
    return Planned("generate", step, arguments, work, work, b * k * t, beside)


def _score(runtime: Runtime) -> Planned:
    c = runtime.config
    b, k = micro_batches(runtime)[1], rows_per_prompt(runtime)
    p, t = c.data.prompt_buckets[-1], c.sampling.max_new_tokens
    rows = partial(_rows, runtime.mesh)
    arguments = (
        runtime.abstract_params,
        rows((b, p), jnp.int32),
        rows((b,), jnp.int32),
        rows((b, k, t), jnp.int32),
        rows((b, k, t), jnp.float32),
    )
    step = jax.jit(make_score_step(runtime.make_apply()))
    work = flops.forward(runtime.arch, np.full(b, p), np.full((b, k), t))
    beside = shard_bytes(runtime.abstract_state.opt_state)
    return Planned("score", step, arguments, work, work, b * k * t, beside)


def _train(runtime: Runtime) -> Planned:
    c = runtime.config
    (m, b), k = micro_batches(runtime), rows_per_prompt(runtime)
    p, t = c.data.prompt_buckets[-1], c.sampling.max_new_tokens
    optimizer = make_run_optimizer(c, runtime.key(ROUNDING))
    step = jax.jit(
        make_train_step(runtime.make_apply(), runtime.loss, ratio_stats, optimizer),
        donate_argnums=0,
    )
    frozen, _ = runtime.parted(runtime.abstract_params)
    state = runtime.abstract_state
    shapes = dict.fromkeys(
        ("mask", "old_logp", "ref_logp", "init_logp", "completion", "importance_weight"),
        (m, b, k, t),
    )
    shapes |= dict.fromkeys(("win_rate", "target", "advantage"), (m, b, k)) | {"prompt": (m, b, p)}
    whole = ("prompt", "prompt_length", "completion")
    batch = Batch(
        **{
            name: _rows(
                runtime.mesh,
                shapes.get(name, (m, b)),
                jnp.int32 if name in whole else jnp.float32,
                axis=1,
            )
            for name in Batch._fields
            if name != "importance_weight" or c.train.importance_sampling_correction
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


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype, axis: int = 0) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh, axis))

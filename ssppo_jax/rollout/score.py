"""Score a rollout's rows under pi_t and the initial policy, and check the sampler against the
trainer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.data import cut_of
from ssppo_jax.distributed.mesh import put_rows, ways_of
from ssppo_jax.distributed.progress import bar
from ssppo_jax.errors import GateError
from ssppo_jax.losses import ROWS
from ssppo_jax.rollout.importance import weighed
from ssppo_jax.rollout.mismatch import bounds_of, check, mismatch_of, noise
from ssppo_jax.rollout.store import take_micro_batch, take_rows
from ssppo_jax.runtime import Runtime, logprob_temperature
from ssppo_jax.types import Batch, PyTree, Samples


def score_batch(
    runtime: Runtime,
    score: Callable,  # score(params, prompt, prompt_length, completion, mask) -> Scored, jitted
    batch: Batch,
    samples: Samples | None,  # NumPy, of the rows; None: the responses were not sampled
    params: PyTree,  # of pi_t
    initial: Callable[[], PyTree] | None,  # loads the initial policy
) -> tuple[Batch, dict[str, float], dict[str, float]]:
    """Add log-probs under pi_t, the reference and the initial policy, and importance weights;
    return entropy, KL and seconds too.

    Raises:
      GateError: sampler and trainer disagree on the log-probs of the same tokens (the step-0 gate).
    """
    config, start = runtime.config, time.perf_counter()
    logp, entropy = score_rows(runtime, score, params, batch, "the policy")
    gap: dict[str, float] = {}
    if samples is not None:
        gap = compare(runtime, (logp - samples.logp)[np.asarray(batch.mask) > 0])
    init_logp = np.zeros_like(logp)
    if initial is not None:
        init_logp, _ = score_rows(runtime, score, initial(), batch, "the initial policy")
    tokens = max(float(batch.mask.sum()), 1.0)
    responses = max(int(np.prod(batch.mask.shape[:2])), 1)
    metrics = {
        "entropy": float(entropy.sum()) / tokens,
        "logp_per_token": float(logp.sum()) / tokens,
        **gap,
    }
    if initial is not None:
        metrics["init_logp_per_token"] = float(init_logp.sum()) / tokens
        metrics["kl_to_initial"] = float((logp - init_logp).sum()) / responses
    of_initial = initial is not None and reference_of(config) == "initial"
    ref_logp = init_logp if of_initial else logp
    scored = batch._replace(old_logp=logp, ref_logp=ref_logp, init_logp=init_logp)
    if samples is not None:
        scored, ratios = weighed(config, scored, samples)
        metrics |= ratios
    return scored, metrics, {"seconds": time.perf_counter() - start}


def compare(runtime: Runtime, difference: np.ndarray) -> dict[str, float]:
    """Compare trainer and sampler on the same tokens (see `rollout.mismatch`); return what to log.

    Raises:
      GateError: they differ by more than train.sampler_bound times what rounding explains.
    """
    found, factor = mismatch_of(difference), runtime.config.train.sampler_bound
    if factor:
        dtypes = ", ".join(f"{what} {dtype}" for what, dtype in dtypes_of(runtime.config).items())
        check(found, bounds_of(factor * explained(runtime)), dtypes)
    largest = float(np.max(np.abs(difference), initial=0.0))
    return {f"sampler_gap/{name}": x for name, x in found._asdict().items()} | {
        "sampler_gap/max": largest
    }


def explained(runtime: Runtime) -> float:
    """Return the rms of the difference that rounding explains, nats."""
    return noise(
        runtime.arch.num_layers,
        runtime.arch.mlp_dim,
        platform=runtime.mesh.devices.flat[0].platform,
        temperature=logprob_temperature(runtime.config),
        **dtypes_of(runtime.config),
    )


def dtypes_of(config: ConfigDict) -> dict[str, str]:
    """Return the dtypes of arithmetic, of the trainer's and the sampler's weights, and of the
    cache.
    """
    model, sampling = config.model, config.sampling
    own, cache = sampling.param_dtype != "model", sampling.cache_dtype != "model"
    return {
        "compute": model.dtype,
        "weights": model.param_dtype,
        "sampled": sampling.param_dtype if own else model.param_dtype,
        "cache": sampling.cache_dtype if cache else model.dtype,
    }


def reference_of(config: ConfigDict) -> str:
    """Return the loss's reference, "iteration" (pi_t) or "initial".

    A group loss has a reference for its KL term alone, which is a choice of its own."""
    group = ROWS.get(config.loss.name) == "group"
    return config.train.kl_reference if group else config.train.reference


def score_rows(
    runtime: Runtime, score: Callable, params: PyTree, batch: Batch, whose: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return token log-probs and entropies of every row, [M,K,T] each, in micro-batches.

    They are cut as in training, but of the whole rollout. With no lengths to cut by, rows of like
    prompts go together.

    Raises:
      GateError: a log-prob is not finite.
    """
    config = runtime.config
    logp, entropy = np.zeros_like(batch.mask), np.zeros_like(batch.mask)
    with bar(len(batch.weight), what="score", unit="prompts") as progress:
        for rows, part, shape in micro_batches(runtime, batch):
            fields = (part.prompt, part.prompt_length, part.completion, part.mask)
            scored = jax.device_get(score(params, *put_rows(runtime.mesh, fields), **shape))
            real = rows >= 0
            logp[rows[real]], entropy[rows[real]] = scored.logp[real], scored.entropy[real]
            progress.update(int(real.sum()))
    bad = (~np.isfinite(logp) & (np.asarray(batch.mask) > 0)).any((1, 2))
    if bad.any():
        raise GateError(
            f"{whose} of model {config.model.source!r} gives log-probs that are not finite to"
            f" {bad.sum()} of {len(bad)} prompts' responses: its weights are damaged, or they"
            f" overflow in model.dtype={config.model.dtype}"
        )
    return logp, entropy


def micro_batches(runtime: Runtime, batch: Batch) -> Iterator[tuple[np.ndarray, Batch, dict]]:
    """Yield (rows, -1 for fillers; their batch; what `apply` is told of its shape)."""
    cut = cut_of(runtime.config, ways_of(runtime.mesh))
    if not cut.by_length:
        order = np.argsort(np.asarray(batch.prompt_length), kind="stable")  # the shortest first
        for start in range(0, len(order), cut.size):
            rows = order[start : start + cut.size]
            part = take_rows(batch, rows, cut.size, cut.prompt_buckets)
            yield np.pad(rows, (0, cut.size - len(rows)), constant_values=-1), part, {}
        return
    own = np.asarray(batch.mask).sum(2).astype(int)
    for micro in cut(np.asarray(batch.prompt_length), own, np.arange(len(own))):
        part, packing = take_micro_batch(batch, micro, cut)
        packing = None if packing is None else put_rows(runtime.mesh, packing)
        yield micro.rows, part, {"slots": micro.completion, "packing": packing}

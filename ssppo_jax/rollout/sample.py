"""Sample a list of prompts by continuous batching and return the results in the prompts' order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssppo_jax.data import EncodedPrompt, LengthGroup, length_groups, pad_batch
from ssppo_jax.data.chat import check_completions, decode
from ssppo_jax.distributed.mesh import batch_ways, put_rows, put_whole
from ssppo_jax.distributed.progress import bar
from ssppo_jax.errors import GateError, Interrupted
from ssppo_jax.rollout.rows import joined
from ssppo_jax.runs.metrics import sample_stats
from ssppo_jax.runtime import Runtime
from ssppo_jax.sampling.sampler import CompiledSampler
from ssppo_jax.types import PyTree, Samples


class Responses(NamedTuple):
    """Hold K responses to each of M prompts, as ids and as text."""

    samples: Samples  # NumPy, leading axis M
    texts: list[list[str]]  # M x K
    metrics: dict[str, float]
    wall: dict[str, float]  # what differs between two equal runs


def sample_prompts(
    runtime: Runtime,
    sampler: CompiledSampler,
    params: PyTree,
    encoded: Sequence[EncodedPrompt],
    key: jax.Array,
    *,
    stopped: Callable[[], bool] = lambda: False,
    done: Callable[[list[EncodedPrompt], Samples, list[list[str]]], None] = lambda *_: None,
    what: str = "generate",
) -> Responses:
    """Draw K samples per prompt.

    Every token's key is addressed by (key, prompt, sample), so batching changes no token. Prompts
    wait in line for the slots of a batch. While the device decodes, the host turns finished
    responses into text and hands them to `done`.

    Raises:
      GateError: a log-prob is not finite; the token drawn would be meaningless.
      Interrupted: `stopped()` became true between two rounds of decoding.
    """
    params = runtime.for_sampling(params)
    parts: list[Samples] = []
    order: list[np.ndarray] = []
    texts: list[list[str]] = []
    steps: Counter[str] = Counter()
    start = time.perf_counter()
    with bar(len(encoded), what=what, unit="prompts") as progress:

        def finish(rows: np.ndarray, samples: Samples) -> None:
            check_finite(runtime.config, samples, what)
            parts.append(samples)
            order.append(rows)
            texts.extend(_texts(runtime, samples))
            progress.update(len(rows))
            done([encoded[i] for i in rows], samples, texts[-len(rows) :])

        size = slots_for(runtime, sampler.slots, len(encoded))
        buckets = runtime.config.data.prompt_buckets
        for line in length_groups(encoded, batch_size=size, buckets=buckets):
            steps += _serve(runtime, sampler, size, params, encoded, line, key, finish, stopped)
    seconds = time.perf_counter() - start
    back = np.argsort(np.concatenate(order))
    samples = jax.tree.map(lambda x: x[back], joined(parts))
    check_completions(samples, runtime.eos)
    tokens = int(samples.length.sum())
    counts = {"tokens": float(tokens), "slot_occupancy": steps["used"] / max(steps["slots"], 1)}
    return Responses(
        samples,
        [texts[i] for i in back],
        sample_stats(samples) | counts,
        {"seconds": seconds, "tokens_per_second": tokens / seconds},
    )


def check_finite(config: ConfigDict, samples: Samples, what: str) -> None:
    """Check the log-probs of sampled tokens, before anything is made of the tokens.

    Raises:
      GateError: one of them is not finite; names the model.
    """
    real = np.arange(samples.tokens.shape[-1]) < samples.length[..., None]  # [B,K,T]
    bad = (real & ~np.isfinite(samples.logp + samples.sampling_logp)).any(-1)
    if bad.any():
        raise GateError(
            f"model {config.model.source!r} ({what}): {bad.sum()} of {bad.size} responses have"
            " log-probs that are not finite. The weights are damaged, or numbers overflow: load"
            f" another copy, set model.dtype=float32 (it is {config.model.dtype}), or raise a"
            " temperature near 0 (0 itself takes the most likely token)"
        )


def _serve(
    runtime: Runtime,
    sampler: CompiledSampler,
    size: int,
    params: PyTree,
    encoded: Sequence[EncodedPrompt],
    line: LengthGroup,
    key: jax.Array,
    finish: Callable[[np.ndarray, Samples], None],
    stopped: Callable[[], bool],
) -> Counter:
    """Give slots to the prompts of a group until all have had one; return the slots offered and
    used.
    """
    mesh, few = runtime.sampling_mesh, refill_rows(runtime, size)
    batch = pad_batch(encoded, line.rows[:size], size, line.width)
    holds = np.where(batch.real, batch.source, -1)  # row of each slot, -1 for none
    slots = sampler.start(params, put_rows(mesh, batch.prompts), key, put_rows(mesh, batch.real))
    waiting = line.rows[size:]
    leaving: tuple[np.ndarray, Samples] | None = None
    while (holds >= 0).any():
        if stopped():
            raise Interrupted
        slots = sampler.run(params, slots, _number(runtime, few if len(waiting) else size))
        if leaving is not None:
            finish(*leaving)
        ended, samples = jax.device_get(sampler.look(slots))
        gone = np.flatnonzero(ended & (holds >= 0))
        leaving = holds[gone], jax.tree.map(lambda x: x[gone], samples)  # noqa: B023  used at once
        holds[gone] = -1
        while len(waiting) and (holds < 0).sum() >= few:
            rows, waiting = waiting[:few], waiting[few:]
            which = np.full(few, size)  # beyond the last slot: of filler rows, dropped
            which[: len(rows)] = np.flatnonzero(holds < 0)[: len(rows)]
            holds[which[: len(rows)]] = rows
            more = pad_batch(encoded, rows, few, line.width)
            slots = sampler.refill(
                params, slots, put_rows(mesh, more.prompts), key, _number(runtime, which)
            )
    if leaving is not None:
        finish(*leaving)
    counts = jax.device_get((slots.steps, slots.used))
    return Counter(slots=int(counts[0]) * size, used=int(counts[1]))


def slots_for(runtime: Runtime, slots: int, prompts: int) -> int:
    """Return the slots for so many prompts: with sampling.batch_size=0 no more than they need."""
    if runtime.config.sampling.batch_size:
        return slots
    ways = batch_ways(runtime.sampling_mesh.axis_sizes)
    return min(slots, -(-prompts // ways) * ways)


def refill_rows(runtime: Runtime, slots: int) -> int:
    """Return the free slots that waiting prompts wait for: a share of the batch that the mesh
    divides.
    """
    mesh, share = runtime.sampling_mesh, runtime.config.sampling.refill
    ways = batch_ways(mesh.axis_sizes)
    return min(slots, max(1, round(share * slots / ways)) * ways)


def _number(runtime: Runtime, value: int | np.ndarray) -> jax.Array:
    return put_whole(runtime.sampling_mesh, np.asarray(value, np.int32))


def _texts(runtime: Runtime, samples: Samples) -> list[list[str]]:
    rows = zip(samples.tokens, samples.length, strict=True)
    return [
        [decode(runtime.tokenizer, ids[:n]) for ids, n in zip(*row, strict=True)] for row in rows
    ]

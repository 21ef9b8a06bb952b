"""Sampling a list of prompts in bucketed batches, with results back in the prompts' order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ssppo_jax.chat import check_completions, decode
from ssppo_jax.data import EncodedPrompt, bucket_batches
from ssppo_jax.metrics import sample_stats
from ssppo_jax.parallel import put_rows
from ssppo_jax.progress import bar
from ssppo_jax.runtime import Runtime
from ssppo_jax.types import Array, PyTree, Samples


class Sampled(NamedTuple):
    """K responses to each of M prompts, as ids and as text."""

    samples: Samples  # NumPy, leading axis M
    texts: list[list[str]]  # M x K
    metrics: dict[str, float]
    wall: dict[str, float]  # what differs between two equal runs


class Interrupted(Exception):
    """A stop was requested; the phase ended at a batch boundary."""


def sample_prompts(
    runtime: Runtime,
    generate: Callable,
    params: PyTree,
    encoded: Sequence[EncodedPrompt],
    key: Array,
    *,
    stopped: Callable[[], bool] = lambda: False,
    ready: Callable[[list[EncodedPrompt], list[list[str]]], None] = lambda encoded, texts: None,
    what: str = "generate",
) -> Sampled:
    """K samples per prompt. Every row's tokens are addressed by (key, prompt, sample), so batching does not matter.

    While the device samples a batch, the one before it is turned into text and handed to `ready`.

    Raises:
      Interrupted: `stopped()` became true between two batches.
    """
    config = runtime.config
    batches = bucket_batches(encoded, batch_size=config.sampling.batch_size, buckets=config.data.prompt_buckets)
    order, parts, texts, start = [], [], [], time.perf_counter()
    with bar(len(encoded), what=what, unit="prompts") as progress:

        def finish(batch, samples) -> None:
            rows = batch.index[batch.real]
            parts.append(jax.tree.map(lambda x: x[batch.real], jax.device_get(samples)))
            order.append(rows)
            texts.extend(_texts(runtime, parts[-1]))
            progress.update(len(rows))
            ready([encoded[i] for i in rows], texts[-len(rows) :])

        under_way = None
        for batch in batches:
            if stopped():
                raise Interrupted
            samples = generate(params, put_rows(runtime.mesh, batch.prompts), key)
            if under_way is not None:
                finish(*under_way)
            under_way = (batch, samples)
        finish(*under_way)
    seconds = time.perf_counter() - start
    back = np.argsort(np.concatenate(order))
    samples = Samples(*(np.concatenate(field)[back] for field in zip(*parts, strict=True)))
    check_completions(samples, runtime.eos)
    tokens = int(samples.length.sum())
    return Sampled(
        samples,
        [texts[i] for i in back],
        sample_stats(samples) | {"tokens": float(tokens)},
        {"seconds": seconds, "tokens_per_second": tokens / seconds},
    )


def _texts(runtime: Runtime, samples: Samples) -> list[list[str]]:
    rows = zip(samples.tokens, samples.length, strict=True)
    return [[decode(runtime.tokenizer, ids[:n]) for ids, n in zip(*row, strict=True)] for row in rows]

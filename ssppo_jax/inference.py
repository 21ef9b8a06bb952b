"""Responses of one model to given prompts, or to the held-out prompts of a config, as records."""

from __future__ import annotations

import logging

from ml_collections import ConfigDict

from ssppo_jax import data
from ssppo_jax.evaluate import encode_split
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.runtime import EVALUATION, build_runtime, sampling_params
from ssppo_jax.types import FINISH_NAMES, Prompt

log = logging.getLogger(__name__)


def respond(config: ConfigDict, texts: list[str] | None) -> list[dict]:
    """`sampling.num_samples` responses to each text (or held-out prompt), with ids, raw log-probs and finish reason."""
    runtime = build_runtime(config)
    if texts:
        prompts = [Prompt(f"prompt-{i}", ({"role": "user", "content": text},)) for i, text in enumerate(texts)]
        limit = config.data.max_prompt_length
        encoded, dropped = data.encode_prompts(prompts, runtime.tokenizer, max_prompt_length=limit)
        if dropped.rows:
            log.warning("%s", dropped)
    else:
        encoded = encode_split(runtime)[1]
    sampler = runtime.make_sampler(num_samples=config.sampling.num_samples, sampling=sampling_params(config))
    key = runtime.key(EVALUATION, 2)
    sampled = sample_prompts(runtime, sampler, runtime.load_params(), encoded, key)
    s = sampled.samples
    return [
        {
            "prompt_id": e.prompt.id,
            "prompt": e.prompt.text,
            "sample": k,
            "response": text,
            "finish": FINISH_NAMES[s.finish[i, k]],
            "tokens": s.tokens[i, k, : s.length[i, k]].tolist(),
            "logp": [round(float(x), 6) for x in s.logp[i, k, : s.length[i, k]]],
        }
        for i, e in enumerate(encoded)
        for k, text in enumerate(sampled.texts[i])
    ]

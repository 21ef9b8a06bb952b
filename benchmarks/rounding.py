"""How far sampler and trainer are apart, by dtype, beside what the gate allows, and beside faults:
python benchmarks/rounding.py [MODEL]

The model is SmolLM2-135M-Instruct unless another is named. 16 prompts are sampled twice, 32 tokens
each, and the same tokens are scored by the trainer. The faults are in the trainer: its logits
divided by another temperature, a prompt's length one too long (which shifts positions and shows a
padding token), and two neighbouring layers in each other's place."""

from __future__ import annotations

import sys

import jax
import numpy as np

from ssppo_jax import schema
from ssppo_jax.data.prepare import prepare_prompts
from ssppo_jax.rollout.mismatch import Mismatch, bounds_of, mismatch_of
from ssppo_jax.rollout.rows import batch_of
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.rollout.score import explained, score_rows
from ssppo_jax.runtime import ROLLOUT, build_runtime, rollout_params
from ssppo_jax.steps import make_score_step

PROMPTS = 16
CASES = (  # model.dtype, sampling.param_dtype, sampling.cache_dtype
    ("float32", "model", "model"),
    ("float32", "bfloat16", "model"),
    ("float32", "int8", "model"),
    ("bfloat16", "model", "model"),
    ("bfloat16", "int8", "model"),
)


def faults(params: dict, length: np.ndarray) -> dict[str, tuple[dict, np.ndarray]]:
    """Parameters and prompt lengths of the trainer, by the fault that it has."""
    layers = len(jax.tree.leaves(params["layers"])[0])
    order = np.arange(layers)
    middle = layers // 2
    order[[middle - 1, middle]] = order[[middle, middle - 1]]
    swapped = {"layers": jax.tree.map(lambda x: x[order], params["layers"])}
    return {
        "none": (params, length),
        "temperature 0.9": (params | {"norm": {"scale": params["norm"]["scale"] / 0.9}}, length),
        "position + 1": (params, length + 1),
        f"layers {middle - 1} and {middle} swapped": (params | swapped, length),
    }


def measure(source: str, case: tuple[str, str, str]) -> None:
    given = {
        "model.source": source,
        "model.dtype": case[0],
        "sampling.param_dtype": case[1],
        "sampling.cache_dtype": case[2],
        "sampling.num_samples": 2,
        "sampling.max_new_tokens": 32,
        "sampling.batch_size": PROMPTS,
        "train.batch_size": PROMPTS,
        "data.prompt_buckets": "(49,)",  # room for a length that is one too long
    }
    config = schema.load("quickstart", {key: str(x) for key, x in given.items()}, 1)
    runtime = build_runtime(config)
    prompts = prepare_prompts(config.data, runtime.tokenizer, seed=0, history=None)[0][:PROMPTS]
    params = runtime.load_params()
    sampler = runtime.make_sampler(num_samples=2, sampling=rollout_params(config))
    samples = sample_prompts(runtime, sampler, params, prompts, runtime.key(ROLLOUT)).samples
    batch, score = batch_of(prompts, samples), jax.jit(make_score_step(runtime.make_apply()))
    allowed = bounds_of(explained(runtime))
    for fault, (wrong, length) in faults(params, batch.prompt_length).items():
        asked = batch._replace(prompt_length=length)
        logp, _ = score_rows(runtime, score, wrong, asked, "the policy")
        found = mismatch_of((logp - samples.logp)[batch.mask > 0])
        print_row(case, fault, found, allowed)


def print_row(case: tuple[str, str, str], fault: str, found: Mismatch, allowed: Mismatch) -> None:
    numbers = [f"{x:.1e} of {bound:.1e}" for x, bound in zip(found, allowed, strict=True)]
    fires = any(x > bound for x, bound in zip(found, allowed, strict=True))
    print(f"| {' | '.join(case[:2])} | {fault} | {' | '.join(numbers)} | {fires} |", flush=True)


def main(source: str = "embedded:smollm2") -> None:
    print(
        "| model.dtype | sampling.param_dtype | fault | median | 99.9% | mean exp(d) - 1 | fires |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        measure(source, case)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Sampling in training's layout and in layouts of its own, on eight virtual devices of a CPU:
python benchmarks/layouts.py

Training cuts every weight over all devices (mesh.fsdp=8), so sampling in that layout gathers every
weight for every token. The same devices are then cut by `sampling.mesh`. The model has 33 million
random parameters; what is timed is `sample_prompts`, the weights' move included. Seconds of the
processor's cores stand beside those of the clock: they do not count waiting. The tokens of all
layouts are compared."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from ssppo_jax import schema
from ssppo_jax.data import EncodedPrompt
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.rollout.sample import sample_prompts
from ssppo_jax.runtime import build_runtime, sampling_params
from ssppo_jax.types import Prompt
from ssppo_jax.weights import hf
from ssppo_jax.weights.tiny import byte_tokenizer

DEVICES = 8
PROMPTS, SAMPLES, PROMPT, NEW, ROUNDS = 8, 2, 64, 32, 3
LAYOUTS = {  # of sampling, as `data` x `tensor`; 0 x 0 is training's
    "as in training, fsdp=8": (0, 0),
    "data=8": (8, 1),
    "data=4, tensor=2": (4, 2),
    "data=2, tensor=4": (2, 4),
    "tensor=8": (1, 8),
}


def write_model(folder: str) -> Path:
    tokenizer = byte_tokenizer()
    arch = Arch(
        vocab_size=len(tokenizer),
        hidden_size=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        mlp_dim=2048,
        tie_embeddings=True,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_positions=1024,
        bos_id=1,
        eos_ids=(2,),
    )
    params = jax.jit(lambda: init_params(Decoder(arch), jax.random.key(0)))()
    with tempfile.TemporaryDirectory() as files:
        tokenizer.save_pretrained(files)
        return hf.save_params(params, arch, Path(folder) / "model", tokenizer_from=files)


def measure(folder: Path, data: int, tensor: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of the clock and of all cores in each round, and the tokens."""
    given = {
        "model.source": str(folder),
        "mesh.data": 1,
        "mesh.fsdp": DEVICES,
        "train.micro_batches": 1,
        "sampling.mesh.data": data,
        "sampling.mesh.tensor": tensor,
        "sampling.batch_size": PROMPTS,
        "sampling.num_samples": SAMPLES,
        "sampling.max_new_tokens": NEW,
        "data.prompt_buckets": f"({PROMPT},)",
        "data.max_prompt_length": PROMPT,
    }
    config = schema.load("smoke", {key: str(x) for key, x in given.items()}, DEVICES)
    runtime = build_runtime(config)
    params = runtime.load_params()
    sampler = runtime.make_sampler(num_samples=SAMPLES, sampling=sampling_params(config))
    rng = np.random.default_rng(0)
    ids = rng.integers(8, 264, (PROMPTS, PROMPT)).astype(np.int32)
    encoded = [EncodedPrompt(Prompt(str(i), ()), x, i) for i, x in enumerate(ids)]
    seconds = []
    for _ in range(1 + ROUNDS):  # the first compiles
        start = np.array([time.perf_counter(), time.process_time()])
        found = sample_prompts(runtime, sampler, params, encoded, jax.random.key(0))
        seconds.append(np.array([time.perf_counter(), time.process_time()]) - start)
    return np.array(seconds[1:]), found.samples.tokens


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    base, tokens = None, None
    print("| layout of sampling | seconds (least to most) | times as fast | of cores | tokens |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(folder)
        for name, (data, tensor) in LAYOUTS.items():
            seconds, found = measure(model, data, tensor)
            clock, cores = np.median(seconds, axis=0)
            base, tokens = base or clock, found if tokens is None else tokens
            same = "the same" if np.array_equal(found, tokens) else "others"
            spread = f"{clock:.2f} ({seconds[:, 0].min():.2f} to {seconds[:, 0].max():.2f})"
            print(f"| {name} | {spread} | {base / clock:.1f} | {cores:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main()

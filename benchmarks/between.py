"""What a run waits for between its phases, on eight virtual CPU devices: python
benchmarks/between.py [LAYERS] (of Llama 3.2 1B's sizes, in bfloat16; default 16)

A checkpoint of the parameters, in the foreground and in the background; the initial policy, read
from its folder again and put back from the host's memory. Least and most of three rounds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}

import jax
import random_model

from ssppo_jax.distributed.mesh import abstract, host_copy, make_mesh
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.weights import hf
from ssppo_jax.weights.checkpoint import Checkpoints

ROUNDS = 3


def main(layers: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "model"
        random_model.main(str(source), layers)
        arch = hf.read_arch(source)
        decoder = Decoder(arch, param_dtype="bfloat16")
        shapes = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
        like = abstract(make_mesh((1, 8, 1)), shapes)
        params = hf.load_placed(source, arch, like)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        checkpoints = Checkpoints(Path(place) / "checkpoints")
        restore = host_copy(params)
        step = iter(range(10 * ROUNDS))

        def save(background: bool) -> None:
            checkpoints.save(next(step), params, {}, finite=True, background=background)

        print(f"{count / 1e9:.2f} billion parameters in bfloat16\n")
        print("| what | seconds waited |\n|---|---|")
        row("a checkpoint in the foreground", lambda: save(False))
        row("a checkpoint in the background", lambda: save(True), checkpoints.wait)
        row("the initial policy from disk", lambda: wait(hf.load_placed(source, arch, like)))
        row("the initial policy from the host's memory", lambda: wait(restore()))


def row(what: str, work: Callable[[], object], after: Callable[[], object] = lambda: None) -> None:
    """Time some work; what comes after it is not timed."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
        after()
    print(f"| {what} | {min(seconds):.2f} to {max(seconds):.2f} |", flush=True)


def wait(tree) -> None:
    jax.block_until_ready(tree)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16)

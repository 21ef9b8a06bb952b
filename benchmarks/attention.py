"""Attention implementations that run on this machine: held against float32 products, then timed.

    python benchmarks/attention.py [P K T]

Prompts of P tokens with K completions of T tokens, two rows, bfloat16, in a model of four layers
with Llama-3.2-1B's sizes: the error of hidden states and gradients relative to float32 einsum,
seconds of value and gradient, and temporary memory."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import work

from ssppo_jax import schema
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.attention import IMPLEMENTATIONS
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.runtime import attention_problem

ARCH = Arch(
    vocab_size=4096,
    hidden_size=2048,
    num_layers=4,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    mlp_dim=8192,
    tie_embeddings=True,
)


def possible() -> list[str]:
    config = schema.base_config()
    config.model.dtype = "bfloat16"

    def runs(how: str) -> bool:
        config.model.attention = how
        return attention_problem(config, ARCH, jax.devices()[0].platform) is None

    return [how for how in IMPLEMENTATIONS if runs(how)]


def made(how: str, dtype: str, batch: tuple):
    """The compiled (params) -> ((value, hidden states), gradient)."""
    decoder = Decoder(ARCH, dtype=jnp.dtype(dtype), attention=how, remat="full")
    prompt, length, completion = batch

    def value(params):
        out = decoder.apply({"params": params}, prompt, length, completion).completion.astype(
            jnp.float32
        )
        return jnp.sum(jnp.sin(out)) / out.size, out

    params = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
    return jax.jit(jax.value_and_grad(value, has_aux=True)).lower(params).compile()


def error(got, want) -> float:
    """||got - want|| / ||want|| over all leaves, in float64."""
    pairs = list(
        zip(map(_wide, jax.tree.leaves(got)), map(_wide, jax.tree.leaves(want)), strict=True)
    )
    return float(
        np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs))
    )


def _wide(x) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32)).astype(np.float64)


def main() -> None:
    p, k, t = map(int, sys.argv[1:] or ("512", "4", "512"))
    rng = np.random.default_rng(0)
    batch = (
        rng.integers(0, 4096, (2, p)),
        np.array([p, p // 3 + 1], np.int32),
        rng.integers(0, 4096, (2, k, t)),
    )
    params = init_params(Decoder(ARCH), jax.random.key(0))
    (_, hidden), gradient = made("einsum", "float32", batch)(params)
    bound = None
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}: P={p} K={k} T={t}, bfloat16")
    for how in possible():
        run = made(how, "bfloat16", batch)
        (_, mine), grads = run(params)
        errors = error(mine, hidden), error(grads, gradient)
        bound = bound or [
            2 * e + 1e-3 for e in errors
        ]  # einsum comes first: what bfloat16 itself does
        assert all(e <= b for e, b in zip(errors, bound, strict=True)), (how, errors, bound)
        seconds = work.timed(
            functools.partial(lambda f: jax.block_until_ready(f(params)), run), warm=2
        )
        memory = run.memory_analysis().temp_size_in_bytes / 2**30
        text = (
            f"{how:8} error {errors[0]:.1e}, of gradient {errors[1]:.1e}; {1e3 * seconds:.1f} ms,"
            f" {memory:.2f} GiB"
        )
        print(text, flush=True)


if __name__ == "__main__":
    main()

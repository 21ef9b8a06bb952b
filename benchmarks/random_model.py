"""A model folder of Llama 3.2 1B's sizes with random bfloat16 weights: python
benchmarks/random_model.py FOLDER

For timing where nothing can be downloaded. Its tokenizer, and so its vocabulary, are SmolLM2's.
"""

from __future__ import annotations

import sys

import jax

from ssppo_jax.models.arch import Arch
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import resolve


def main(folder: str, layers: int = 16) -> None:
    sizes = {
        "hidden_size": 2048,
        "num_layers": layers,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 64,
        "mlp_dim": 8192,
    }
    ids = {"bos_id": 1, "eos_ids": (2,)}
    arch = Arch(
        vocab_size=49152,
        **sizes,
        tie_embeddings=True,
        rope_theta=5e5,
        norm_eps=1e-5,
        max_positions=8192,
        **ids,
    )
    decoder = Decoder(arch, param_dtype="bfloat16")
    params = jax.jit(lambda: init_params(decoder, jax.random.key(0)))()
    print(hf.save_params(params, arch, folder, tokenizer_from=resolve("embedded:smollm2")))


if __name__ == "__main__":
    main(sys.argv[1])

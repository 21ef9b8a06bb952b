"""Our GGUF files, read by llama.cpp (`make llamacpp`). Not part of the tests.

SmolLM2-135M-Instruct and small random models of both families are written as GGUF. llama.cpp
answers prompts with them greedily, and our decoder reads the same tokens from the folder. A row
says how many of llama.cpp's tokens are our likeliest too, and the largest difference of a token's
log-prob. Exits 1 where a float32 file differs by more than 2e-3 or in a token."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xllamacpp

from ssppo_jax.models.arch import Arch, Llama3Scaling, tiny_arch
from ssppo_jax.models.decoder import Decoder, output_kernel
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.weights import hf, names
from ssppo_jax.weights.gguf_export import save_gguf
from ssppo_jax.weights.source import load_tokenizer, resolve

PROMPTS = (
    "What is the capital of France?",
    "Count from 1 to 12.",
    "Write a line about the sea, with a wörld of émojis 🦊.",
    "def add(a, b):\n    return",
)
TOKENS = 24
BOUND = 2e-3


def main() -> int:
    smollm2 = resolve("embedded:smollm2")
    bad = False
    print("| model | dtype | tokens | likeliest here too | largest difference of log-probs |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in {"SmolLM2-135M": smollm2, **random_models(smollm2, scratch)}.items():
            dtypes = ("float32", "bfloat16", "float16") if folder == smollm2 else ("float32",)
            for dtype in dtypes:
                file = save_gguf(folder, Path(scratch) / f"{name}_{dtype}.gguf", dtype=dtype)
                same, off = compared(folder, answers(file))
                print(f"| {name} | {dtype} | {len(same)} | {sum(same)} | {off:.1e} |", flush=True)
                bad |= dtype == "float32" and (off > BOUND or not all(same))
                file.unlink()
    return int(bad)


def random_models(tokens_of: Path, scratch: str) -> dict[str, Path]:
    """Make models whose heads share keys and are wider than the model's width says."""
    made, vocab = {}, hf.read_arch(tokens_of).vocab_size
    sizes = {"vocab_size": vocab, "hidden_size": 64, "head_dim": 32, "tie_embeddings": False}
    scaled = Llama3Scaling(8.0, 1.0, 4.0, 64)
    for kind, arch in {
        "llama": tiny_arch(**sizes),
        "llama 3.1": tiny_arch(**sizes, rope_scaling=scaled),
        "qwen2": tiny_arch(**sizes, model_type="qwen2"),
    }.items():
        rng, tree = np.random.default_rng(0), {}
        for leaf in names.leaves(arch):
            value = 0.2 * rng.standard_normal(names.shape(leaf, arch)) + ("norm" in leaf.path)
            hf.insert(tree, leaf.path, value.astype(np.float32))
        folder = Path(scratch) / kind
        made[f"random {kind}"] = hf.save_params(tree, arch, folder, tokenizer_from=tokens_of)
    return made


def answers(file: Path) -> list[tuple[str, list[int], list[float]]]:
    """Return each prompt's text, llama.cpp's greedy tokens, and their log-probs by llama.cpp."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 512, 1, False, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1  # more would spin
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)
    found = []
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        asked = {"prompt": text, "n_predict": TOKENS, "temperature": 0, "n_probs": 1}
        said = server.handle_completions(asked)
        said = json.loads(said) if isinstance(said, str) else said
        content = said["choices"][0]["logprobs"]["content"]
        found.append((text, [t["id"] for t in content], [t["logprob"] for t in content]))
    return found


def compared(folder: Path, said: list[tuple[str, list[int], list[float]]]):
    """Return of each token whether it is our likeliest, and the largest difference of log-probs."""
    arch, tokenizer = hf.read_arch(folder), load_tokenizer(folder)
    params = jax.tree.map(jnp.asarray, hf.load_params(folder, arch))
    same, off = [], 0.0
    for text, tokens, theirs in said:
        prompt = tokenizer(text)["input_ids"]
        logp = log_probs(arch, params, prompt + tokens)[len(prompt) - 1 : -1]
        same += [int(row.argmax()) == token for row, token in zip(logp, tokens, strict=True)]
        ours = logp[np.arange(len(tokens)), tokens]
        off = max(off, float(np.abs(ours - np.array(theirs)).max()))
    return same, off


def log_probs(arch: Arch, params, ids: list[int]) -> np.ndarray:
    """Return log-probs of the next token at each position, [T,V]."""
    hidden = Decoder(arch).apply({"params": params}, jnp.array([ids]), jnp.array([len(ids)])).prompt
    logits = logits_of(hidden, output_kernel(params, arch), arch.final_softcap)
    return np.asarray(jax.nn.log_softmax(logits))[0]


if __name__ == "__main__":
    sys.exit(main())

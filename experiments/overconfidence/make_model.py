"""Make the model that every run starts from: random parameters, then SFT by this package.

    python experiments/overconfidence/make_model.py

writes into runs/overconfidence-model the folders random (with a tokenizer of words), sft (the run)
and model (its policy), and demonstrations.jsonl. Seeds are fixed. The policy is copied out of its
run, because prompts that a run was trained on are not held out by the next, and the open prompts
all were.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from config import MODEL, get_config
from language import ASKS, FLOURISH, NOUNS, SEASONS, SLOTS, ask, drawn, sentence
from start import SPECIALS, save_random, word_level, wrapped

from ssppo_jax import train
from ssppo_jax.files import write_records
from ssppo_jax.models.arch import tiny_arch

DEMONSTRATIONS = 4096
MISTAKES = 0.1  # share of demonstrations in which one phrase is not the one asked for
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
SIZES = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32}


def vocabulary() -> list[str]:
    """Return the special tokens and every word of the language."""
    phrases = " ".join(" ".join(values) for values in SLOTS.values()).split()
    forms = [form for pair in FLOURISH for form in pair]
    words = [*phrases, *NOUNS, *ASKS, *SEASONS, *forms, "the", "near", "a", "in", ":", "."]
    return [*SPECIALS, *dict.fromkeys(words)]


def tokenizer(words: list[str]):
    """Make a tokenizer whose tokens are words between spaces."""
    from tokenizers import pre_tokenizers

    made = word_level(words)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(made, TEMPLATE)


def demonstrations() -> list[dict]:
    """Return prompts of both kinds, half and half, with random sentences that obey them, mostly."""
    rng, rows = np.random.default_rng(0), []
    for i in range(DEMONSTRATIONS):
        phrases, noun = drawn(rng), str(rng.choice(NOUNS))
        verb, season = str(rng.choice(ASKS)), str(rng.choice(SEASONS))
        prompt = ask(verb, season, noun, phrases if i % 2 else None)
        if rng.random() < MISTAKES:
            slot = str(rng.choice(list(SLOTS)))
            phrases = phrases | {slot: str(rng.choice(SLOTS[slot]))}
        rows.append({"prompt": prompt.text, "completion": sentence(rng, noun, phrases)})
    return rows


def main() -> None:
    folder, words = Path(MODEL), vocabulary()
    arch = tiny_arch(
        vocab_size=-(-len(words) // 8) * 8, mlp_dim=384, bos_id=None, eos_ids=(3,), **SIZES
    )
    save_random(arch, tokenizer(words), folder / "random")
    write_records(folder / "demonstrations.jsonl", demonstrations())
    train(get_config("sft"), folder / "sft")
    shutil.copytree(folder / "sft" / "policy", folder / "model")


if __name__ == "__main__":
    main()

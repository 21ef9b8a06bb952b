"""What the small models of the studies begin with: random parameters and a tokenizer of words."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ssppo_jax.weights import hf, names

SPECIALS = ("<pad>", "<user>", "<assistant>", "<end>", "<unknown>")
TEMPLATE_OF_SUMS = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def random_parameters(arch) -> dict:
    """Draw parameters: norms 1, everything else normal with a variance of 1 over the width."""
    rng, tree = np.random.default_rng(0), {}
    for leaf in names.leaves(arch):
        shape = names.shape(leaf, arch)
        drawn = rng.normal(size=shape).astype(np.float32) * arch.hidden_size**-0.5
        hf.insert(tree, leaf.path, np.ones_like(drawn) if leaf.path.endswith("scale") else drawn)
    return tree


def word_level(words: list[str]):
    """Return a `tokenizers.Tokenizer` of these words, the special tokens among them."""
    from tokenizers import AddedToken, Tokenizer, models

    ids = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    made.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return made


def of_sums(signs: str):
    """Return a tokenizer whose tokens are digits, signs, "Calculate" and "####"; spaces are
    none."""
    from tokenizers import Regex, decoders, pre_tokenizers

    made = word_level([*SPECIALS, "####", "Calculate", *"0123456789", *signs])
    each = Regex(r"####|[A-Za-z]+|[^\sA-Za-z]")
    made.pre_tokenizer = pre_tokenizers.Split(each, behavior="removed", invert=True)
    made.decoder = decoders.Fuse()
    return wrapped(made, TEMPLATE_OF_SUMS)


def save_random(arch, tokenizer, folder: Path) -> None:
    """Write random parameters and a tokenizer into a folder, and say how many parameters."""
    with tempfile.TemporaryDirectory() as files:
        tokenizer.save_pretrained(files)
        hf.save_params(random_parameters(arch), arch, folder, tokenizer_from=Path(files))
    count = sum(int(np.prod(names.shape(leaf, arch))) for leaf in names.leaves(arch))
    print(f"{folder}: {count:,} parameters")


def wrapped(made, template: str):
    """Return it as a tokenizer of transformers with a chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unknown>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer

"""What the small models of the studies begin with: random parameters and a tokenizer of words."""

from __future__ import annotations

import numpy as np

from ssppo_jax.weights import hf, names

SPECIALS = ("<pad>", "<user>", "<assistant>", "<end>", "<unknown>")


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

"""A random model folder small enough for tests and the smoke config: byte-level tokenizer, ChatML
template, real files.

It goes through the same doors as a downloaded model (config.json, tokenizer.json, safetensors), so
what works on it works on them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ssppo_jax.models.arch import Arch, tiny_arch
from ssppo_jax.weights import hf, names

VERSION = 2  # part of the cache key: raise when the folder's content changes
# with the bytes 264 ids, so that a mesh divides them
RESERVED = tuple(f"<|reserved_{i}|>" for i in range(5))
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *RESERVED)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tiny(folder: str | Path) -> Path:
    """Write a random Llama of about 50 thousand parameters as a Hugging Face folder; the same bytes
    every time."""
    tokenizer = byte_tokenizer()
    arch = tiny_arch(vocab_size=len(tokenizer), bos_id=1, eos_ids=(2,))
    with tempfile.TemporaryDirectory() as files:
        tokenizer.save_pretrained(files)
        return hf.save_params(_random(arch), arch, folder, tokenizer_from=files)


def byte_tokenizer():
    """Make a tokenizer of 256 bytes and special tokens; any text has ids that map back to it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[2],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _random(arch: Arch) -> dict:
    rng = np.random.default_rng(0)
    tree: dict = {}
    for leaf in names.leaves(arch):
        shape = names.shape(leaf, arch)
        if leaf.path.endswith("scale"):
            value = np.ones(shape, np.float32)
        else:
            value = rng.normal(size=shape).astype(np.float32) * arch.hidden_size**-0.5
        hf.insert(tree, leaf.path, value)
    return tree

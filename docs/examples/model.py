"""A family of models of one's own: Ministral, which is Mistral with windows in some layers only."""

import tempfile
from pathlib import Path

import numpy as np

from ssppo_jax.config import load_config
from ssppo_jax.models.arch import Arch, tiny_arch
from ssppo_jax.models.family import FAMILIES, Family
from ssppo_jax.weights import hf, names
from ssppo_jax.weights.tiny import byte_tokenizer

FAMILIES["ministral"] = Family(
    "MinistralForCausalLM",
    "MinistralForSequenceClassification",
    # What transformers assumes where config.json leaves a field out.
    {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    windows="some",
)


def write_random(folder: Path) -> Path:
    """Write a random model of this family as a Hugging Face folder, as a download would lie."""
    tokenizer = byte_tokenizer()
    arch = tiny_arch(
        model_type="ministral",
        vocab_size=len(tokenizer),
        sliding_window=32,
        sliding_layers=(0,),
    )
    with tempfile.TemporaryDirectory() as files:
        tokenizer.save_pretrained(files)
        return hf.save_params(_random(arch), arch, folder, tokenizer_from=files)


def _random(arch: Arch) -> dict:
    rng, tree = np.random.default_rng(0), {}
    for leaf in names.leaves(arch):  # every tensor of the family, by weights/names.py
        values = rng.normal(size=names.shape(leaf, arch)) * arch.hidden_size**-0.5
        hf.insert(tree, leaf.path, values.astype(np.float32))
    return tree


def get_config(folder: str = "runs/tiny-ministral"):
    config = load_config("smoke")
    if not Path(folder).exists():
        write_random(Path(folder))
    config.model.source = folder
    return config

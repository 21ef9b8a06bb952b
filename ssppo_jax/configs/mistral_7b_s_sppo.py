"""S-SPPO on Mistral-7B-Instruct-v0.2: the paper's settings for Llama-3-8B-Instruct with its other
model.

What llama3_8b_s_sppo.py says of the oracle, of reconstructions and of lengths holds here too. This
model is not gated."""

from ssppo_jax.config import load_config


def get_config():
    config = load_config("llama3_8b_s_sppo")
    config.model.source = "mistralai/Mistral-7B-Instruct-v0.2"
    return config

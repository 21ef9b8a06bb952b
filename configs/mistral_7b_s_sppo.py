"""S-SPPO on Mistral-7B-Instruct-v0.2: the paper's settings for Llama-3-8B-Instruct with its other model.

What llama3_8b_s_sppo.py says of the oracle, of reconstructions and of lengths holds here too. This model is not gated.
"""

from pathlib import Path

from ssppo_jax.config import load_config


def get_config():
    config = load_config(str(Path(__file__).with_name("llama3_8b_s_sppo.py")))
    config.model.source = "mistralai/Mistral-7B-Instruct-v0.2"
    return config

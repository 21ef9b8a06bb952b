r"""SSPO on Qwen2.5-7B-Instruct and GSM8K, for 8 devices or more. Not run here.

Source: arXiv 2602.19327 publishes no number that could be read. The settings, and the bounds below,
are those of the sibling study of soft gates (arXiv 2602.19345) with the same model: GSM8K 80.3 at
the start and 82.2 to 82.8 by its gates. It is a reconstruction throughout.

    python -m ssppo_jax benchmark --name=gsm8k --model=RUN/policy \
        --config.benchmark.path=GSM8K.jsonl
"""

from ssppo_jax.config import load_config


def get_config():
    return load_config("qwen2_5_7b_sspo")


if __name__ == "__main__":
    from check import check

    check(get_config(), {}, {"strict": (0.80, 0.95)})

"""SSPO on a tiny random model: about a minute on two CPU cores. It says that the loop learns.

The reward is the oracle's score of four characters. Bounds are ours.
"""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select


def get_config():
    config = load_config("smoke")
    select(config, "loss", "sspo")
    config.data.heldout = 32
    config.train.iterations = 6
    config.checkpoint.every_steps = 0
    return config


if __name__ == "__main__":
    from check import check

    check(get_config(), {"win_rate": (0.55, 0.95), "low": (0.5, 0.95)})

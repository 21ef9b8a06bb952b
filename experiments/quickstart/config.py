"""Does `make quickstart` raise the held-out win rate for every seed? The quickstart config, three
seeds."""

from ssppo_jax.config import load_config

SEEDS = (0, 1, 2)


def get_config():
    return load_config("quickstart")


def sweep(add):
    add()

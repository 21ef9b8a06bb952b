"""Does `make quickstart` win more and keep its answers, for every seed? The quickstart config,
three seeds, judged by what trains it, by both of its parts, and by keywords, which training does
not see."""

from ssppo_jax.config import load_config

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/win_rate",
    "evaluate/length_controlled_win_rate",
    "evaluate/keywords/win_rate",
    "evaluate/keywords/reward:first",
    "evaluate/keywords/reward",
    "evaluate/relevance/reward:first",
    "evaluate/relevance/reward",
    "evaluate/sentiment/win_rate",
)


def get_config():
    config = load_config("quickstart")
    config.eval.oracles = "keywords,relevance,sentiment"
    return config


def sweep(add):
    add()

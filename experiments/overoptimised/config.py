"""What does the quickstart lose when sentiment alone trains it? Judged by what training does not
see."""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/win_rate",
    "evaluate/keywords/win_rate",
    "evaluate/keywords/reward:first",
    "evaluate/keywords/reward",
    "evaluate/relevance/win_rate",
    "evaluate/relevance/reward:first",
    "evaluate/relevance/reward",
)


def get_config():
    config = load_config("quickstart")
    select(config, "oracle", "sentiment", temperature=0.25)
    config.eval.oracles = "keywords,relevance"
    return config


def sweep(add):
    add()

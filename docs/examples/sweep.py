"""Everything of one's own together, and a sweep over it."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module
from ssppo_jax.schema import select

HERE = Path(__file__).parent
for name in ("loss", "gate", "oracle", "source"):
    load_module(str(HERE / f"{name}.py"))  # each file enters its function in its table

SEEDS = (0, 1)
METRICS = ("evaluate/win_rate", "train/loss:last")


def get_config():
    config = load_config("smoke")
    select(config, "data.source", "products", largest=6)
    select(config, "oracle", "on_topic", shortest=3, brevity=0.01)
    select(config, "pairs.gate", "ramp", start=0.6)
    config.data.heldout = 4
    config.train.iterations = 1
    config.train.prompts_per_iteration = 8
    return config


def sweep(add):
    add({"loss.name": "dpo"}, label="DPO")
    for beta in (1.0, 4.0):
        add({"loss.name": "mean_margin", "loss.beta": beta})

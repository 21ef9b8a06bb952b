"""The paper's optimizer and beta: RMSProp and 1e-3, under the oracle of config.py."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module
from ssppo_jax.schema import select

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.SEEDS[:5], STUDY.METRICS
RATE = 3e-5  # by rmsprop_pilot.py


def get_config():
    config = load_config(str(Path(__file__).parent / "config.py"))
    select(config, "optimizer", "rmsprop")
    config.optimizer.learning_rate = RATE
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_ratio = 0.0
    config.loss.beta = 1e-3
    return config


def sweep(add):
    for label in ("SPPO", "S-SPPO"):
        add(STUDY.METHODS[label], label=label)

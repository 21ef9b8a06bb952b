"""The pilot behind PLAN.md's sample size and rates: GRPO and SSPO on seeds of their own."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = (100, 101, 102), STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for objective in ("grpo", "sspo"):
        keys, label = STUDY.point(objective, STUDY.STALENESS[-1], 7.5e-5)
        add(keys, label=label)

"""The pilot behind PLAN.md's sample size: GRPO and SSPO on seeds of their own."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = (100, 101, 102), STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for objective, rate in (("grpo", 2e-4), ("sspo", 2e-4), ("sspo", 5e-5), ("grpo", 5e-5)):
        keys, label = STUDY.point(objective, rate)
        add(keys, label=label)

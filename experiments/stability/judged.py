"""Stale updates: every objective at the rate that they have in common, 32 updates a rollout."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = (1, 2, 3, 4, 5), STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    at_common_rate(add, STUDY.STALENESS[-1])


def at_common_rate(add, updates):
    """Add every objective with rollouts of so many updates."""
    for objective in STUDY.OBJECTIVES:
        keys, label = STUDY.point(objective, updates, STUDY.COMMON)
        add(keys, label=label)

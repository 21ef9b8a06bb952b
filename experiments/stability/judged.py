"""Stale updates: every objective at the rate that choose.py chose for it, on other seeds."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module
from ssppo_jax.files import read_json

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = (1, 2, 3, 4, 5), STUDY.METRICS
RATES = Path(__file__).parent / "results/rates.json"


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    chosen(add, STUDY.STALENESS[-1])


def chosen(add, updates):
    """Add every objective at its rate, with rollouts of so many updates."""
    rates = read_json(RATES)
    for objective in STUDY.OBJECTIVES:
        keys, label = STUDY.point(objective, updates, rates[objective])
        add(keys, label=label)

"""Staler updates: as judged.py, on rollouts that are an iteration old."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.JUDGED_SEEDS, STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    STUDY.at_best_rates(add, *STUDY.STALENESS[2])

"""Programs: every objective at its own best rate, 32 updates a rollout."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.JUDGED_SEEDS, STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    STUDY.ACCURACY.at_best_rates(add, *STUDY.STALENESS[1], STUDY.BEST)

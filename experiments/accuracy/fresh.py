"""Fresher updates at the rates and with the seeds of judged.py: what does staleness cost?"""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.JUDGED_SEEDS[:5], STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    STUDY.at_best_rates(add, *STUDY.STALENESS[0])

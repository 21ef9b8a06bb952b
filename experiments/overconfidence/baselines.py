"""Stronger repulsion, DPO and IPO under the oracle of config.py, beside its seeds."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.SEEDS[:5], STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for label, changes in STUDY.BASELINES.items():
        add(changes, label=label)

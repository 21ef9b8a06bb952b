"""Stronger repulsion, DPO and IPO under the oracle of config.py, beside SPPO and S-SPPO of the same
seeds."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.SEEDS[:5], STUDY.METRICS
CONTROLS = {label: STUDY.METHODS[label] for label in ("SPPO", "S-SPPO")}  # as in config.py


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for label, changes in (STUDY.BASELINES | CONTROLS).items():
        add(changes, label=label)

"""Fresher updates at the rate and with the seeds of judged.py: what does staleness cost?"""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

JUDGED = load_module(str(Path(__file__).parent / "judged.py"))
SEEDS, METRICS = JUDGED.SEEDS, JUDGED.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    JUDGED.at_common_rate(add, JUDGED.STUDY.STALENESS[0])

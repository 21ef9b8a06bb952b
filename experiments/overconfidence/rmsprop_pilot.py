"""Rates of RMSProp at beta 1e-3: SPPO on a seed of its own. The largest stable one is taken."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

RMSPROP = load_module(str(Path(__file__).parent / "rmsprop.py"))
SEEDS, METRICS = (100,), RMSPROP.METRICS
RATES = (3e-6, 1e-5, 3e-5, 1e-4)


def get_config():
    return load_config(str(Path(__file__).parent / "rmsprop.py"))


def sweep(add):
    for rate in RATES:
        add({**RMSPROP.STUDY.SPPO, "optimizer.learning_rate": rate}, label=f"{rate:g}")

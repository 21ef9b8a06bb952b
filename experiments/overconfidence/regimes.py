"""The other oracles, at the same dose: a coin, a taste for a register, and none (the truth)."""

from pathlib import Path

from ssppo_jax.config import load_config, load_module

STUDY = load_module(str(Path(__file__).parent / "config.py"))
SEEDS, METRICS = STUDY.SEEDS[:5], STUDY.METRICS


def get_config():
    return load_config(str(Path(__file__).parent / "config.py"))


def sweep(add):
    for bias in ("coin", "register", "none"):
        for label in ("SPPO", "S-SPPO"):
            add({"oracle.bias": bias, **STUDY.METHODS[label]}, label=f"{bias}: {label}")

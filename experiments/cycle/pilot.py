"""The pilot behind PLAN.md's number of iterations: SPPO on a seed of its own."""

from ssppo_jax.config import load_module

STUDY = load_module("experiments/cycle/config.py")
SEEDS, METRICS = (100,), STUDY.METRICS
get_config = STUDY.get_config


def sweep(add):
    add({"pairs.gate_level": "none", "loss.repulsion_weight": 0.0}, label="SPPO")

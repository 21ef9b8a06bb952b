"""How much latent repulsion? The set-up of experiments/calibration with the pair gate, lambda from 0 to 100."""

from ssppo_jax.config import load_config, load_module

SEEDS = (0, 1, 2)
METRICS = (
    *load_module("experiments/calibration/config.py").METRICS,
    "train/grad_norm/repulsion:mean",
    "train/grad_norm/regression:mean",
    "train/similarity/hidden",
)


def get_config():
    return load_config("experiments/calibration/config.py")


def sweep(add):
    for weight in (0.0, 0.1, 1.0, 10.0, 100.0):
        add({"loss.repulsion_weight": weight}, label=f"lambda {weight:g}")

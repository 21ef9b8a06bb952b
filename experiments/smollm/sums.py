"""SSPO and GMPO on SmolLM2-135M-Instruct: sums of two digits, 20 updates a rollout.

The decisive point of ../accuracy on a language model that was not made for it, at one common rate,
as the best rates of both were equal there. The task is that of ../sspo."""

from pathlib import Path

from ssppo_jax.config import load_config

SEEDS = (1, 2, 3, 4, 5)
METRICS = (
    "evaluate/accuracy",
    "evaluate/accuracy:gain",
    "judge/reward/mean",
    "score/entropy",
    "train/ratio/max:max",
    "train/effective_update_ratio:mean",
)
OBJECTIVES = ("gmpo", "sspo")


def get_config():
    config = load_config(str(Path(__file__).parents[1] / "sspo/config.py"))
    config.train.iterations = 2
    config.train.prompts_per_iteration = 80
    config.eval.every = 1
    config.eval.num_samples = 4
    return config


def sweep(add):
    for name in OBJECTIVES:
        add({"loss.name": name}, label=name)

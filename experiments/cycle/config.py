"""Self-play of a language model under an intransitive preference: SPPO, S-SPPO, and S-SPPO with the
gate on each comparison. PLAN.md says what is asked of the runs."""

from ssppo_jax.config import load_module
from ssppo_jax.schema import select

HERE = "experiments/cycle"  # commands run in the repository's root
START = load_module("experiments/overconfidence/config.py")  # the model and its language
SEEDS = (1, 2, 3, 4, 5)
METRICS = ("evaluate/win_rate", "score/entropy", "score/kl_to_initial")


def get_config():
    config = START.get_config()
    config.data.source.duplicates = 0.0  # no prompt asks for a colour
    select(config, "oracle", f"{HERE}/cycle.py:oracle")
    config.eval.oracles = ""
    config.train.iterations = 60
    config.train.prompts_per_iteration = 16
    config.eval.every = 1
    config.eval.num_samples = 4
    config.eval.final_num_samples = 4
    return config


def sweep(add):
    add({"pairs.gate_level": "none", "loss.repulsion_weight": 0.0}, label="SPPO")
    add(label="S-SPPO")
    add({"pairs.gate_level": "pairwise"}, label="S-SPPO, each comparison gated")

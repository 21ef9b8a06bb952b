"""The settings of each step of `make pipeline`: config.py:sft, config.py:fit, config.py:play.

All of it is offline, on two CPU cores. The hidden rule is VADER sentiment. `label.py` knows it, and
the evaluations of `play` ask it beside the fitted reward; nothing is trained by it."""

import json

from ssppo_jax.config import load_config
from ssppo_jax.schema import select

RULE = {"temperature": 0.25}  # of the oracle `sentiment`


def get_config(step="play"):
    config = load_config("quickstart")
    config.data.max_prompt_length = 48
    config.train.reference_storage = "disk"
    if step == "play":  # oracle.reward_temperature is what the fit found on its held-out pairs
        select(config, "oracle", "reward_model", batch_size=32, max_length=160)
        config.train.iterations = 6
        config.train.prompts_per_iteration = 24
        config.eval.every = 2
        config.eval.num_samples = 1
        config.eval.final_num_samples = 2
        config.eval.oracles = json.dumps([{"oracle": "sentiment", "as": "rule"} | RULE, "keywords"])
        config.checkpoint.every = 0
        return config
    select(config, "data.source", "answered", bad_rows="drop")  # a sample may be empty
    config.data.heldout = 32
    config.sampling.max_new_tokens = 48
    config.train.iterations = 1
    config.train.prompts_per_iteration = 0
    if step == "sft":
        select(config, "loss", "sft")
        config.optimizer.learning_rate = 2e-5
    else:  # fit
        config.data.heldout = 48
        config.train.batch_size = 8
        config.optimizer.learning_rate = 1e-4
        config.train.epochs = 3
        config.optimizer.schedule = "linear"
        config.optimizer.warmup_ratio = 0.1
    return config

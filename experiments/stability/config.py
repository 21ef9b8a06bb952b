"""GRPO, GSPO, GMPO, SAPO and SSPO on sums with written-out working, when updates go stale.

`config.py:sft` and `config.py:slips` train the model that all runs start from. `config.py` sweeps
the rates, `judged.py` and `fresh.py` are the runs that count. PLAN.md says what is asked of
them."""

from pathlib import Path

from ssppo_jax.config import load_module
from ssppo_jax.schema import base_config, select

HERE = "experiments/stability"  # commands run in the repository's root
MODEL = "runs/stability-model"
SUMS = load_module(str(Path(__file__).parent / "sums.py"))
SEEDS = (11,)
METRICS = (
    "evaluate/accuracy",
    "evaluate/accuracy:max",
    "judge/reward/mean",
    "score/entropy:min",
    "train/ratio/max:max",
    "train/effective_update_ratio:mean",
    "train/grad_norm:max",
)
OBJECTIVES = ("grpo", "gspo", "gmpo", "sapo", "sspo")
RATES = (8e-6, 2.5e-5, 7.5e-5, 2.25e-4)
UPDATES = 64  # of a run, whatever its staleness
BETWEEN = 32  # updates between evaluations
PROMPTS = 2  # of an update, 8 responses each
STALENESS = (8, 32)  # updates that learn from one rollout
COMMON = 7.5e-5  # the rate of judged.py and fresh.py


def get_config(step="play"):
    config = base_config()
    config.data.max_prompt_length = 24
    config.data.prompt_buckets = (24,)
    config.sampling.max_new_tokens = 116
    select(config, "optimizer", "adamw")
    config.optimizer.warmup_ratio = 0.0
    config.optimizer.max_grad_norm = 1.0
    config.train.term_norms = False
    return _play(config) if step == "play" else _sft(config, step)


def _sft(config, step):
    """Learn to add (sft), or with the same to slip more often (slips)."""
    learns = step == "sft"
    config.model.source = f"{MODEL}/random" if learns else f"{MODEL}/sft/policy"
    select(config, "data.source", "answered", path=f"{MODEL}/{step}.jsonl")
    select(config, "loss", "sft")
    config.data.heldout = 64
    config.optimizer.learning_rate = 3e-3 if learns else 1e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_ratio = 0.05
    config.train.iterations = 1
    config.train.prompts_per_iteration = 0
    config.train.batch_size = 32
    config.train.epochs = 3 if learns else 1
    return config


def _play(config):
    config.model.source = f"{MODEL}/model"
    select(
        config,
        "data.source",
        "reasoning_gym",
        task=SUMS.TASK,
        settings=SUMS.SETTINGS,
        size=1024,
        task_seed=1,
    )
    config.data.heldout = 128
    select(config, "oracle", f"{HERE}/sums.py:check")
    select(config, "loss", "sspo")
    config.sampling.num_samples = 8
    config.sampling.batch_size = 16
    config.optimizer.schedule = "constant"
    config.train.batch_size = PROMPTS
    config.train.reference_storage = "off"
    config.eval.num_samples = 1
    config.eval.final_num_samples = 1
    config.checkpoint.every = 0
    config.checkpoint.final = False
    config.checkpoint.export = False
    for key, value in stale(STALENESS[0]).items():
        node, name = key.split(".")
        config[node][name] = value
    return config


def stale(updates):
    """Return the keys of a run in which each rollout is learned from in so many updates.

    A rollout has as many prompts as its updates need, and each of its responses is used once. So
    all runs sample the same number of responses and make the same number of updates."""
    return {
        "train.iterations": UPDATES // updates,
        "train.prompts_per_iteration": updates * PROMPTS,
        "eval.every": BETWEEN // updates,
    }


def point(objective, updates, rate):
    """Return the keys of a run and its label."""
    keys = {"loss.name": objective, **stale(updates), "optimizer.learning_rate": rate}
    return keys, f"{objective}, {updates} updates, {rate:g}"


def sweep(add):
    for rate in RATES:
        for objective in OBJECTIVES:
            keys, label = point(objective, STALENESS[-1], rate)
            add(keys, label=label)

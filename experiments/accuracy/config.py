"""GRPO, GSPO, GMPO, SAPO and SSPO at their own best rates, when updates go stale.

`config.py:sft` trains the model that all runs start from, and `config.py` sweeps the rates. What
counts are `judged.py`, `lagged.py` and `fresh.py`. PLAN.md says what is asked of them."""

from pathlib import Path

from ssppo_jax.config import load_module
from ssppo_jax.schema import base_config, select

HERE = "experiments/accuracy"  # commands run in the repository's root
MODEL = "runs/accuracy-model"
STEPS = load_module(str(Path(__file__).parent / "steps.py"))
SEEDS, JUDGED_SEEDS = (11, 12), (1, 2, 3, 4, 5, 6, 7, 8)
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
RATES = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
EXTENDED: dict[str, tuple[float, ...]] = {"gspo": (8e-4,)}  # by the plan's rule
UPDATES = 96  # of a run, whatever its staleness
BETWEEN = 32  # updates between evaluations
PROMPTS = 4  # of an update, 8 responses each
STALENESS = ((4, 0), (32, 0), (32, 1))  # updates that learn from a rollout, and its lag
# Each objective's rate, by choose.py.
BEST = {"grpo": 2e-4, "gspo": 4e-4, "gmpo": 1e-4, "sapo": 1e-4, "sspo": 1e-4}


def get_config(step="play"):
    config = base_config()
    config.data.max_prompt_length = 24
    config.data.prompt_buckets = (24,)
    config.sampling.max_new_tokens = 152
    select(config, "optimizer", "adamw")
    config.optimizer.warmup_ratio = 0.0
    config.optimizer.max_grad_norm = 1.0
    config.train.term_norms = False
    return _play(config) if step == "play" else _sft(config)


def _sft(config):
    """Learn to add, in part with working and in part in haste."""
    config.model.source = f"{MODEL}/random"
    select(config, "data.source", "answered", path=f"{MODEL}/sft.jsonl")
    select(config, "loss", "sft")
    config.data.heldout = 64
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_ratio = 0.05
    config.train.iterations = 1
    config.train.prompts_per_iteration = 0
    config.train.batch_size = 8
    config.train.epochs = 3
    return config


def _play(config):
    config.model.source = f"{MODEL}/model"
    select(
        config,
        "data.source",
        "reasoning_gym",
        task=STEPS.TASK,
        settings=STEPS.SETTINGS,
        size=1024,
        task_seed=1,
    )
    config.data.heldout = 124
    select(config, "oracle", f"{HERE}/steps.py:check")
    select(config, "loss", "sspo")
    config.sampling.num_samples = 8
    config.sampling.batch_size = 8
    config.optimizer.schedule = "constant"
    config.train.batch_size = PROMPTS
    config.train.reference_storage = "off"
    config.eval.num_samples = 2
    config.eval.final_num_samples = 2
    config.checkpoint.every = 0
    config.checkpoint.final = False
    config.checkpoint.export = False
    for key, value in stale(*STALENESS[1]).items():
        node, name = key.split(".")
        config[node][name] = value
    return config


def stale(updates, lag):
    """Return the keys of a run in which each rollout is learned from in so many updates.

    A rollout has as many prompts as its updates need, and each of its responses is used once. So
    all runs sample the same number of responses and make the same number of updates. With a lag of
    1 the policy that samples a rollout is an iteration older than the one that learns from it."""
    return {
        "train.iterations": UPDATES // updates,
        "train.prompts_per_iteration": updates * PROMPTS,
        "train.rollout_lag": lag,
        "eval.every": BETWEEN // updates,
    }


def point(objective, rate, updates=32, lag=0):
    """Return the keys of a run and its label."""
    keys = {"loss.name": objective, **stale(updates, lag), "optimizer.learning_rate": rate}
    return keys, f"{objective}, {updates} updates, lag {lag}, {rate:g}"


def at_best_rates(add, updates, lag):
    """Add every objective at its own rate with rollouts of so many updates."""
    for objective in OBJECTIVES:
        keys, label = point(objective, BEST[objective], updates, lag)
        add(keys, label=label)


def sweep(add):
    for rate in RATES:
        for objective in OBJECTIVES:
            keys, label = point(objective, rate)
            add(keys, label=label)
    for objective, rates in EXTENDED.items():
        for rate in rates:
            keys, label = point(objective, rate)
            add(keys, label=label)

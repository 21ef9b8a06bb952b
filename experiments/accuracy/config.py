"""GRPO, GSPO, GMPO, SAPO and SSPO at their own best rates, when updates go stale.

`config.py:sft` trains the model that all runs start from, and `config.py` sweeps the rates. What
counts are `judged.py`, `lagged.py` and `fresh.py`. PLAN.md says what is asked of them."""

from pathlib import Path

from ssppo_jax.config import load_module

MODEL = "runs/accuracy-model"
STEPS = load_module(str(Path(__file__).parent / "steps.py"))
STABILITY = load_module(str(Path(__file__).parents[1] / "stability/config.py"))
SEEDS, JUDGED_SEEDS = (11, 12), (1, 2, 3, 4, 5, 6, 7, 8)
METRICS, OBJECTIVES = STABILITY.METRICS, STABILITY.OBJECTIVES
RATES = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
EXTENDED: dict[str, tuple[float, ...]] = {"gspo": (8e-4,)}  # by the plan's rule
UPDATES = 96  # of a run, whatever its staleness
BETWEEN = 32  # updates between evaluations
PROMPTS = 4  # of an update, 8 responses each
STALENESS = ((4, 0), (32, 0), (32, 1))  # updates that learn from a rollout, and its lag
# Each objective's rate, by choose.py.
BEST = {"grpo": 2e-4, "gspo": 4e-4, "gmpo": 1e-4, "sapo": 1e-4, "sspo": 1e-4}


def get_config(step="play"):
    config = STABILITY.get_config(step)
    config.sampling.max_new_tokens = 152
    return _play(config) if step == "play" else _sft(config)


def _sft(config):
    """Learn to add, in part with working and in part in haste."""
    config.model.source = f"{MODEL}/random"
    config.data.source.path = f"{MODEL}/sft.jsonl"
    config.train.batch_size = 8
    return config


def _play(config):
    config.model.source = f"{MODEL}/model"
    config.data.source.settings = STEPS.SETTINGS
    config.data.heldout = 124
    config.sampling.batch_size = 8
    config.train.batch_size = PROMPTS
    config.eval.num_samples = 2
    config.eval.final_num_samples = 2
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


def at_best_rates(add, updates, lag, best=BEST):
    """Add every objective at its own rate with rollouts of so many updates."""
    for objective in OBJECTIVES:
        keys, label = point(objective, best[objective], updates, lag)
        add(keys, label=label)


def over_rates(add, rates, extended):
    """Add every objective at each rate, then the rates that some objectives have beside them."""
    for rate in rates:
        for objective in OBJECTIVES:
            keys, label = point(objective, rate)
            add(keys, label=label)
    for objective, more in extended.items():
        for rate in more:
            keys, label = point(objective, rate)
            add(keys, label=label)


def sweep(add):
    over_rates(add, RATES, EXTENDED)

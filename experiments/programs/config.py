"""GRPO, GSPO, GMPO, SAPO and SSPO on programs that the sandbox runs, when updates go stale.

`config.py:sft` trains the model that all runs start from, and `config.py` sweeps the rates.
`judged.py` is what counts. PLAN.md says what is asked of them."""

from pathlib import Path

from ssppo_jax.config import load_module
from ssppo_jax.schema import select

MODEL = "runs/programs-model"
ACCURACY = load_module(str(Path(__file__).parents[1] / "accuracy/config.py"))
METRICS, OBJECTIVES = ACCURACY.METRICS, ACCURACY.OBJECTIVES
UPDATES, BETWEEN, STALENESS = ACCURACY.UPDATES, ACCURACY.BETWEEN, ACCURACY.STALENESS
SEEDS, JUDGED_SEEDS = (11, 12), (1, 2, 3, 4, 5, 6)
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
EXTENDED: dict[str, tuple[float, ...]] = {"gspo": (2.5e-5,)}  # by the plan's rule
# Each objective's rate, by choose.py.
BEST = {"grpo": 2e-4, "gspo": 5e-5, "gmpo": 2e-4, "sapo": 2e-4, "sspo": 2e-4}


def get_config(step="play"):
    config = ACCURACY.get_config(step)
    config.model.source = f"{MODEL}/model" if step == "play" else f"{MODEL}/random"
    config.data.max_prompt_length = 40
    config.data.prompt_buckets = (40,)
    config.sampling.max_new_tokens = 80
    if step != "play":
        config.data.source.path = f"{MODEL}/sft.jsonl"
        return config
    select(config, "data.source", "jsonl", path=f"{MODEL}/prompts.jsonl")
    select(config, "oracle", "code", code_style="whole", workers=1)
    return config


def sweep(add):
    ACCURACY.over_rates(add, RATES, EXTENDED)

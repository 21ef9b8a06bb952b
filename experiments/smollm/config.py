"""SPPO and S-SPPO on SmolLM2-135M-Instruct, under an oracle that likes commas where two responses
are alike.

The decisive point of ../overconfidence on a language model that was not made for it. Prompts have
one turn. `second_turn.py` asks the trained policies a second question afterwards."""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select

HERE = "experiments/smollm"  # commands run in the repository's root
SEEDS = tuple(range(1, 11))  # 6 to 10 are a second look (PLAN.md, Changes)
METRICS = (
    "evaluate/judge/win_rate",
    "evaluate/judge/win_rate:max",
    "evaluate/judge/reward",
    "evaluate/commas/reward",
    "evaluate/win_rate",
    "score/entropy",
    "generate/distinct_2",
    "judge/similarity/of_two_samples",
    "score/kl_to_initial",
)
METHODS = {
    "SPPO": {"pairs.gate_level": "none", "loss.repulsion_weight": 0.0},
    "S-SPPO": {},
}


def get_config():
    config = load_config("quickstart")
    select(config, "oracle", f"{HERE}/style.py:oracle")
    config.eval.oracles = f"{HERE}/style.py:judge,{HERE}/style.py:commas"
    config.sampling.max_new_tokens = 24
    config.sampling.temperature = 0.7
    config.train.iterations = 8
    config.train.micro_batches = 2
    config.train.reference_storage = "device"
    config.train.term_norms = False
    config.data.heldout = 64
    config.eval.num_samples = 1
    config.eval.final_num_samples = 4
    config.checkpoint.every = 0
    config.checkpoint.final = False
    return config


def sweep(add):
    for label, changes in METHODS.items():
        add(changes, label=label)

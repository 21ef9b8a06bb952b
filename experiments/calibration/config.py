"""Does gating or repulsion keep self-play healthy when the oracle is overconfident? The 2 x 2 of S-SPPO.

The oracle (`sentiment_overconfident`) knows the truth, VADER's score, and is certain of every comparison, however small
the difference. `quickstart` with shorter responses, and sampled at 0.7, where near-duplicates are more frequent.
"""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/win_rate",
    "evaluate/win_rate:max",
    "score/entropy",
    "generate/distinct_2",
    "judge/similarity/of_two_samples",
    "judge/pairs/margin_raw",
    "judge/pairs/margin_gated",
    "train/grad_variance:mean",
    "score/kl_to_initial",
    "evaluate/repetition_4",
)


def get_config():
    config = load_config("configs/quickstart.py")
    select(config, "oracle", "sentiment_overconfident")
    config.sampling.max_new_tokens = 24
    config.sampling.temperature = 0.7
    config.train.iterations = 8
    config.train.micro_batches = 2
    config.train.initial_policy = "keep"
    config.data.heldout = 64
    config.eval.num_samples = 2
    config.eval.every = 2
    config.checkpoint.every = 0
    config.checkpoint.export = False
    return config


def sweep(add):
    add({"pairs.semantic_gate": "none", "loss.repulsion_weight": 0.0}, label="neither (SPPO)")
    add({"pairs.semantic_gate": "pair", "loss.repulsion_weight": 0.0}, label="gate")
    add({"pairs.semantic_gate": "none", "loss.repulsion_weight": 1.0}, label="repulsion")
    add({"pairs.semantic_gate": "pair", "loss.repulsion_weight": 1.0}, label="both (S-SPPO)")

"""Does gating or repulsion keep self-play healthy when the oracle is overconfident? S-SPPO's 2 x 2,
and lambda to 100.

The oracle (`sentiment_overconfident`) knows the truth, VADER's score, and is certain of every
comparison, however small the difference. `quickstart` with shorter responses, and sampled at 0.7,
where near-duplicates are more frequent."""

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
    "train/grad_norm/regression:mean",
    "train/grad_norm/repulsion:mean",
    "score/kl_to_initial",
    "evaluate/repetition_4",
)
POINTS = {  # label: gate, lambda
    "neither (SPPO)": ("none", 0.0),
    "gate": ("pair", 0.0),
    "repulsion": ("none", 1.0),
    "both (S-SPPO)": ("pair", 1.0),
    "both, lambda 0.1": ("pair", 0.1),
    "both, lambda 10": ("pair", 10.0),
    "both, lambda 100": ("pair", 100.0),
}


def get_config():
    config = load_config("quickstart")
    select(config, "oracle", "sentiment_overconfident")
    config.sampling.max_new_tokens = 24
    config.sampling.temperature = 0.7
    config.train.iterations = 8
    config.train.micro_batches = 2
    config.train.reference_storage = "device"
    config.data.heldout = 64
    config.eval.num_samples = 2
    config.eval.every = 2
    config.checkpoint.every = 0
    config.checkpoint.final = False
    config.checkpoint.export = False
    return config


def sweep(add):
    for label, (gate, weight) in POINTS.items():
        add({"pairs.gate_level": gate, "loss.repulsion_weight": weight}, label=label)

"""Does semantic gating or latent repulsion keep self-play healthy when the oracle is overconfident? A 2 x 2 and lambda.

The oracle (`sentiment_overconfident`) knows the truth, VADER's score, and is certain of every comparison, however small
the difference. `quickstart` scaled down, and pushed: two epochs over every rollout, a higher rate.
"""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select

SEEDS = (0, 1, 2)


def get_config():
    config = load_config("configs/quickstart.py")
    select(config, "oracle", "sentiment_overconfident")
    config.sampling.max_new_tokens = 24
    config.sampling.batch_size = 16
    config.train.iterations = 8
    config.train.prompts_per_iteration = 16
    config.train.batch_size = 8
    config.train.micro_batches = 2
    config.train.epochs = 2
    config.train.initial_policy = "keep"
    config.optim.learning_rate = 1e-4
    config.data.heldout = 64
    config.eval.num_samples = 2
    config.eval.final_num_samples = 4
    config.eval.every = 2
    config.eval.temperature = 1.0
    config.checkpoint.every = 0
    config.checkpoint.export = False
    return config

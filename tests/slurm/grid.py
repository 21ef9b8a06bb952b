"""Four small runs, for `make slurm`."""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select

SEEDS = (0, 1)


def get_config():
    config = load_config("smoke")
    config.data.heldout = 2
    config.data.prompt_buckets = (256,)
    config.similarity.name = "token_jaccard"
    config.sampling.num_samples = 2
    config.sampling.max_new_tokens = 6
    config.train.prompts_per_iteration = 8
    config.train.batch_size = 4
    config.train.micro_batches = 1
    config.train.term_norms = False
    select(config, "loss", "s_sppo", beta=0.05)
    return config


def sweep(add):
    for beta in (0.05, 0.1):
        add({"loss.beta": beta})

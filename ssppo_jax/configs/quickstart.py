"""SmolLM2-135M-Instruct aligns itself by self-play against a known oracle, on two CPU cores.

The oracle is half VADER sentiment and half relevance, the cosine of prompt and response in
MiniLM's space: for sentiment alone the answers are given up (experiments/overoptimised). A second
oracle that training does not see, `keywords`, counts the prompt's words that come back. All three
are functions of the text and stand for no human preference.

S-SPPO as in the paper, scaled to a laptop: small portions, few updates each, AdamW instead of
RMSProp, and beta = 0.05 so that the regression target is within reach of a few updates. Training
samples at temperature 1 as the paper does; evaluations sample at 0.7, where a model of this size
writes fluently."""

from ssppo_jax.schema import base_config, select


def get_config():
    config = base_config()
    config.model.source = "embedded:smollm2"
    config.data.heldout = 96
    config.data.max_prompt_length = 48
    config.data.prompt_buckets = (48,)
    config.sampling.num_samples = 4
    config.sampling.max_new_tokens = 40
    config.sampling.batch_size = 24
    members = '[{"oracle": "sentiment"}, {"oracle": "relevance"}]'
    select(config, "oracle", "combine", members=members, temperature=0.1)
    select(config, "loss", "s_sppo", beta=0.05, repulsion_weight=1.0)
    select(config, "optimizer", "adamw")
    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_ratio = 0.0
    config.optimizer.max_grad_norm = 0.0
    config.train.iterations = 7
    config.train.prompts_per_iteration = 24
    config.train.batch_size = 8
    config.eval.every = 2
    config.eval.num_samples = 1
    config.eval.final_num_samples = 4
    config.eval.temperature = 0.7
    config.eval.oracles = "keywords"
    config.checkpoint.every = 3
    return config

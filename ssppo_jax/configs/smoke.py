"""Everything on, on a tiny random model: finishes in under a minute on a laptop. Learns nothing
worth having."""

from ssppo_jax.schema import base_config, select


def get_config():
    config = base_config()
    config.model.source = "random:tiny"
    config.data.heldout = 8
    config.data.max_prompt_length = 256
    config.data.prompt_buckets = (128, 256)
    config.sampling.num_samples = 4
    config.sampling.max_new_tokens = 16
    config.sampling.batch_size = 8
    select(config, "oracle", "length", target=4, temperature=1.0)
    config.train.iterations = 2
    config.train.prompts_per_iteration = 16
    config.train.batch_size = 8
    config.train.micro_batches = 2
    config.optimizer.learning_rate = 1e-3
    config.eval.final_num_samples = 2
    config.checkpoint.every_steps = 1
    select(config, "loss", "s_sppo", beta=0.05)
    return config

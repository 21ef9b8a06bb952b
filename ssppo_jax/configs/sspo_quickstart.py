"""SmolLM2-135M-Instruct learns to answer sums of two digits by SSPO against an exact check, on two
CPU cores.

Off-policy, as SSPO is meant to be: every rollout of 32 prompts x 8 responses is learned in 4
minibatches of 8 prompts. The questions are all the sums and differences of two digits that
reasoning-gym makes; a third of them is held out. A sum that is held out in one order is not trained
on in the other. The reward is 1 when the last number of the response is right and 0 otherwise.
Evaluations sample at 0.7."""

from ssppo_jax.schema import base_config, select


def get_config():
    config = base_config()
    config.model.source = "embedded:smollm2"
    select(
        config,
        "data.source",
        "reasoning_gym",
        task="chain_sum",
        size=1500,
        settings='{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}',
        instruction="Give only the number.",
    )
    config.data.heldout = 64
    config.data.max_prompt_length = 64
    config.data.prompt_buckets = (64,)
    config.sampling.num_samples = 8
    config.sampling.max_new_tokens = 12
    config.sampling.batch_size = 32
    select(config, "oracle", "reasoning_gym", answer_style="final_number")
    select(config, "loss", "sspo")
    select(config, "optimizer", "adamw")
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_ratio = 0.0
    config.train.iterations = 12
    config.train.prompts_per_iteration = 32
    config.train.batch_size = 8
    config.train.reference_storage = "off"
    config.train.term_norms = False
    config.eval.every = 4
    config.eval.num_samples = 2
    config.eval.final_num_samples = 4
    config.eval.temperature = 0.7
    config.checkpoint.every = 4
    return config

"""SSPO on Qwen2.5-7B-Instruct and GSM8K, for 8 or more devices.

Written down, not run at its full size. SSPO's own paper (arXiv 2602.19327) gives few settings;
these follow the sibling paper on soft gates, which trains the same model: G = 8, AdamW at 1e-6 with
linear decay, 512 new tokens, every rollout used twice (`train.epochs`). Reconstruction throughout:
here the reward is the answer alone, by math-verify, and a rollout of 256 prompts is learned in 4
minibatches.

Prompts need `pip install 'ssppo_jax[hf]'`. Set data.source.revision to a commit for a run that is
to be repeated."""

from ssppo_jax.schema import base_config, select


def get_config():
    config = base_config()
    config.model.source = "Qwen/Qwen2.5-7B-Instruct"
    config.model.dtype = "bfloat16"
    # bfloat16 parameters would need float32 ones beside them at a rate of 1e-6
    config.model.param_dtype = "float32"
    config.model.remat = "full"
    config.model.attention_chunk = 128
    config.mesh.data = 1
    config.mesh.fsdp = -1

    select(
        config, "data.source", "hf", repo_id="openai/gsm8k", subset="main", prompt_field="question"
    )
    config.data.heldout = 256
    config.data.max_prompt_length = 512
    config.data.prompt_buckets = (128, 256, 512)

    config.sampling.num_samples = 8
    config.sampling.temperature = 1.0
    config.sampling.max_new_tokens = 512
    # Each group of 4 devices holds all weights, so that no token gathers them.
    config.sampling.mesh.data = -1
    config.sampling.mesh.tensor = 4
    config.sampling.param_dtype = "bfloat16"
    config.sampling.batch_size = 0

    select(config, "oracle", "math_verify", answer_style="auto")
    select(config, "loss", "sspo")
    select(config, "optimizer", "adamw")
    config.optimizer.learning_rate = 1e-6
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_ratio = 0.0

    config.train.iterations = 100
    config.train.prompts_per_iteration = 256
    config.train.batch_size = 64
    config.train.epochs = 2
    config.train.reference_storage = "off"
    config.eval.every = 10
    config.eval.num_samples = 1
    config.eval.final_num_samples = 4
    config.checkpoint.every = 10
    return config

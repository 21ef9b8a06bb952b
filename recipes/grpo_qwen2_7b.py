r"""GRPO on Qwen2-7B-Instruct and GSM8K, for 8 devices or more. Not run here.

Source: verl's examples/grpo_trainer/run_qwen2-7b_seq_balance.sh: 1024 prompts of 5 responses a
rollout, 256 prompts a step, AdamW at 1e-6, a KL of 0.001 to the initial policy, 15 passes over the
questions. Published in verl's table of baselines: 89 on GSM8K's test questions. The bounds are 2
points wide on each side. Weight decay 0.01 and clipping at 1 are verl's defaults (reconstruction).

    python -m ssppo_jax benchmark --name=gsm8k --model=RUN/policy \
        --config.benchmark.path=GSM8K.jsonl
"""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select


def get_config():
    config = load_config("qwen2_5_7b_sspo")  # its mesh, dtypes and questions
    config.model.source = "Qwen/Qwen2-7B-Instruct"
    config.data.prompt_template = (
        '{prompt} Let\'s think step by step and output the final answer after "####".'
    )
    config.sampling.num_samples = 5
    config.sampling.max_new_tokens = 1024
    select(config, "oracle", "math_verify", answer_style="hash")
    select(config, "loss", "grpo", beta=0.001)
    select(config, "optimizer", "adamw", weight_decay=0.01)
    config.optimizer.max_grad_norm = 1.0
    config.optimizer.schedule = "constant"
    config.train.reference_storage = "host"
    config.train.iterations = 106  # 15 passes over 7217 questions
    config.train.prompts_per_iteration = 1024
    config.train.batch_size = 256
    config.train.epochs = 1
    return config


if __name__ == "__main__":
    from check import check

    check(get_config(), {}, {"strict": (0.87, 0.91)})

"""DAPO on Qwen2.5-32B, written down from the published script. Not run here.

Source: arXiv 2503.14476 and verl's recipe run_dapo_qwen2.5_32b.sh: 512 prompts of 16 responses a
rollout, 32 prompts a step, clips 0.2 and 0.28, at most 20480 tokens with a penalty over the last
4096, groups of one reward left out, AdamW at 1e-6 with weight decay 0.1. The loss brings the
filter and the mask of cut responses (`--config.loss.name=dapo` says so). Published: 50 on AIME
2024, the mean of 32 answers; the bounds are 5 points wide on each side. dapo-math-17k.jsonl has a
`prompt` and an `answer` in each row, from the data set BytedTsinghua-SIA/DAPO-Math-17k.

    python -m ssppo_jax benchmark --name=math --model=RUN/policy --config.benchmark.path=AIME.jsonl
"""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select


def get_config():
    config = load_config("qwen2_5_7b_sspo")  # its mesh and dtypes
    config.model.source = "Qwen/Qwen2.5-32B"
    select(config, "data.source", "jsonl", path="dapo-math-17k.jsonl", duplicates="keep_first")
    config.data.max_prompt_length = 2048
    config.data.prompt_buckets = (256, 512, 2048)
    config.sampling.num_samples = 16
    config.sampling.max_new_tokens = 20480
    select(config, "loss", "dapo", epsilon=0.2, epsilon_high=0.28)
    config.group.overlong_buffer_len = 4096
    select(config, "optimizer", "adamw", weight_decay=0.1)
    config.optimizer.max_grad_norm = 1.0
    config.optimizer.schedule = "constant"
    config.train.prompts_per_iteration = 512
    config.train.batch_size = 32
    config.train.epochs = 1
    return config


if __name__ == "__main__":
    from check import check

    check(get_config(), {}, {"accuracy": (0.45, 0.55)})

"""DPO of zephyr-7b-sft-full on UltraFeedback, offline, for 8 devices or more. Not run here.

Source: the alignment handbook of Hugging Face, recipes/zephyr-7b-beta/dpo/config_full.yaml: beta
0.01, AdamW at 5e-7, cosine with 10% warm-up, 128 pairs a step, one epoch. It also trains on
test_prefs and holds out 2000 rows of both. A prompt and a response share 1024 tokens there; here a
response has 512. The bounds are ours and wide: they tell learning from none. Prompts need `pip
install 'ssppo_jax[hf]'`.
"""

from ssppo_jax.config import load_config
from ssppo_jax.schema import select


def get_config():
    config = load_config("mistral_7b_s_sppo")  # its mesh, dtypes and lengths
    config.model.source = "alignment-handbook/zephyr-7b-sft-full"
    repo = "HuggingFaceH4/ultrafeedback_binarized"
    select(
        config,
        "data.source",
        "answered",
        repo_id=repo,
        split="train_prefs+test_prefs",
        bad_rows="drop",
    )
    config.data.heldout = 2000
    config.pairs.gate_level = "none"
    select(config, "loss", "dpo", beta=0.01)
    select(config, "optimizer", "adamw")
    config.optimizer.schedule = "cosine"
    config.optimizer.scope = "run"
    config.optimizer.schedule_epochs = 0.0
    config.train.iterations = 1  # the reference is the initial policy throughout
    config.train.batch_size = 128
    return config


if __name__ == "__main__":
    from check import check

    check(get_config(), {"loss": (0.4, 0.65), "rewards/accuracies": (0.65, 0.9)})

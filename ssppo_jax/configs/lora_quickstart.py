"""The quickstart with adapters of rank 16 in place of the model, in a third of its memory: batches
in four parts, one layer's activations at a time."""

from ssppo_jax.config import load_config


def get_config():
    config = load_config("quickstart")
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.optimizer.learning_rate = 5e-4
    config.train.micro_batches = 4
    config.model.remat = "full"
    return config

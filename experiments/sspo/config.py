"""Which objective learns most from off-policy minibatches? GRPO, GSPO, GMPO, SAPO and three gates of SSPO on sums.

`sspo_quickstart` with 4 minibatches per rollout and two passes over it: 8 updates, 7 of them off-policy.
"""

from ssppo_jax.config import load_config

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/accuracy",
    "evaluate/accuracy:gain",
    "train/eur:mean",
    "train/eur:min",
    "score/entropy",
    "train/ratio/max:max",
    "train/ratio/min:min",
    "train/kl/old_k3:max",
    "train/grad_norm:max",
)
OBJECTIVES = {
    "grpo": {"loss.name": "grpo"},
    "gspo": {"loss.name": "gspo"},
    "gmpo": {"loss.name": "gmpo"},
    "sapo": {"loss.name": "sapo"},
    "sspo arctan_log": {"loss.name": "sspo"},
    "sspo sigmoid": {"loss.name": "sspo", "loss.sspo_gate": "sigmoid"},
    "sspo softsign": {"loss.name": "sspo", "loss.sspo_gate": "softsign"},
}


def get_config():
    config = load_config("configs/sspo_quickstart.py")
    config.data.heldout = 64
    config.eval.every = 3
    config.checkpoint.every = 0
    config.checkpoint.export = False
    return config


def sweep(add):
    for label, changes in OBJECTIVES.items():
        add({**changes, "train.iterations": 6, "train.epochs": 2}, label=f"off-policy {label}")

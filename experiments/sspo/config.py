"""Which objective learns most from off-policy minibatches? GRPO, GSPO, GMPO, SAPO and three gates
of SSPO on sums.

`sspo_quickstart` with smaller steps: 160 prompts in 40 updates of 4 prompts x 8 responses.
Off-policy, a rollout of 32 prompts is learned in 8 minibatches, 7 of them off-policy. On-policy,
the same number of prompts and updates, but every update is on a fresh rollout; there the gradients
of all objectives are equal, so SSPO stands for them."""

from ssppo_jax.config import load_config

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/accuracy",
    "evaluate/accuracy:gain",
    "judge/reward/mean",
    "train/effective_update_ratio:mean",
    "train/effective_update_ratio:min",
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
ON_POLICY = {
    "train.iterations": 40,
    "train.prompts_per_iteration": 4,
    "sampling.batch_size": 4,
    "eval.every": 20,
}


def get_config():
    config = load_config("sspo_quickstart")
    config.train.iterations = 5
    config.train.batch_size = 4
    config.eval.every = 2
    config.checkpoint.every = 0
    config.checkpoint.final = False
    config.checkpoint.export = False
    return config


def sweep(add):
    for name, changes in OBJECTIVES.items():
        add(changes, label=f"{name}, off-policy")
    add({**OBJECTIVES["sspo arctan_log"], **ON_POLICY}, label="sspo arctan_log, on-policy")

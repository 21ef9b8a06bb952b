"""Which objective learns most from off-policy minibatches? GRPO, GSPO, GMPO, SAPO and three gates of SSPO on sums.

`sspo_quickstart` with smaller steps: 192 prompts in 48 updates of 4 prompts x 8 responses. Off-policy, a rollout of 32
prompts is learned in 8 minibatches, 7 of them off-policy. On-policy, the same prompts and updates, but every update is
on a fresh rollout; there all objectives have the same gradient up to their normalisation, so two stand for them.
"""

from ssppo_jax.config import load_config

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/accuracy",
    "evaluate/accuracy:gain",
    "judge/reward/mean",
    "train/eur:mean",
    "train/eur:min",
    "score/entropy",
    "train/ratio/max:max",
    "train/ratio/min:min",
    "train/kl/old_k3:max",
    "train/grad_norm:max",
    "train/kl/init_k3",
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
    "train.iterations": 48,
    "train.prompts_per_iteration": 4,
    "sampling.batch_size": 4,
    "eval.every": 16,
}


def get_config():
    config = load_config("configs/sspo_quickstart.py")
    config.train.iterations = 6
    config.train.batch_size = 4
    config.eval.every = 2
    config.checkpoint.every = 0
    config.checkpoint.export = False
    return config


def sweep(add):
    for name, changes in OBJECTIVES.items():
        add(changes, label=f"{name}, off-policy")
    for name in ("grpo", "sspo arctan_log"):
        add({**OBJECTIVES[name], **ON_POLICY}, label=f"{name}, on-policy")

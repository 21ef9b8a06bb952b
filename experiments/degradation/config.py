"""In which regime does self-play against an overconfident oracle break, and does S-SPPO stay whole there?

`calibration`, driven harder: twice the learning rate, two passes over every rollout (more updates from the same old
responses), and samples at 0.3, where near-duplicates are frequent. In each: neither and both.
"""

from ssppo_jax.config import load_config

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/win_rate",
    "evaluate/win_rate:max",
    "evaluate/win_rate:min",
    "score/entropy",
    "generate/distinct_2",
    "judge/similarity/of_two_samples",
    "score/kl_to_initial",
    "evaluate/repetition_4",
    "train/grad_variance:mean",
)
REGIMES = {  # label: learning rate, passes over a rollout, sampling temperature
    "5e-5, 2 passes, T 0.3": (5e-5, 2, 0.3),
    "1e-4, 1 pass, T 0.7": (1e-4, 1, 0.7),
    "1e-4, 2 passes, T 0.7": (1e-4, 2, 0.7),
    "1e-4, 2 passes, T 0.3": (1e-4, 2, 0.3),
}
ARMS = {  # label: gate, lambda, beta
    "neither": ("none", 0.0, 0.05),
    "both": ("pair", 1.0, 0.05),
}


def get_config():
    return load_config("experiments/calibration/config.py")


def sweep(add):
    for regime, (rate, passes, temperature) in REGIMES.items():
        for arm, (gate, weight, beta) in ARMS.items():
            add(
                {
                    "optim.learning_rate": rate,
                    "train.epochs": passes,
                    "sampling.temperature": temperature,
                    "pairs.semantic_gate": gate,
                    "loss.repulsion_weight": weight,
                    "loss.beta": beta,
                },
                label=f"{regime}: {arm}",
            )

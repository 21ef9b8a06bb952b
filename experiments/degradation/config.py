"""Where does self-play against an overconfident oracle go wrong, does S-SPPO fare better, and is
that its smaller step?

`calibration`, driven harder: twice the learning rate and two passes over every rollout, so that
most updates are made from responses that the policy no longer gives. Three points: neither gate nor
repulsion, both, and neither at twice beta, which halves the regression's target as the gate does
with its margins, but for all pairs alike."""

from pathlib import Path

from ssppo_jax.config import load_config

SEEDS = (0, 1, 2)
METRICS = (
    "evaluate/win_rate",
    "evaluate/win_rate:min",
    "evaluate/win_rate:max",
    "score/entropy",
    "score/entropy:max",
    "generate/distinct_2",
    "judge/similarity/of_two_samples",
    "score/kl_to_initial",
    "train/grad_variance:mean",
    "evaluate/repetition_4",
)
POINTS = {  # label: gate, lambda, beta
    "neither (SPPO)": ("none", 0.0, 0.05),
    "both (S-SPPO)": ("pair", 1.0, 0.05),
    "neither, twice beta": ("none", 0.0, 0.1),
}


def get_config():
    config = load_config(str(Path(__file__).parents[1] / "calibration/config.py"))
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 2
    config.train.iterations = 6
    config.train.term_norms = False
    config.eval.every = 1
    config.eval.num_samples = 1
    config.eval.final_num_samples = 2
    return config


def sweep(add):
    for label, (gate, weight, beta) in POINTS.items():
        add(
            {"pairs.gate_level": gate, "loss.repulsion_weight": weight, "loss.beta": beta},
            label=label,
        )

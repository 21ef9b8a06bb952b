"""Every loss with the batches of its family, and keywords that are not the defaults: one that is
ignored shows."""

import group_batches
import opponent_batches
import pair_batches

from ssppo_jax.losses import group, opponent, preference

PAIRS, GROUPS, OPPONENTS = (
    sorted(preference.LOSSES),
    sorted(group.LOSSES),
    [*sorted(opponent.LOSSES), "xpo/ipo"],
)
RESPONSES = ["sft"]  # it reads the first response of a pair
NAMES = (
    PAIRS + GROUPS + OPPONENTS + RESPONSES
)  # what stands after a slash tells cases of one loss apart
SETTINGS = {name: {"beta": 0.5} for name in PAIRS} | {
    "s_sppo": {"beta": 0.5, "repulsion_weight": 2.0, "log_z_coef": 0.6},
    "sppo": {"beta": 0.5, "log_z_coef": 0.6},
    "sppo_single": {"beta": 0.5, "log_z_coef": 0.6},
    "dpo": {"beta": 0.5, "label_smoothing": 0.2},
    "robust": {"beta": 0.5, "label_smoothing": 0.2},
    "exo_pair": {"beta": 0.5, "label_smoothing": 0.1},
    "simpo": {"beta": 0.5, "simpo_gamma": 0.3},
    "inpo": {"eta": 0.5, "tau": 0.125},
    "sspo": {
        "sspo_gate": "arctan_log",
        "sspo_temperature_pos": 2.0,
        "sspo_temperature_neg": 3.0,
        "beta": 0.1,
    },
    "sapo": {
        "sapo_temperature_pos": 2.0,
        "sapo_temperature_neg": 3.0,
        "beta": 0.1,
        "loss_agg_mode": "token-mean",
    },
    "gspo": {"epsilon": 0.1, "epsilon_high": 0.15, "beta": 0.1},
    "gspo_token": {"epsilon": 0.1, "epsilon_high": 0.15, "beta": 0.1},
    "rloo": {"epsilon": 0.1, "epsilon_high": 0.15, "beta": 0.1},
    "gmpo": {"epsilon": 0.3, "epsilon_high": 0.2, "beta": 0.1},
    "grpo": {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.6, "beta": 0.1},
    "dr_grpo": {
        "epsilon": 0.2,
        "epsilon_high": 0.3,
        "delta": 1.6,
        "beta": 0.1,
        "max_completion_length": 8,
    },
    "bnpo": {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.6, "beta": 0.1},
    "dapo": {"epsilon": 0.2, "epsilon_high": 0.3, "delta": 1.6, "beta": 0.1},
    "cispo": {"epsilon_high": 1.5, "beta": 0.1, "loss_agg_mode": "seq-mean-token-sum"},
    "nash_md": {"beta": 0.5, "mixture_coef": 0.25},
    "xpo": {"beta": 0.5, "alpha": 0.3},
    "xpo/ipo": {"loss_type": "ipo", "beta": 0.5, "alpha": 0.3, "mixture_coef": 0.75},
    "sft": {},
}


def batches(name):
    """The module with `at_random`, `degenerate` and LENGTH of the loss's family."""
    return (
        pair_batches
        if name in PAIRS + RESPONSES
        else group_batches
        if name in GROUPS
        else opponent_batches
    )

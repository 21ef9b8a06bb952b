"""A loss of one's own, and a config that trains with it."""

import jax

from ssppo_jax.config import NonNegative, Positive, load_config
from ssppo_jax.losses import LOSSES, ROWS
from ssppo_jax.losses.core import clean, sequence_mean, sum_terms, weighted_mean
from ssppo_jax.schema import select
from ssppo_jax.types import Batch, Mean, Metrics, Policy


def mean_margin(
    policy: Policy, batch: Batch, *, beta: Positive = 2.0, margin: NonNegative = 0.5
) -> tuple[Mean, Metrics]:
    """Return -log sigmoid(beta (m_w - m_l) - margin), m the mean log-ratio per token.

    Args:
        beta: slope of the logistic function
        margin: how far apart winner and loser should be
    """
    # Padding and filler rows become constants before any arithmetic: padding may hold anything.
    policy, batch = clean(policy, batch)
    m = sequence_mean(policy.logp - batch.ref_logp, batch.mask)  # [B,2], winner at 0
    value = -jax.nn.log_sigmoid(beta * (m[:, 0] - m[:, 1]) - margin)  # [B]
    return sum_terms({"mean_margin": weighted_mean(value, batch.weight)})


LOSSES["mean_margin"] = mean_margin
ROWS["mean_margin"] = "pair"  # or "group", or "opponent"


def get_config():
    config = load_config("smoke")
    select(config, "loss", "mean_margin", beta=1.0)
    return config

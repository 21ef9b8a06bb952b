"""A soft gate of one's own on token ratios, used inside SSPO."""

import jax.numpy as jnp

from ssppo_jax.config import load_config
from ssppo_jax.losses import RATIO_GATES
from ssppo_jax.losses.ratio_gates import Gated
from ssppo_jax.schema import select
from ssppo_jax.types import Array


def tanh_log(u: Array, temperature: Array) -> Gated:
    """Return log f = tanh(temperature u) / temperature, u the log-ratio of a token.

    The slope d log f/du is sech^2(temperature u): 1 at u = 0 and never above 1.
    """
    t = jnp.tanh(temperature * u)
    return Gated(log_f=t / temperature, slope=1.0 - t * t)


RATIO_GATES["tanh_log"] = tanh_log


def get_config():
    config = load_config("smoke")
    select(config, "loss", "sspo", sspo_gate="tanh_log")
    return config
